"""The definition of "activated", and the way from a forward pass to the stored bits.

Two layouts of the same bytes. *Rows* [sequence, byte, neuron] is what a layer's forward pass gives.
*Neuron-major* [neuron, sequence, byte] is what is stored. `bits` has the order within a byte.

The loops are in kernels_numba (CPU) and kernels_triton (CUDA); where neither serves, torch's own
operations give the same bytes in more passes. On the CPU each call runs in the calling thread alone
and without the GIL: to use more cores, call from several threads, each with sequences of its own.
"""

import functools
import importlib.util
import logging
import os
import shutil
import sysconfig
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuronstats.bits import kernels_numba, packed_bytes

_LOGGER = logging.getLogger(__name__)
# The positive values of a float type, infinity too, are the positive integers of its width.
_INTEGERS = {
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
_SUM_BLOCK = 64  # sequences summed at a time by torch's operations


def activated(fc1_output: Tensor, threshold: float = 0.0) -> Tensor:
    """Return which neurons are activated: the activation function's input is above a threshold.

    Args:
        fc1_output: that input, of a ReLU the output of the FFN's first layer; any shape and float
            type.
        threshold: is first rounded to that type; 0 for a ReLU.

    Returns:
        Booleans of the same shape.

    Source: Voita et al. 2023, sec. 2: activated where the ReLU's output is not zero.
    """
    return fc1_output > rounded(threshold, fc1_output.dtype)


def rounded(threshold: float, dtype: torch.dtype) -> float:
    """Return the type's number next to a threshold, which values of that type are compared with."""
    return torch.tensor(threshold, dtype=dtype).item() + 0.0


@functools.cache
def _limit(threshold: float, dtype: torch.dtype) -> tuple[int, int]:
    """Return integers that decide on the bits of a float, as an integer, of a type.

    Returns:
        What its bits are to be changed in, and what it is then compared with: above means that the
        float is above the threshold. Negative floats fall as their integers rise; to change all
        bits but the sign puts them, and all others, in the opposite order of the integers.
    """
    kind = _INTEGERS[dtype]
    integer = int(torch.tensor(rounded(threshold, dtype), dtype=dtype).view(kind))
    changed = torch.iinfo(kind).max if integer < 0 else 0
    return changed, integer ^ changed


def pack_rows(fc1_output: Tensor, num_positions: int, out: Tensor, threshold: float = 0.0) -> None:
    """Write which neurons are activated as bits, eight positions to a byte.

    The same bits as packing `activated(fc1_output)`, in one pass over the input. They are undefined
    where the input is NaN: that must be found elsewhere.

    Args:
        fc1_output: [sequence * position, neuron] float32, bfloat16 or float16; whole sequences.
            Rows may be strided, the values within one may not.
        num_positions: positions in each sequence.
        out: uint8 [sequence, byte, neuron], contiguous, on the same device; overwritten.
        threshold: as `activated` takes it.

    Raises:
        ValueError: a shape, type, stride or device is not as above.
    """
    _check_pack(fc1_output, num_positions, out)
    if out.numel() == 0:
        return
    values = fc1_output.detach()
    if out.device.type == "cpu":
        _pack_rows_numba(values, num_positions, out, threshold)
    elif kernels := _triton(out):
        limit = _limit(threshold, values.dtype)
        kernels.pack_rows(values, num_positions, out, relu=False, limit=limit)
    else:
        _pack_rows_torch(values, num_positions, out, threshold)


def relu_pack_rows_(fc1_output: Tensor, num_positions: int, out: Tensor) -> None:
    """Do `pack_rows`, and apply the ReLU in place (NaN stays NaN): on CUDA in the same pass."""
    kernels = _triton(out)
    if kernels is None or out.numel() == 0:
        pack_rows(fc1_output, num_positions, out)
        torch.relu_(fc1_output)
        return
    _check_pack(fc1_output, num_positions, out)
    kernels.pack_rows(fc1_output.detach(), num_positions, out, relu=True)


def _check_pack(fc1_output: Tensor, num_positions: int, out: Tensor) -> None:
    """Raise ValueError unless the three fit together: the kernels access memory unchecked."""
    typed = fc1_output.dtype in _INTEGERS and out.dtype == torch.uint8
    if not typed or fc1_output.ndim != 2 or out.ndim != 3 or num_positions < 1:
        raise ValueError(
            f"packing takes float32, bfloat16 or float16 [sequence * position, neuron] and gives "
            f"uint8 [sequence, byte, neuron], not {_describe(fc1_output)} and {_describe(out)} "
            f"at {num_positions} positions"
        )
    num_sequences, num_bytes, num_neurons = out.shape
    fits = fc1_output.shape == (num_sequences * num_positions, num_neurons)
    if num_bytes != packed_bytes(num_positions) or not fits:
        raise ValueError(
            f"an input of shape {tuple(fc1_output.shape)} at {num_positions} positions a sequence "
            f"does not fill an output of shape {tuple(out.shape)}"
        )
    if not out.is_contiguous() or (out.numel() and num_neurons > 1 and fc1_output.stride(1) != 1):
        raise ValueError(
            f"the output, and each row of the input, must be contiguous: "
            f"their strides are {out.stride()} and {fc1_output.stride()}"
        )
    if fc1_output.device != out.device:
        raise ValueError(f"the input is on {fc1_output.device}, the output on {out.device}")


def _triton(tensor: Tensor) -> ModuleType | None:
    """Return the Triton kernels, where they serve this tensor."""
    if tensor.device.type != "cuda" or not _find_triton():
        return None
    from neuronstats.bits import kernels_triton

    return kernels_triton


@functools.cache
def _find_triton() -> bool:
    """Return whether triton can run: it compiles its launcher, in C, against Python's headers."""
    if importlib.util.find_spec("triton") is None:
        missing = "the package triton"
    elif not any(map(shutil.which, (os.environ.get("CC", "gcc"), "gcc", "clang"))):
        missing = "a C compiler"
    elif not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing = "Python's C headers"
    else:
        return True
    _LOGGER.warning("on a GPU, packing bits is slower without %s, missing here", missing)
    return False


def _pack_rows_numba(
    values: Tensor, num_positions: int, out: Tensor, threshold: float = 0.0
) -> None:
    """Pack on the CPU, from a flat view of all that lies between the first and the last value."""
    num_rows, row_stride = values.shape[0], values.stride(0)
    flat = values.as_strided(((num_rows - 1) * row_stride + values.shape[1],), (1,))
    integers = flat.view(_INTEGERS[values.dtype]).numpy()
    limit = map(integers.dtype.type, _limit(threshold, values.dtype))
    kernels_numba.pack_rows(integers, row_stride, num_positions, out.numpy(), *limit)


def _pack_rows_torch(
    values: Tensor, num_positions: int, out: Tensor, threshold: float = 0.0
) -> None:
    """Pack with torch's operations, on any device."""
    num_sequences, _, num_neurons = out.shape
    by_sequence = values.view(num_sequences, num_positions, num_neurons)
    out.zero_()
    for j in range(min(8, num_positions)):
        bits = activated(by_sequence[:, j::8], threshold).to(
            torch.uint8
        )  # [sequence, byte, neuron]
        out[:, : bits.shape[1]].add_(bits, alpha=1 << j)


def neuron_major(
    rows: Tensor, num_sequences: int | None = None, out: Tensor | None = None
) -> Tensor:
    """Bring packed bits from the order they are made in to the order they are stored in.

    Args:
        rows: uint8 [sequence, byte, neuron].
        num_sequences: take only so many of the sequences, the first ones; all by default.
        out: uint8 [neuron, sequence, byte], contiguous; made where none is given.

    Returns:
        uint8 [neuron, sequence, byte], contiguous: `out` where it was given.

    Raises:
        ValueError: `rows` is not uint8 of three dimensions, or `out` is not as above.
    """
    if rows.dtype != torch.uint8 or rows.ndim != 3:
        raise ValueError(f"rows are uint8 [sequence, byte, neuron], not {_describe(rows)}")
    rows = rows[:num_sequences]
    permuted = rows.permute(2, 0, 1)
    if out is None:
        out = rows.new_empty(permuted.shape)
    elif out.shape != permuted.shape or out.dtype != torch.uint8 or not out.is_contiguous():
        raise ValueError(
            f"the output must be a contiguous uint8 array of shape {tuple(permuted.shape)}, "
            f"not {_describe(out)}"
        )
    if not rows.numel() or not rows.is_contiguous() or rows.device != out.device:
        return out.copy_(permuted)
    num_rows, num_neurons = rows.shape[0] * rows.shape[1], rows.shape[2]
    if rows.device.type == "cpu" and num_rows % 8 == 0 and num_neurons % 8 == 0:
        words = rows.detach().view(num_rows, num_neurons).numpy().view(np.uint64)
        columns = out.view(num_neurons, num_rows).numpy().view(np.uint64)
        kernels_numba.transpose(words, columns)
        return out
    kernels = _triton(rows)
    if kernels is None:
        return out.copy_(permuted)
    kernels.transpose(rows, out)
    return out


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} of strides {tensor.stride()}"


