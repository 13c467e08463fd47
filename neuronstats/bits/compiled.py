"""Loops that numba compiles on their first call, and keeps for the next process."""

import contextlib
import functools
import pickle
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

from neuronstats.hashing import checksum

PACKAGE = Path(__file__).parents[1]
Function = TypeVar("Function", bound=Callable[..., Any])


@functools.cache
def _source() -> str:
    """Return a checksum of numba's version and of all files that may hold loops."""
    files = [path for name in ("bits", "stats") for path in sorted((PACKAGE / name).glob("*.py"))]
    return checksum(numba.__version__.encode() + b"".join(path.read_bytes() for path in files))


class _Files:
    """One function's code in files, by signature and processor.

    In place of numba's index, in which two processes at once may give two codes one name, and
    which looks at the time of one file: a loop takes those of other files into itself.
    """

    def __init__(self, folder: str, name: str) -> None:
        self._folder, self._name = Path(folder), name

    def _path(self, key: object) -> Path:
        return self._folder / f"{self._name}.{_source()}.{checksum(repr(key).encode())}.nbc"

    def load(self, key: object) -> Any:
        """Return what was saved; None if it is not there, or is damaged."""
        try:
            content = self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        code = content[32:]
        return pickle.loads(code) if checksum(code).encode() == content[:32] else None

    def save(self, key: object, data: object) -> None:
        """Write it whole, and remove what other sources have left."""
        code = dumps(data)
        temporary = self._folder / f"{self._name}.{secrets.token_hex(8)}.tmp"
        try:
            temporary.write_bytes(checksum(code).encode() + code)
            temporary.replace(self._path(key))
        finally:
            temporary.unlink(missing_ok=True)
        for path in self._folder.glob(f"{self._name}.*.nbc"):
            if _source() not in path.name:
                path.unlink(missing_ok=True)


class _Kept(FunctionCache):  # type: ignore[misc]
    """numba's cache on disk; where it cannot be read or written, code is compiled again."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base)

    def load_overload(self, *args: Any) -> Any:
        try:
            return super().load_overload(*args)
        except Exception:  # noqa: BLE001 - an unreadable folder, or code of another numba
            return None

    def save_overload(self, *args: Any) -> None:
        with contextlib.suppress(Exception):  # a full disk, say
            super().save_overload(*args)


def compiled(function: Function) -> Function:
    """Compile on the first call, free of the GIL and without threads.

    The machine code is kept in `__pycache__` beside the function's file, or in the user's cache.
    """
    dispatcher = numba.njit(nogil=True)(function)
    with contextlib.suppress(RuntimeError):  # there is no folder that can be written
        dispatcher._cache = _Kept(function)
    return cast(Function, dispatcher)
