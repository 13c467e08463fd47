"""Checksums of what is stored."""

import xxhash


def checksum(data: bytes) -> str:
    """The checksum of an object in a commit record: XXH3, 128 bits, hexadecimal."""
    return str(xxhash.xxh3_128_hexdigest(data))
