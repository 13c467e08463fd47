"""Whether the cluster is still there, and which machines it has: looked at beside the work."""

import os
import socket
import sys
import threading
import time
from typing import Any

from neuronstats.errors import GONE, GoneError

INTERVAL_SECONDS = 2.0
GONE_SECONDS = 20.0  # without an answer; Ray ends this process after 60
STUCK_SECONDS = 15.0  # more, for the main thread to notice: it may be waiting inside Ray


class Watch:
    """Looks every two seconds, in a thread: Ray's own question waits a minute for a dead head.

    Args:
        ray: connected.
        head: HOST:PORT of the cluster's head; None where it cannot be asked (ray://).
        local: whether the cluster is this machine alone, started by this process.
    """

    def __init__(self, ray: Any, head: str | None, *, local: bool) -> None:
        self._ray, self._head, self._local = ray, head, local
        self.nodes: list[dict[str, Any]] = ray.nodes()
        own = None if head is None else ray.get_runtime_context().get_node_id()
        self._raylet = next(
            (
                f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
                for node in self.nodes
                if node["NodeID"] == own
            ),
            None,
        )
        self._answered = time.monotonic()
        self._end = threading.Event()
        for work in (self._look, self._guard):
            threading.Thread(target=work, name="watch", daemon=True).start()

    @property
    def alive(self) -> set[str]:
        """Ids of the machines that are there."""
        return {node["NodeID"] for node in self.nodes if node["Alive"]}

    def check(self) -> None:
        """Raise GoneError if the cluster has not answered for some time."""
        if time.monotonic() - self._answered > GONE_SECONDS:
            raise GoneError(self._words)

    def require(self) -> None:
        """Raise GoneError if the cluster does not answer now; a worker's death may tell first."""
        if not self._there():
            raise GoneError(self._words)

    def _there(self) -> bool:
        return all(_answers(place) for place in (self._head, self._raylet) if place)

    @property
    def _words(self) -> str:
        what = "Ray on this machine has ended" if self._local else "the cluster's head is gone"
        return f"{what}; what was committed stays; the same command goes on."

    def close(self) -> None:
        """Look no more."""
        self._end.set()

    def _look(self) -> None:
        while not self._end.wait(INTERVAL_SECONDS):
            if self._there():
                try:
                    self.nodes = self._ray.nodes()
                except Exception:  # noqa: BLE001 - whatever it is, there was no answer
                    continue
                self._answered = time.monotonic()

    def _guard(self) -> None:
        """End this process where the main thread does not notice; Ray would, without a word."""
        while not self._end.wait(INTERVAL_SECONDS):
            if time.monotonic() - self._answered > GONE_SECONDS + STUCK_SECONDS:
                sys.stdout.flush()
                sys.stderr.write(f"error: {self._words}\n")
                sys.stderr.flush()
                os._exit(GONE)


def _answers(place: str) -> bool:
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True
