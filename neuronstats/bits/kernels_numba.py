"""The loops over packed bits that numba compiles for the CPU; `tensors` is their only caller.

Plain functions, compiled on their first call (about half a second each). Nothing is checked here:
`tensors` does that.
"""

from typing import Any

import numpy as np

from neuronstats.bits.compiled import compiled

_TILE = 2048  # neurons at a time: eight bytes each stay in the first-level cache
_FULL = 255  # sequences that fit a counter of one byte


def _pack_rows(
    flat: Any, row_stride: int, num_positions: int, rows: Any, changed: Any = 0, limit: Any = 0
) -> None:
    """Fill uint8 [sequence, byte, neuron] from the input's bits as integers of its width.

    A bit is set where the integer, changed in those bits, is above the limit, all of one type.

    Eight rows are read at once, each from its own pointer into the one flat array: only so does
    LLVM make vector instructions of the loop over neurons, and memory is read at its full speed.
    """
    num_sequences, num_bytes, num_neurons = rows.shape
    for i in range(num_sequences * num_bytes):
        sequence, byte = i // num_bytes, i % num_bytes
        start = sequence * num_positions + 8 * byte
        end = min(7, num_positions - 1 - 8 * byte)  # this byte's last position, 0 to 7
        p0 = flat[start * row_stride :]
        p1 = p0[min(1, end) * row_stride :]  # a missing position reads the last one, and is masked
        p2 = p0[min(2, end) * row_stride :]
        p3 = p0[min(3, end) * row_stride :]
        p4 = p0[min(4, end) * row_stride :]
        p5 = p0[min(5, end) * row_stride :]
        p6 = p0[min(6, end) * row_stride :]
        p7 = p0[min(7, end) * row_stride :]
        mask = np.uint8(255 >> (7 - end))
        out = rows[sequence, byte]
        for n in range(num_neurons):
            out[n] = mask & (
                ((p0[n] ^ changed) > limit) * np.uint8(1)
                | ((p1[n] ^ changed) > limit) * np.uint8(2)
                | ((p2[n] ^ changed) > limit) * np.uint8(4)
                | ((p3[n] ^ changed) > limit) * np.uint8(8)
                | ((p4[n] ^ changed) > limit) * np.uint8(16)
                | ((p5[n] ^ changed) > limit) * np.uint8(32)
                | ((p6[n] ^ changed) > limit) * np.uint8(64)
                | ((p7[n] ^ changed) > limit) * np.uint8(128)
            )


def _swap(low: Any, high: Any, mask: Any, shift: Any) -> Any:
    """Swap the bytes of `high` under the mask with those of `low` that lie `shift` bits above."""
    moved = ((low >> shift) ^ high) & mask
    return low ^ (moved << shift), high ^ moved


swap = compiled(_swap)


def _transpose(rows: Any, columns: Any) -> None:
    """Transpose bytes held in words: uint64 [8 * i, w] of rows to uint64 [8 * w, i] of columns.

    Blocks of 8 x 8 bytes change places in registers (Warren, Hacker's Delight, 7-3, with bytes for
    bits); eight blocks, one below another, fill whole cache lines of the output.
    """
    near, m1 = np.uint64(8), np.uint64(0x00FF00FF00FF00FF)
    mid, m2 = np.uint64(16), np.uint64(0x0000FFFF0000FFFF)
    far, m4 = np.uint64(32), np.uint64(0x00000000FFFFFFFF)
    num_words = columns.shape[1]
    for start in range(0, num_words, 8):
        for w in range(rows.shape[1]):
            for i in range(start, min(start + 8, num_words)):
                r = 8 * i
                a, b = swap(rows[r, w], rows[r + 1, w], m1, near)
                c, d = swap(rows[r + 2, w], rows[r + 3, w], m1, near)
                e, f = swap(rows[r + 4, w], rows[r + 5, w], m1, near)
                g, h = swap(rows[r + 6, w], rows[r + 7, w], m1, near)
                a, c = swap(a, c, m2, mid)
                b, d = swap(b, d, m2, mid)
                e, g = swap(e, g, m2, mid)
                f, h = swap(f, h, m2, mid)
                n = 8 * w
                columns[n, i], columns[n + 4, i] = swap(a, e, m4, far)
                columns[n + 1, i], columns[n + 5, i] = swap(b, f, m4, far)
                columns[n + 2, i], columns[n + 6, i] = swap(c, g, m4, far)
                columns[n + 3, i], columns[n + 7, i] = swap(d, h, m4, far)


def _add_position_counts(rows: Any, counts: Any, tile: Any) -> None:
    """Add the bits of uint8 [sequence, byte, neuron] to uint32 [position, neuron].

    Each byte of bits has eight one-byte counters, emptied into wide ones before they overflow: the
    tile, uint8 [8, _TILE], is that space (allocating it in here would take longer to compile).
    """
    num_sequences, num_bytes, num_neurons = rows.shape
    for byte in range(num_bytes):
        for n0 in range(0, num_neurons, _TILE):
            width = min(_TILE, num_neurons - n0)
            for s0 in range(0, num_sequences, _FULL):
                tile[:] = 0
                for s in range(s0, min(s0 + _FULL, num_sequences)):
                    row = rows[s, byte, n0 : n0 + width]
                    for j in range(8):
                        narrow = tile[j]
                        bit = np.uint8(1 << j)
                        for n in range(width):
                            narrow[n] += (row[n] & bit) != 0
                for j in range(min(8, counts.shape[0] - 8 * byte)):
                    narrow = tile[j]
                    wide = counts[8 * byte + j, n0 : n0 + width]
                    for n in range(width):
                        wide[n] += narrow[n]


pack_rows = compiled(_pack_rows)
transpose = compiled(_transpose)
add_position_counts = compiled(_add_position_counts)


def position_counts(rows: Any, counts: Any) -> None:
    """Add the bits of uint8 [sequence, byte, neuron] to uint32 [position, neuron]."""
    add_position_counts(rows, counts, np.empty((8, _TILE), np.uint8))
