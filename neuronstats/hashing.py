"""Checksums of what is stored."""

from collections.abc import Iterable

import xxhash


def checksum(data: bytes) -> str:
    """Return the checksum of an object in a commit record: XXH3, 128 bits, hexadecimal."""
    return str(xxhash.xxh3_128_hexdigest(data))


def checksum_of(parts: Iterable[bytes]) -> tuple[int, str]:
    """Return the size in bytes and the checksum of an object that comes in parts."""
    size, digest = 0, xxhash.xxh3_128()
    for part in parts:
        size += len(part)
        digest.update(part)
    return size, str(digest.hexdigest())
