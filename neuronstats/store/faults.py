"""What a file system or an object store answers, in words for people; how long it is waited for."""

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator
from typing import Any

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    JoinError,
    NotSupportedError,
    PreconditionError,
)

from neuronstats.errors import GoneError, SettingsError, UserError

TIMEOUT = "NEURONSTATS_STORE_TIMEOUT"  # beside AWS_...: what every machine needs to know of a store
DEFAULT_TIMEOUT_SECONDS = 600.0
PAUSE_SECONDS = 0.5, 10.0  # between two attempts, the shortest and the longest

KEY = (
    "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION (docs/storage.md), and that this"
    " key may read and write there"
)
# What an answer contains -> cause and cure. Such an answer stays the same, however long one waits.
CURES = (
    ("NoSuchBucket", "there is no such bucket: create it, or correct the URL"),
    ("InvalidBucketName", "that is no name of a bucket: correct the URL"),
    ("builder error", "plain http is refused unless AWS_ALLOW_HTTP=true is set"),
    ("169.254.169.254", f"there is no key: {KEY}"),
    ("Missing bucket", "the URL names no bucket: expected s3://BUCKET/PREFIX"),
    ("InvalidAccessKeyId", f"the server does not know this key: {KEY}"),
    ("SignatureDoesNotMatch", f"the secret is wrong: {KEY}"),
    ("403 Forbidden", f"the server refuses this key: {KEY}"),
    ("401 Unauthorized", f"the server asks for a key: {KEY}"),
    ("Permission denied", "no permission: choose another folder, or ask its owner"),
    ("Read-only file system", "the disk is read-only: choose another folder"),
    ("File name too long", "the name is too long for this file system: choose a shorter one"),
    ("No space left", "the disk is full: free some space, then run the same command again"),
)

log = logging.getLogger(__name__)


@contextlib.contextmanager
def storage_errors(doing: str, where: str) -> Iterator[None]:
    """Turn an error of storage into one sentence that names cause and cure.

    Args:
        doing: what was tried, a verb.
        where: the path or URL.

    Raises:
        FileNotFoundError: as it is, like what a conditional put is refused with: callers expect it.
        GoneError: an object store does not answer.
        UserError: all else.
    """
    try:
        yield
    except (UserError, AlreadyExistsError, PreconditionError, NotSupportedError):
        raise
    except (OSError, BaseError) as error:
        cure = next((cure for word, cure in CURES if word in str(error)), None)
        if isinstance(error, FileNotFoundError) and cure is None:
            raise
        reason = re.split(r"[:,]? ?<\?xml|\n", str(error))[0][:300]
        if cure is None and "://" in where and isinstance(error, GenericError | JoinError):
            raise GoneError(
                f"cannot {doing} {where}: the object store does not answer ({reason}). Check"
                " AWS_ENDPOINT_URL and the network, then run the same command again: what was"
                " committed is kept."
            ) from error
        cure = cure or (
            "check free space and permissions, then run the same command again: what was committed"
            " is kept"
        )
        raise UserError(f"cannot {doing} {where}: {cure} ({reason}).") from error


class Patience:
    """Decides, after each failure, how long to wait for an object store that went away.

    Args:
        location: of the store, for messages.
        known: the store has answered before; one that never has is not waited for.
    """

    def __init__(self, location: str, *, known: bool) -> None:
        self._location, self._known = location, known
        self._since: float | None = None
        self.limit_seconds = timeout_seconds()

    def answered(self) -> None:
        """Note that the store is there."""
        self._known, self._since = True, None

    def pause(self, error: GoneError) -> float:
        """Return the seconds to wait before the next attempt.

        Raises:
            GoneError: it was waited for long enough.
        """
        now = time.monotonic()
        if self._since is None:
            self._since = now
            if self._known:
                log.warning("%s Waiting for it, %.0f s at most.", error, self.limit_seconds)
        waited = now - self._since
        if not self._known or waited >= self.limit_seconds:
            raise error
        shortest, longest = PAUSE_SECONDS
        return min(longest, max(shortest, waited / 2))


def timeout_seconds() -> float:
    """Return how long an object store that went away is waited for.

    Raises:
        SettingsError: the environment's variable is no number of seconds.
    """
    text = os.environ.get(TIMEOUT, str(DEFAULT_TIMEOUT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise SettingsError(f"{TIMEOUT}={text}: expected seconds, such as 600.")
    return seconds


REPAIR = "collect again with repair=true computes it again"
LAID_DOWN = "collect again with repair=true puts it right"


class damage:
    """Raise errors that name the stored thing that cannot be read, and the way out."""

    def __init__(self, what: str, cure: str) -> None:
        self._what, self._cure = what, cure

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            reason = str(error).split("\n")[0] or type(error).__name__
            raise UserError(f"{self._what} cannot be read ({reason}): {self._cure}.") from error