def position_counts(rows: Tensor, num_positions: int) -> NDArray[np.uint32]:
    """Count the sequences in which each neuron was activated at each position.

    Args:
        rows: uint8 [sequence, byte, neuron].
        num_positions: positions in each sequence.

    Returns:
        uint32 [position, neuron]: from 0 to the number of sequences.

    Raises:
        ValueError: the shape or the type is not as above.

    Source: Voita et al. 2023, sec. 5 (numerator of the frequency at a position).
    """
    return position_sums(rows, num_positions).cpu().numpy().view(np.uint32)


def position_sums(rows: Tensor, num_positions: int) -> Tensor:
    """Do `position_counts`, into int32 [position, neuron] on the device of the rows."""
    width = packed_bytes(num_positions)
    if rows.dtype != torch.uint8 or rows.ndim != 3 or rows.shape[1] != width:
        raise ValueError(
            f"rows of {num_positions} positions are uint8 [sequence, {width}, neuron], "
            f"not {_describe(rows)}"
        )
    rows = rows.contiguous()
    if rows.device.type == "cpu":
        counts = np.zeros((num_positions, rows.shape[2]), np.uint32)
        kernels_numba.position_counts(rows.numpy(), counts)
        return torch.from_numpy(counts.view(np.int32))
    kernels = _triton(rows) if rows.numel() else None
    sums = kernels.position_counts(rows) if kernels else _position_counts_torch(rows)
    return sums[:num_positions]


def narrow(counts: Tensor, most: int) -> Tensor:
    """Return int32 counts of at most so many as bytes or int16 that hold them, read unsigned."""
    if most < 1 << 8:
        return counts.to(torch.uint8)
    return counts.to(torch.int16) if most < 1 << 16 else counts


def _position_counts_torch(rows: Tensor) -> Tensor:
    """Count uint8 [sequence, byte, neuron] into int32 [8 * byte, neuron], on any device."""
    _, num_bytes, num_neurons = rows.shape
    counts = rows.new_zeros((num_bytes, 8, num_neurons), dtype=torch.int32)
    for first in range(0, rows.shape[0], _SUM_BLOCK):
        part = rows[first : first + _SUM_BLOCK]
        for j in range(8):
            counts[:, j] += ((part >> j) & 1).sum(0, dtype=torch.int32)
    return counts.flatten(0, 1)
