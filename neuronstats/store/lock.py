"""Who may write a run: an flock on a local folder, a lease on an object store."""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PreconditionError,
)

from neuronstats.errors import GoneError, SettingsError, UserError
from neuronstats.store.faults import Patience, storage_errors
from neuronstats.store.layout import LOCK, LOGS

LEASE_SECONDS = 60.0  # a lock object that was not renewed for so long is dead
RENEW_SECONDS = LEASE_SECONDS / 4
CLOCK_SECONDS = 1.0  # stores tell times in whole seconds: a lease may look so much older than it is
Ask = Callable[[Callable[[], Any]], Any]
PUTS = 10  # that find the lock ours and are refused
NO_TAG = '"00000000000000000000000000000000"'  # of no object


def owner() -> str:
    """Name this process, for whoever finds the run locked."""
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()} since {started}"


def taken(location: str, who: str) -> UserError:
    """Build the error for a run that another job holds."""
    return UserError(
        f"another job is working on {location} ({who}). Wait for it or stop it; two jobs"
        " on one run folder would write over each other."
    )


@contextlib.contextmanager
def file_lock(location: str) -> Iterator[None]:
    """Lock a local folder by a file, which the system drops with the process however it ends.

    Raises:
        UserError: another job holds it; says which.
    """
    path = Path(location) / LOCK
    with storage_errors("write", str(path)):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
            raise taken(location, who or "owner unknown") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner().encode(), 0)
        yield
    finally:
        os.close(descriptor)


def probe(store: Any, location: str, ask: Ask) -> datetime:
    """Check that a store refuses a conditional put whose condition fails; return its clock.

    Args:
        store: the object store.
        location: its URL, for messages.
        ask: does a request, and does it again where the store went away meanwhile.

    Raises:
        SettingsError: it does not: two jobs could write one run without noticing.
    """
    key = f"{LOGS}/probe-{secrets.token_hex(8)}"
    with contextlib.suppress(AlreadyExistsError):  # a put whose answer was lost is done again
        ask(lambda: obstore.put(store, key, b"", mode="create"))
    try:
        for mode in ("create", {"e_tag": NO_TAG}):
            try:
                ask(partial(obstore.put, store, key, b"", mode=mode))
            except (AlreadyExistsError, PreconditionError):
                continue
            except NotSupportedError:
                pass
            raise SettingsError(
                f"{location}: this object store ignores conditional puts (If-None-Match,"
                " If-Match), which keep two jobs from writing over each other. Use a server that"
                " has them (docs/storage.md), or a local folder."
            )
        return ask(lambda: obstore.head(store, key))["last_modified"]
    finally:
        with contextlib.suppress(FileNotFoundError):
            ask(lambda: obstore.delete(store, key))


def _end_of_lease(sent: float) -> float:
    """Return until when a lock is surely its holder's, that was put at such a time."""
    return sent + LEASE_SECONDS - CLOCK_SECONDS


