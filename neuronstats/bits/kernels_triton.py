"""The CUDA kernels that make and count packed bits; `tensors` is their only caller.

Importing this module needs triton. With TRITON_INTERPRET=1 the kernels run on CPU tensors, slowly:
the tests use that. Nothing is checked here: `bits` does that.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_PACK_NEURONS = 1024  # to a program: 128 threads, each loading 16 bytes of half-type values
_COUNT_NEURONS = 512
_TRANSPOSE_BYTES = 128  # a side of the square that a program turns: a cache line


def _pack_rows(
    values: "Any",
    rows: "Any",
    row_stride: "Any",
    num_positions: "Any",
    num_bytes: "Any",
    num_neurons: "Any",
    changed: tl.constexpr,
    limit: tl.constexpr,
    relu: tl.constexpr,
    minus_infinity: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Make one byte row, a block of neurons wide, from up to eight rows of values.

    Values are the bits of floats as integers; a bit is set where such a one, changed in some of its
    bits, is above the limit. The negative floats lie from the least integer (-0)
    up to minus infinity; between that and zero is NaN only, which the ReLU keeps.
    """
    num_blocks = tl.cdiv(num_neurons, block)
    row = tl.program_id(0) // num_blocks  # sequence * num_bytes + byte
    neuron = tl.program_id(0) % num_blocks * block + tl.arange(0, block)
    first = row % num_bytes * 8
    start = (row // num_bytes).to(tl.int64) * num_positions + first
    packed = tl.zeros([block], tl.uint8)
    for j in tl.static_range(8):
        inside = neuron < tl.where(first + j < num_positions, num_neurons, 0)
        at = values + (start + j) * row_stride + neuron
        value = tl.load(at, mask=inside, other=limit ^ changed)  # which is not above it
        packed |= ((value ^ changed) > limit).to(tl.uint8) << j
        if relu:
            tl.store(at, tl.where(value > minus_infinity, value, 0), mask=inside)
    tl.store(rows + row.to(tl.int64) * num_neurons + neuron, packed, mask=neuron < num_neurons)


def _transpose(
    rows: "Any", columns: "Any", num_rows: "Any", num_neurons: "Any", block: tl.constexpr
) -> None:
    """Transpose one square of bytes: [row, neuron] to [neuron, row]."""
    row = tl.program_id(0) * block + tl.arange(0, block)
    neuron = tl.program_id(1) * block + tl.arange(0, block)
    inside = (row < num_rows)[:, None] & (neuron < num_neurons)[None, :]
    at = rows + row.to(tl.int64)[:, None] * num_neurons + neuron[None, :]
    square = tl.trans(tl.load(at, mask=inside, other=0))
    at = columns + neuron.to(tl.int64)[:, None] * num_rows + row[None, :]
    tl.store(at, square, mask=tl.trans(inside))


def _position_counts(
    rows: "Any",
    counts: "Any",
    num_sequences: "Any",
    num_bytes: "Any",
    num_neurons: "Any",
    block: tl.constexpr,
) -> None:
    """Count one byte's eight positions for a block of neurons over all sequences."""
    neuron = tl.program_id(0) * block + tl.arange(0, block)
    inside = neuron < num_neurons
    byte = tl.program_id(1).to(tl.int64)
    c0 = tl.zeros([block], tl.int32)  # eight names, not one more axis: that would need exchanges
    c1, c2, c3, c4, c5, c6, c7 = c0, c0, c0, c0, c0, c0, c0  # between threads in every step
    for sequence in range(num_sequences):
        at = rows + (sequence * num_bytes + byte) * num_neurons + neuron
        bits = tl.load(at, mask=inside, other=0).to(tl.int32)
        c0 += bits & 1
        c1 += (bits >> 1) & 1
        c2 += (bits >> 2) & 1
        c3 += (bits >> 3) & 1
        c4 += (bits >> 4) & 1
        c5 += (bits >> 5) & 1
        c6 += (bits >> 6) & 1
        c7 += (bits >> 7) & 1
    at_count = counts + byte * 8 * num_neurons + neuron
    tl.store(at_count, c0, mask=inside)
    tl.store(at_count + num_neurons, c1, mask=inside)
    tl.store(at_count + num_neurons * 2, c2, mask=inside)
    tl.store(at_count + num_neurons * 3, c3, mask=inside)
    tl.store(at_count + num_neurons * 4, c4, mask=inside)
    tl.store(at_count + num_neurons * 5, c5, mask=inside)
    tl.store(at_count + num_neurons * 6, c6, mask=inside)
    tl.store(at_count + num_neurons * 7, c7, mask=inside)


# There is nothing to fuse in whole numbers; some versions warn of it if they are not told.
_OPTIONS = {"enable_fp_fusion": False}
pack_rows_kernel = triton.jit(_pack_rows)
transpose_kernel = triton.jit(_transpose)
position_counts_kernel = triton.jit(_position_counts)


def pack_rows(
    values: Tensor,
    num_positions: int,
    rows: Tensor,
    *,
    relu: bool,
    limit: tuple[int, int] = (0, 0),
) -> None:
    """Fill rows uint8 [sequence, byte, neuron]; `relu` applies it in place as well.

    The limit is that of kernels_numba's loop: what is changed, and what is compared with.
    """
    num_sequences, num_bytes, num_neurons = rows.shape
    num_blocks = triton.cdiv(num_neurons, _PACK_NEURONS)
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
        pack_rows_kernel[(num_sequences * num_bytes * num_blocks,)](
            values.view(torch.int32 if values.dtype.itemsize == 4 else torch.int16),
            rows,
            values.stride(0),
            num_positions,
            num_bytes,
            num_neurons,
            changed=limit[0],
            limit=limit[1],
            relu=relu,
            minus_infinity=-round(1 / torch.finfo(values.dtype).eps),  # the exponent's bits, all 1
            block=_PACK_NEURONS,
            **_OPTIONS,
        )


def transpose(rows: Tensor, columns: Tensor) -> None:
    """Transpose uint8 [sequence, byte, neuron] into [neuron, sequence, byte]."""
    num_rows, num_neurons = rows.shape[0] * rows.shape[1], rows.shape[2]
    side = _TRANSPOSE_BYTES
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
        transpose_kernel[(triton.cdiv(num_rows, side), triton.cdiv(num_neurons, side))](
            rows, columns, num_rows, num_neurons, block=side, **_OPTIONS
        )


def position_counts(rows: Tensor) -> Tensor:
    """Count uint8 [sequence, byte, neuron] into int32 [8 * byte, neuron]."""
    num_sequences, num_bytes, num_neurons = rows.shape
    counts = rows.new_empty((8 * num_bytes, num_neurons), dtype=torch.int32)
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
        position_counts_kernel[(triton.cdiv(num_neurons, _COUNT_NEURONS), num_bytes)](
            rows,
            counts,
            num_sequences,
            num_bytes,
            num_neurons,
            block=_COUNT_NEURONS,
            **_OPTIONS,
        )
    return counts
