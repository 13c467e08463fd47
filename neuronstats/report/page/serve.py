"""The page over HTTP on this machine: as written, and any neuron's detail when asked for."""

import functools
import io
import re
from collections.abc import Callable
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from neuronstats.errors import UserError

LIVE = re.compile(r"/live/(\d{1,6})/(\d{1,6})/(\d{1,9})\.js")

INDEXES = ("index.html", "index.htm")  # what the base class serves of a folder
HOSTS = ("127.0.0.1", "localhost")

Detail = Callable[[int, int, int], bytes | None]


class _Handler(SimpleHTTPRequestHandler):
    """Serves files below one folder, and what `live` computes."""

    def __init__(self, *args: Any, detail: Detail, lock: Lock, **keywords: Any) -> None:
        """Keep what computes details; the base class does the rest."""
        self._detail, self._lock = detail, lock
        super().__init__(*args, **keywords)

    def send_head(self) -> Any:
        """Send the header of a file, or of a neuron's detail; return what holds the content.

        The base class calls it for every method that it knows.
        """
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in HOSTS:
            return self.send_error(HTTPStatus.FORBIDDEN)  # another site's name for this address
        found = LIVE.fullmatch(self.path)
        if found is None:
            return super().send_head() if self._is_inside() else self._not_found()
        with self._lock:  # one at a time bounds the memory
            content = self._detail(*map(int, found.groups()))
        if content is None:
            return self._not_found()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/javascript")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return io.BytesIO(content)

    def _is_inside(self) -> bool:
        """Return whether what is asked for lies in the folder, links followed."""
        path = Path(self.translate_path(self.path))
        folder = Path(self.directory).resolve()
        files = [path, *(path / name for name in INDEXES)]
        return all(file.resolve().is_relative_to(folder) for file in files)

    def _not_found(self) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def list_directory(self, path: Any) -> None:
        """List nothing."""
        self._not_found()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing of single requests."""


def make_server(folder: Path, detail: Detail, port: int) -> ThreadingHTTPServer:
    """Return a server of the page for this machine alone, bound and not yet running.

    `detail` returns the script of a neuron's detail for run, layer and neuron, or None; port 0 is
    any free one.

    Raises:
        UserError: the port is taken.
    """
    handler = functools.partial(_Handler, directory=str(folder), detail=detail, lock=Lock())
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise UserError(
            f"port={port} cannot be used ({error.strerror}): choose another, or 0."
        ) from error
