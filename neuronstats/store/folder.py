"""A run folder's bytes, through the same calls in a local folder and an object store; its lock."""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url
from zarr.storage import ObjectStore

from neuronstats.errors import SettingsError, UserError
from neuronstats.store.layout import LOCK

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of renameat2(2)
LEASE_SECONDS = 60.0  # a lock object on an object store that was not renewed for so long is dead


@contextlib.contextmanager
def told(action: str, where: str) -> Iterator[None]:
    """Turn a storage error into one sentence about the user's storage."""
    try:
        yield
    except (FileNotFoundError, UserError):
        raise
    except (OSError, BaseError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"cannot {action} {where}: {reason}. Check free space and permissions, then run the"
            " same command again: what was committed is kept."
        ) from error


class RunFolder:
    """Keys and bytes below one local folder or one object-store prefix.

    Every write is whole and atomic: a reader sees the old object or the new one, never a part.

    Args:
        location: a path, or a URL such as ``s3://bucket/prefix``.
        create: make the local folder where it is missing.
    """

    def __init__(self, location: str, *, create: bool = False) -> None:
        self.is_local = "://" not in location
        self.location = str(Path(location).expanduser().absolute()) if self.is_local else location
        path = Path(self.location)
        if self.is_local and not path.is_dir() and (path.exists() or not create):
            what = "is a file" if path.exists() else "does not exist"
            raise SettingsError(f"run folder {self.location} {what}; expected a folder of a run.")
        with told("open", self.location):
            self._store = self._open()

    def _open(self, below: str = "") -> Any:
        if self.is_local:
            return LocalStore(prefix=str(Path(self.location) / below), mkdir=not below)
        return from_url(f"{self.location.rstrip('/')}/{below}".rstrip("/"))

    def __getstate__(self) -> dict[str, Any]:
        return {"is_local": self.is_local, "location": self.location}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._store = self._open()

    def read(self, key: str) -> bytes | None:
        """Return an object's bytes, or None where there is none."""
        with told("read", f"{self.location}/{key}"):
            try:
                return bytes(obstore.get(self._store, key).bytes())
            except FileNotFoundError:
                return None

    def write(self, key: str, data: bytes | Path) -> None:
        """Write or replace an object, with bytes or a file's content."""
        with told("write", f"{self.location}/{key}"):
            obstore.put(self._store, key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one already; return whether it was written."""
        with told("write", f"{self.location}/{key}"):
            try:
                obstore.put(self._store, key, data, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size in bytes of every object below a prefix."""
        with told("list", f"{self.location}/{prefix}"):
            batches = obstore.list(self._store, prefix or None)
            return {item["path"]: int(item["size"]) for batch in batches for item in batch}

    def names(self) -> set[str]:
        """Return the names right below the location: of objects, and of folders that hold some."""
        with told("list", self.location):
            found = obstore.list_with_delimiter(self._store)
        paths = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        return {path.strip("/") for path in paths}

    def remove(self, key: str) -> None:
        """Delete one object, if it is there."""
        with told("delete", f"{self.location}/{key}"), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, key)

    def clear(self, prefix: str) -> None:
        """Delete every object below a prefix."""
        keys = list(self.sizes(prefix))
        with told("delete", f"{self.location}/{prefix}"):
            for start in range(0, len(keys), 1000):
                obstore.delete(self._store, keys[start : start + 1000])

    def replace(self, new: str, old: str) -> None:
        """Put the objects below one prefix in the place of those below another.

        Locally in one step; on an object store, which has none, object by object.
        """
        with told("replace", f"{self.location}/{old}"):
            if self.is_local:
                _exchange(Path(self.location) / new, Path(self.location) / old)
                return
            stale = set(self.sizes(f"{old}/"))
            for key in self.sizes(f"{new}/"):
                target = old + key.removeprefix(new)
                obstore.rename(self._store, key, target)
                stale.discard(target)
            if stale:
                obstore.delete(self._store, sorted(stale))

    def zarr_store(self, name: str, *, read_only: bool, on_write: Any = None) -> ObjectStore:
        """Return a Zarr store below ``name``; ``on_write(key, bytes)`` sees each object written."""
        if self.is_local and not read_only:
            with told("create", f"{self.location}/{name}"):
                (Path(self.location) / name).mkdir(parents=True, exist_ok=True)
        return _ObservedStore(self._open(name), read_only=read_only, on_write=on_write)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the run for this process.

        Locally an flock, which the system drops with the process however it ends; on an object
        store a lease that is renewed while the process lives.

        Raises:
            UserError: another job holds it; says which.
        """
        return self._local_lock() if self.is_local else self._lease()

    def _taken(self, owner: str) -> UserError:
        return UserError(
            f"another job is working on {self.location} ({owner}). Wait for it or stop it; two jobs"
            " on one run folder would write over each other."
        )

    @contextlib.contextmanager
    def _local_lock(self) -> Iterator[None]:
        path = Path(self.location) / LOCK
        with told("write", str(path)):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
                raise self._taken(owner or "owner unknown") from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _owner().encode(), 0)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _lease(self) -> Iterator[None]:
        content = json.dumps({"owner": _owner(), "token": secrets.token_hex(8)}).encode()
        if not self.create(LOCK, content):
            head = obstore.head(self._store, LOCK)
            age = (datetime.now(UTC) - head["last_modified"]).total_seconds()
            if age < LEASE_SECONDS:
                raise self._taken(json.loads(self.read(LOCK) or b"{}").get("owner", "unknown"))
            obstore.put(self._store, LOCK, content, mode={"e_tag": head["e_tag"], "version": None})
        done = threading.Event()

        def renew() -> None:
            while not done.wait(LEASE_SECONDS / 4):
                obstore.put(self._store, LOCK, content)

        thread = threading.Thread(target=renew, daemon=True, name="lease")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            obstore.delete(self._store, LOCK)


def _exchange(new: Path, old: Path) -> None:
    """Let new take the place of old, which then is gone; at no moment is there neither."""
    if not old.exists():
        new.rename(old)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, bytes(new), AT_FDCWD, bytes(old), RENAME_EXCHANGE) != 0:
        error = ctypes.get_errno()
        if error not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise OSError(error, os.strerror(error), str(old))
        aside = old.with_name(f"{old.name}.old")  # a file system without exchange: nearly at once
        old.rename(aside)
        new.rename(old)
        new = aside
    shutil.rmtree(new)


def _owner() -> str:
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()} since {started}"


class _ObservedStore(ObjectStore):  # type: ignore[misc]
    """Zarr's object store, telling of each write: the commit record needs sizes and checksums."""

    def __init__(self, store: Any, *, read_only: bool = False, on_write: Any = None) -> None:
        super().__init__(store, read_only=read_only)
        self._on_write = on_write

    def with_read_only(self, read_only: bool = False) -> "_ObservedStore":  # noqa: FBT001, FBT002
        return _ObservedStore(self.store, read_only=read_only, on_write=self._on_write)

    async def set(self, key: str, value: Any) -> None:
        if self._on_write is not None:
            self._on_write(key, value.to_bytes())
        await super().set(key, value)
