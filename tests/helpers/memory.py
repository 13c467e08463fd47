"""Object stores in this process, and ways to make them fail."""

import contextlib

import obstore
from obstore.exceptions import GenericError
from obstore.store import MemoryStore


def memory_stores(monkeypatch):
    """Let every URL be an object store in this process; return them by URL."""
    stores = {}
    monkeypatch.setattr(
        "neuronstats.store.folder.from_url", lambda url: stores.setdefault(url, MemoryStore())
    )
    return stores


class Failing:
    """An obstore call that fails as an unreachable server does, while `down`."""

    def __init__(self, monkeypatch, *names):
        self.down, self.failures = False, 0
        for name in names:
            monkeypatch.setattr(obstore, name, self._wrap(getattr(obstore, name)))

    def _wrap(self, call):
        def wrapped(*args, **kwargs):
            if self.down:
                self.failures += 1
                raise GenericError("Generic S3 error: error sending request")
            return call(*args, **kwargs)

        return wrapped

    @contextlib.contextmanager
    def outage(self):
        self.down = True
        try:
            yield
        finally:
            self.down = False
