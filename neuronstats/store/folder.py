"""A run folder's bytes, through the same calls in a local folder and an object store; its lock."""

import contextlib
import ctypes
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import LocalStore, from_url

from neuronstats.errors import GoneError, SettingsError
from neuronstats.hashing import checksum_of
from neuronstats.store.faults import Patience, storage_errors
from neuronstats.store.layout import LOCK, OBJECT_BYTES
from neuronstats.store.lock import Lease, file_lock
from neuronstats.store.zarr_store import OnObject, OnRead, ZarrStore

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of renameat2(2)
SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "https", "http")

Answer = TypeVar("Answer")


class RunFolder:
    """Keys and bytes below one local folder or one object-store prefix.

    Every write is whole and atomic: a reader sees the old object or the new one, never a part.

    Args:
        location: a path, or a URL such as ``s3://bucket/prefix``.
        create: make the local folder where it is missing.
        patient: wait for an object store from the first call on, not only once it has answered.
        store: an obstore store instead of the location's own.

    Raises:
        SettingsError: the location is none, or there is no such local folder.
    """

    def __init__(
        self, location: str, *, create: bool = False, patient: bool = False, store: Any = None
    ) -> None:
        self.is_local = "://" not in location
        self.location = str(Path(location).expanduser().absolute()) if self.is_local else location
        self._lease: Lease | None = None
        self._patience = Patience(self.location, known=patient)
        self._store = self._open(create=create) if store is None else store

    def _open(self, *, create: bool) -> Any:
        if not self.is_local:
            return _open_url(self.location)
        path = Path(self.location)
        with storage_errors("open", self.location):
            if not path.is_dir() and (path.exists() or not create):
                what = "is a file" if path.exists() else "does not exist"
                raise SettingsError(
                    f"run folder {self.location} {what}; expected a folder of a run."
                )
            if not path.is_dir():
                self._step("create", "", lambda: path.mkdir(parents=True, exist_ok=True))
            return LocalStore(prefix=self.location)

    def _ask(self, doing: str, key: str, call: Callable[[], Answer]) -> Answer:
        """Call the store; where one that has answered before does not, wait for it."""
        while True:
            try:
                with storage_errors(doing, f"{self.location}/{key}"):
                    answer = call()
            except GoneError as error:
                time.sleep(self._patience.pause(error))
            except (FileNotFoundError, AlreadyExistsError, PreconditionError):  # answers, too
                self._patience.answered()
                raise
            else:
                self._patience.answered()
                return answer

    def _step(self, kind: str, key: str, act: Callable[[], Answer]) -> Answer:
        """Change what is stored: the one way of every write, deletion, rename and exchange.

        Args:
            kind: a verb, for messages.
            key: what is changed.
            act: changes it; is called again where an object store went away meanwhile.

        Raises:
            UserError: it cannot be done, or another job has taken over the run.
        """
        self.check_lock()
        return self._ask(kind, key, act)

    def check_lock(self) -> None:
        """Raise unless this process still holds the lock that it has taken."""
        if self._lease is not None:
            self._ask("renew", "its lock", self._lease.check)

    def read(self, key: str, part: tuple[int, int] | int | None = None) -> bytes | None:
        """Return an object's bytes, or None where there is none.

        Args:
            key: which.
            part: from a byte up to another, or so many at the end, instead of all.
        """

        def read() -> bytes:
            if isinstance(part, tuple):
                return bytes(obstore.get_range(self._store, key, start=part[0], end=part[1]))
            end: Any = None if part is None else {"range": {"suffix": part}}
            return bytes(obstore.get(self._store, key, options=end).bytes())

        try:
            return self._ask("read", key, read)
        except FileNotFoundError:
            return None

    def checksum(self, key: str) -> tuple[int, str] | None:
        """Return an object's size in bytes and its checksum, or None where there is none."""

        def read() -> tuple[int, str]:
            found = obstore.get(self._store, key)
            whole = found.meta["size"] <= OBJECT_BYTES  # five times as fast as part by part
            return checksum_of([found.bytes()] if whole else found)

        try:
            return self._ask("read", key, read)
        except FileNotFoundError:
            return None

    def exists(self, key: str) -> bool:
        """Return whether there is an object."""
        try:
            return bool(self._ask("read", key, lambda: obstore.head(self._store, key)))
        except FileNotFoundError:
            return False

    def write(self, key: str, data: bytes | Path) -> None:
        """Write or replace an object, with bytes or a file's content."""
        self._step("write", key, lambda: obstore.put(self._store, key, data))

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one already; return whether it was written.

        One that holds these bytes counts as written: the answer to our own put may be lost.
        """
        try:
            self._step("write", key, lambda: obstore.put(self._store, key, data, mode="create"))
        except AlreadyExistsError:
            return self.read(key) == data
        return True

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size in bytes of every object below a prefix."""

        def found() -> dict[str, int]:
            batches = obstore.list(self._store, prefix or None)
            return {item["path"]: int(item["size"]) for batch in batches for item in batch}

        return self._ask("list", prefix, found)

    def names(self) -> set[str]:
        """Return the names right below the location: of objects, and of folders that hold some."""
        found = self._ask("list", "", lambda: obstore.list_with_delimiter(self._store))
        paths = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        return {path.strip("/") for path in paths}

    def remove(self, *keys: str) -> None:
        """Delete objects, those that are there."""
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                self._step("delete", key, partial(obstore.delete, self._store, key))

    def clear(self, prefix: str) -> None:
        """Delete every object below a prefix; locally also what a dead process left of a write.

        That is KEY#1, or another number: the local store writes there first, and never lists it.
        """
        self.remove(*self.sizes(prefix))
        if self.is_local:
            for path in (Path(self.location) / prefix).rglob("*#[0-9]*"):
                self._step("delete", path.name, partial(path.unlink, missing_ok=True))

    def replace(self, new: str, old: str, *, first: str) -> None:
        """Put the objects below one prefix in the place of those below another.

        Locally in one step. An object store has none: there it goes object by object, ``first``
        first, which names the others' checksums: until all are there, they are not what it names.
        """
        if self.is_local:
            paths = Path(self.location) / new, Path(self.location) / old
            if self._step("replace", old, lambda: _exchange(*paths)):
                self._step("delete", new, lambda: shutil.rmtree(paths[0]))
            return
        stale = set(self.sizes(f"{old}/"))
        for key in sorted(self.sizes(f"{new}/"), key=lambda key: (key != f"{new}/{first}", key)):
            target = old + key.removeprefix(new)
            self._step("replace", target, partial(_rename, self._store, key, target))
            stale.discard(target)
        self.remove(*sorted(stale))

    def zarr_store(
        self,
        name: str,
        *,
        read_only: bool,
        on_write: OnObject | None = None,
        on_read: OnRead | None = None,
    ) -> ZarrStore:
        """Return a Zarr store below ``name``.

        Args:
            name: the prefix.
            read_only: whether it cannot be written.
            on_write: called with the key below the prefix and the bytes of each object written.
            on_read: called so with each object read, None where it is not there; may raise.
        """
        return ZarrStore(self, name, read_only=read_only, on_write=on_write, on_read=on_read)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run for this process.

        Raises:
            UserError: another job holds it; says which.
        """
        if self.is_local:
            held = file_lock(self.location)
            self._step("lock", LOCK, held.__enter__)
            try:
                yield
            finally:
                held.__exit__(None, None, None)
            return
        self.exists(LOCK)  # a store that has answered once is waited for from then on
        lease = Lease(self._store, self.location, self._patience)
        self._step("lock", LOCK, partial(lease.take, partial(self._ask, "lock", LOCK)))
        self._lease = lease
        try:
            yield
        finally:
            self._lease = None
            self._step("unlock", LOCK, lease.release)


def _rename(store: Any, key: str, target: str) -> None:
    try:
        obstore.rename(store, key, target)
    except FileNotFoundError:
        obstore.head(store, target)  # it was renamed, and the answer to that was lost


def _exchange(new: Path, old: Path) -> bool:
    """Put new in the place of old; return whether new then holds what old held.

    At no moment is there neither, where the file system exchanges.
    """
    aside = old.with_name(f"{old.name}.old")
    if aside.exists():  # of a process that died between the renames below
        shutil.rmtree(aside)
    if not old.exists():
        new.rename(old)
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, bytes(new), AT_FDCWD, bytes(old), RENAME_EXCHANGE) != 0:
        error = ctypes.get_errno()
        if error not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise OSError(error, os.strerror(error), str(old))
        old.rename(aside)  # a file system without exchange: nearly at once
        new.rename(old)
        aside.rename(new)
    return True


def _open_url(url: str) -> Any:
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES or not rest.strip("/"):
        raise SettingsError(
            f"{url}: expected a folder, or the URL of an object store with bucket and prefix, such"
            " as s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX."
        )
    try:
        return from_url(url.rstrip("/"))
    except BaseError as error:
        reason = str(error).split("\n")[0]
        raise SettingsError(
            f"{url} cannot be used ({reason}): see docs/storage.md for what to set."
        ) from error
