"""The page over HTTP on this machine: as written, and any neuron's detail when asked for."""

import functools
import re
from collections.abc import Callable
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from neuronstats.errors import UserError

LIVE = re.compile(r"/live/(\d{1,6})/(\d{1,6})/(\d{1,9})\.js")

HOSTS = ("127.0.0.1", "localhost")

Detail = Callable[[int, int, int], bytes | None]


class _Handler(SimpleHTTPRequestHandler):
    """Serves files below one folder, and what `live` computes."""

    def __init__(self, *args: Any, detail: Detail, lock: Lock, **keywords: Any) -> None:
        """Remember what computes details; the base class does the rest."""
        self._detail, self._lock = detail, lock
        super().__init__(*args, **keywords)

    def do_GET(self) -> None:
        """Answer with a neuron's detail, computed now, or a file."""
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in HOSTS:
            self.send_error(HTTPStatus.FORBIDDEN)  # another site's name for this address
            return
        found = LIVE.fullmatch(self.path)
        if found is None:
            super().do_GET()
            return
        with self._lock:  # one at a time bounds the memory
            content = self._detail(*map(int, found.groups()))
        if content is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/javascript")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def list_directory(self, path: Any) -> None:
        """List nothing."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of single requests."""


def make_server(folder: Path, detail: Detail, port: int) -> ThreadingHTTPServer:
    """Return a server of the page for this machine alone, bound and not yet running.

    Args:
        folder: the report.
        detail: gives the script of a neuron's detail for run, layer and neuron, or None.
        port: 0 for any free one.

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
