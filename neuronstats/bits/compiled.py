"""Loops that numba compiles on their first call, and keeps for the next process."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import FunctionCache

from neuronstats.hashing import checksum

Function = TypeVar("Function", bound=Callable[..., Any])


PACKAGE = Path(__file__).parents[1]


@functools.cache
def _source() -> str:
    """Return a checksum of all files that may hold loops: numba looks at a loop's own alone."""
    files = [path for name in ("bits", "stats") for path in sorted((PACKAGE / name).glob("*.py"))]
    return checksum(b"".join(path.read_bytes() for path in files))


class _Kept(FunctionCache):  # type: ignore[misc]
    """numba's cache on disk; where it cannot be read or written, code is compiled again."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file._source_stamp = _source()

    def load_overload(self, *args: Any) -> Any:
        try:
            return super().load_overload(*args)
        except Exception:  # noqa: BLE001 - whatever a damaged file leads to
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, *args: Any) -> None:
        with contextlib.suppress(Exception):  # a full disk, say
            super().save_overload(*args)


def compiled(function: Function) -> Function:
    """Compile on the first call, free of the GIL and without threads.

    The machine code is kept in `__pycache__` beside the function's file, or in the user's cache,
    by the processor's abilities and the source of all loops.
    """
    dispatcher = numba.njit(nogil=True)(function)
    with contextlib.suppress(RuntimeError):  # there is no folder that can be written
        dispatcher._cache = _Kept(function)
    return cast(Function, dispatcher)
