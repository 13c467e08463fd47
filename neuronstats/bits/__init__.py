"""The packed bits: their order, made and counted here and in `tensors` only.

Bit j of byte b is position 8 b + j; each sequence starts at a byte of its own, and bits past its
last position are zero. Here is what NumPy alone does; `tensors` has what follows a forward pass.
"""

import numpy as np
from numpy.typing import NDArray

_COUNT_BLOCK = 1 << 22  # bytes of bits counted at a time; the words' counts take an eighth of it


def packed_bytes(num_positions: int) -> int:
    """Return the bytes that one sequence of one neuron takes: eight positions to a byte."""
    return -(-num_positions // 8)


def count(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count the tokens on which each neuron was activated.

    Integers only, so the counts of two shards may be added in any order.

    Args:
        bits: uint8 [..., sequence, byte]; bits past the last position are zero.

    Returns:
        int64 [...]: tokens per neuron, from 0 to sequences * positions.

    Raises:
        ValueError: the array is not uint8, or has fewer than two dimensions.

    Source: Voita et al. 2023, sec. 3 (numerator of the frequency).
    """
    if bits.dtype != np.uint8 or bits.ndim < 2:
        raise ValueError(f"bits are uint8 [..., sequence, byte], not {bits.dtype} {bits.shape}")
    counts = np.zeros(bits.shape[:-2], np.int64)
    num_bytes = bits.shape[-2] * bits.shape[-1]
    if counts.size == 0 or num_bytes == 0:
        return counts
    flat = np.ascontiguousarray(bits).reshape(counts.size, num_bytes)
    whole = num_bytes // 8 * 8
    step = -(-_COUNT_BLOCK // num_bytes)
    for first in range(0, counts.size, step):
        block = flat[first : first + step]
        total = np.bitwise_count(block[:, :whole].view(np.uint64)).sum(-1, dtype=np.int64)
        total += np.bitwise_count(block[:, whole:]).sum(-1, dtype=np.int64)
        counts.reshape(-1)[first : first + step] = total
    return counts


def unpack(bits: NDArray[np.uint8], num_positions: int) -> NDArray[np.bool_]:
    """Unpack activations: uint8 [..., byte] to bool [..., position].

    Raises:
        ValueError: the bytes are not as many as these positions take.
    """
    width = packed_bytes(num_positions)
    if bits.shape[-1] != width:
        raise ValueError(f"{num_positions} positions take {width} bytes, not {bits.shape[-1]}")
    return np.unpackbits(bits, axis=-1, count=num_positions, bitorder="little").view(np.bool_)


def pack(activated: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pack bool [..., position] into uint8 [..., byte]: the readable form of the bit order."""
    return np.packbits(activated, axis=-1, bitorder="little")
