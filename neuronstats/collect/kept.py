"""Tokens of the domains that are done, kept in the run folder until the run is laid down."""

import contextlib
from pathlib import Path

from neuronstats.hashing import checksum
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import TOKENS


class KeptTokens:
    """Keeps a domain's tokens as an object: their checksum, then their bytes.

    Args:
        folder: the run's.
        key: all that decides the tokens; what was kept under another is not found.
    """

    def __init__(self, folder: RunFolder, key: str) -> None:
        self._folder, self._key = folder, key

    def _name(self, domain: str) -> str:
        return f"{TOKENS}/{checksum(repr((self._key, domain)).encode())}"

    def load(self, domain: str) -> bytes | None:
        """Return what was kept of a domain; None where nothing was, or it was damaged."""
        data = self._folder.read(self._name(domain)) or b""
        digest, _, tokens = data.partition(b"\n")
        return tokens if digest == checksum(tokens).encode() else None

    def keep(self, domain: str, tokens: bytes) -> None:
        """Write all of a domain's tokens that are wanted."""
        self._folder.write(self._name(domain), checksum(tokens).encode() + b"\n" + tokens)

    @staticmethod
    def clear(folder: RunFolder) -> None:
        """Delete all that was kept."""
        folder.clear(f"{TOKENS}/")
        if folder.is_local:
            with contextlib.suppress(OSError):
                (Path(folder.location) / TOKENS).rmdir()