class Lease:
    """A lock object that its holder renews; one that was not for LEASE_SECONDS may be taken over.

    Each change is a put on condition of the e_tag last seen, so of two that try one wins; each has
    another content, so that it has another e_tag.

    Args:
        store: the run's object store.
        location: its URL, for messages.
        patience: how long the store is waited for.
    """

    def __init__(self, store: Any, location: str, patience: Patience) -> None:
        self._store, self._location, self._patience = store, location, patience
        self._about: dict[str, Any] = {
            "owner": owner(),
            "token": secrets.token_hex(8),
            "renewed": 0,
        }
        self._tag, self._until, self._refused = "", 0.0, False
        self._sent: dict[Any, float] = {}  # when, by number
        self._lost: UserError | None = None
        self._mutex, self._done = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")

    def _put(self, mode: Any) -> None:
        self._about["renewed"] += 1
        now = time.monotonic()  # from before: the server counts from later
        recent = {number: at for number, at in self._sent.items() if at > now - LEASE_SECONDS}
        self._sent = {**recent, self._about["renewed"]: now}
        result = obstore.put(self._store, LOCK, json.dumps(self._about).encode(), mode=mode)
        self._tag, self._until = result["e_tag"], _end_of_lease(now)

    def _found(self) -> tuple[dict[str, Any], Any]:
        """Return what the lock says (nothing where it is damaged or gone), and its meta data."""
        try:
            answer = obstore.get(self._store, LOCK)
            return dict(json.loads(bytes(answer.bytes()))), answer.meta
        except FileNotFoundError:
            return {}, None
        except (ValueError, TypeError):
            return {}, answer.meta

    def take(self, ask: Ask = lambda call: call()) -> None:
        """Take the lock, and renew it from now on.

        Args:
            ask: does a request, and does it again where the store went away meanwhile: each by
                itself, for of all together one may fail every time.

        Raises:
            UserError: another job holds it; says which.
            SettingsError: the store cannot keep a lock.
        """
        now = probe(self._store, self._location, ask)
        try:
            ask(lambda: self._put("create"))
        except AlreadyExistsError:
            about, meta = ask(self._found)
            if meta and (now - meta["last_modified"]).total_seconds() >= LEASE_SECONDS:
                with contextlib.suppress(PreconditionError):  # another was quicker
                    ask(partial(self._put, {"e_tag": meta["e_tag"]}))
                about, meta = ask(self._found)
            if about.get("token") == self._about["token"]:  # also where only the answer was lost
                self._tag = meta["e_tag"]  # renewed before the first write
            else:
                who = about.get("owner", "owner unknown")
                raise taken(self._location, str(who)) from None
        self._thread.start()

    def renew(self) -> None:
        """Renew the lock.

        Raises:
            UserError: another job has taken it over.
        """
        with self._mutex:
            for _ in range(PUTS):
                if not self._refused:
                    try:
                        return self._put({"e_tag": self._tag})
                    except (PreconditionError, FileNotFoundError):
                        self._refused = True
                about, meta = self._found()
                self._refused = False
                if about.get("token") != self._about["token"]:
                    who = about.get("owner", "owner unknown")
                    self._lost = UserError(
                        f"this job was away from {self._location} for more than"
                        f" {LEASE_SECONDS:.0f} s, and another job has taken the run over ({who});"
                        " this one stops. What was committed is kept."
                    )
                    raise self._lost
                # It is one of our puts, whose answer was lost.
                self._tag = meta["e_tag"]
                self._until = _end_of_lease(self._sent.get(about.get("renewed"), 0.0))
                if time.monotonic() < self._until - LEASE_SECONDS / 2:
                    return None
            raise GoneError(f"{self._location}/{LOCK} could not be renewed {PUTS} times in a row.")

    def check(self) -> None:
        """Raise unless the lock is ours: called before every write.

        Raises:
            UserError: another job has taken it over.
            GoneError: the store has not answered for too long.
        """
        if self._lost is not None:
            raise self._lost
        if time.monotonic() >= self._until:  # this process slept, or the store was away
            self.renew()

    def _keep(self) -> None:
        wait = RENEW_SECONDS
        while not self._done.wait(wait):
            try:
                with storage_errors("renew", f"{self._location}/{LOCK}"):
                    self.renew()
                self._patience.answered()
                wait = RENEW_SECONDS
            except GoneError as error:
                try:
                    wait = self._patience.pause(error)
                except GoneError:
                    self._lost = error
                    return
            except UserError as error:
                self._lost = error
                return

    def release(self) -> None:
        """Delete the lock if it is still ours; otherwise, or without the store, leave it."""
        self._done.set()
        self._thread.join()
        with contextlib.suppress(UserError, BaseError, OSError):
            self.renew()  # ours for the next seconds: a store has no conditional delete
            obstore.delete(self._store, LOCK)
