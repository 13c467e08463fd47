"""The loops that add up what neurons hand on, compiled by numba; `sums` is their only caller.

One pass over each row: as long as |a| is small, its multiples of 2**-24 are 32-bit integers, twice
as many to an instruction as float64, and GROUP rows of them add up in 32 bits. The rare rows with a
larger value go on as int64. Only a**2 takes float64, whose sums are whole numbers below 2**53.
"""

from typing import Any

import numpy as np

from neuronstats.bits.compiled import compiled

LEFT_OUT = -2  # a row that does not count
NARROW, WIDE, SQUARES = 5, 3, 2  # rows of the spaces that `add` works in
_CHUNK = 512  # rows between the sums, whose counts of three kinds share 32 bits
_GROUP = 8  # rows whose sums of a are kept in 32 bits
_SMALL = np.int32(0x41800000)  # the bits of 16.0: 16 * 2**24 * _GROUP is 2**31
_SIGN = np.int32(0x7FFFFFFF)  # all bits but the sign
_CASE = 10  # bits of a count
_ONE = np.float32(1 << 24)


def _case(g: Any, f: Any, a: Any, threshold: Any) -> Any:
    """Return 1 for an open gate, 1 << 10 for u not above 0, 1 << 20 for both; f, a are bits.

    u's sign is that of a and f(g); where they say +-0, it is not above 0 unless f(g) is 0 as well.
    """
    is_open = np.int32(g > threshold)
    lost = np.int32((a & _SIGN) == 0) & np.int32((f & _SIGN) != 0)
    negative = np.int32((a ^ f) < 0) | lost
    both = is_open & negative
    return is_open + (negative << np.int32(_CASE)) + (both << np.int32(2 * _CASE))


def _add_row(
    gate: Any, act: Any, value: Any, bits: Any, threshold: Any, narrow: Any, fixed: Any
) -> None:
    """Add one row of small values; leave its multiples of 2**-24 in `fixed`."""
    total, size, size_open, most, cases = narrow[0], narrow[1], narrow[2], narrow[3], narrow[4]
    for n in range(len(value)):
        a = np.int32(np.rint(value[n] * _ONE))
        fixed[n] = a
        absolute = abs(a)
        total[n] += a
        size[n] += absolute
        size_open[n] += absolute if gate[n] > threshold else np.int32(0)
        magnitude = bits[n] & _SIGN
        most[n] = magnitude if magnitude > most[n] else most[n]
        cases[n] += case(gate[n], act[n], bits[n], threshold)


def _add_large_row(
    gate: Any, act: Any, value: Any, bits: Any, threshold: Any, narrow: Any, wide: Any, fixed: Any
) -> None:
    """Add one row of any values; those of a go on as int64."""
    for n in range(len(value)):
        a = np.int64(np.rint(np.float64(value[n]) * _ONE))
        fixed[n] = a
        wide[0, n] += a
        wide[1, n] += abs(a)
        wide[2, n] += abs(a) if gate[n] > threshold else 0
        narrow[3, n] = max(narrow[3, n], bits[n] & _SIGN)
        narrow[4, n] += case(gate[n], act[n], bits[n], threshold)


def _add_squares(value: Any, high: Any, low: Any) -> None:
    """Add one row's a**2: its multiples of 2**-8, and what is left in multiples of 2**-40."""
    for n in range(len(value)):
        a = np.float64(value[n]) * 16.0
        square = a * a
        whole = np.floor(square)
        high[n] += whole
        low[n] += np.rint((square - whole) * 4294967296.0)


def _largest(bits: Any) -> Any:
    """Return the largest magnitude's bits: magnitudes are in the order of their integers."""
    most = np.int32(0)
    for n in range(len(bits)):
        most = max(most, bits[n] & _SIGN)
    return most


def _flush(sums: Any, narrow: Any, wide: Any, squares: Any, counted: Any, gated: Any) -> None:
    """Add what some rows came to, `counted` of them, to the sums; the spaces are 0 after that."""
    first = 4 if gated else 2
    bits = np.int32((1 << _CASE) - 1)
    for n in range(sums.shape[1]):
        cases = narrow[4, n]
        is_open = cases & bits
        negative = (cases >> np.int32(_CASE)) & bits
        both = cases >> np.int32(2 * _CASE)
        if gated:
            sums[0, n] += is_open - both
            sums[1, n] += both
            sums[2, n] += counted - is_open - negative + both
            sums[3, n] += negative - both
        else:
            sums[0, n] += is_open
            sums[1, n] += counted - is_open
        for q in range(3):
            sums[first + q, n] += wide[q, n]
        for q in range(2):
            sums[first + 3 + q, n] += np.int64(squares[q, n])
    narrow[4] = 0
    wide[:] = 0
    squares[:] = 0


def _add(
    gate: Any,
    act: Any,
    value: Any,
    bits: Any,
    slots: Any,
    threshold: Any,
    gated: Any,
    sums: Any,
    by_token: Any,
    narrow: Any,
    wide: Any,
    squares: Any,
    fixed: Any,
) -> None:
    """Add float32 [token, neuron] arrays to int64 sums.

    Args:
        gate: g.
        act: f(g), its bits as int32.
        value: a.
        bits: the same, its bits as int32.
        slots: int64 [token]: the row of `by_token`, another negative number, or LEFT_OUT.
        threshold: of g.
        gated: whether there are four cases.
        sums: int64 [quantity, neuron]; the last row is the largest |a| instead.
        by_token: int64 [slot, neuron].
        narrow: space, int32 [NARROW, neuron].
        wide: space, int64 [WIDE, neuron].
        squares: space, float64 [SQUARES, neuron].
        fixed: space, int64 [neuron].
    """
    narrow[:] = 0
    wide[:] = 0
    squares[:] = 0
    for first in range(0, len(slots), _CHUNK):
        last = min(len(slots), first + _CHUNK)
        counted = 0
        for start in range(first, last, _GROUP):
            for r in range(start, min(last, start + _GROUP)):
                slot = slots[r]
                if slot == LEFT_OUT:
                    continue
                counted += 1
                row, a = bits[r], value[r]
                if largest(row) < _SMALL:
                    add_row(gate[r], act[r], a, row, threshold, narrow, fixed)
                else:
                    add_large_row(gate[r], act[r], a, row, threshold, narrow, wide, fixed)
                add_squares(a, squares[0], squares[1])
                if slot >= 0:
                    own = by_token[slot]
                    for n in range(len(own)):
                        own[n] += fixed[n]
            for q in range(WIDE):
                short, long = narrow[q], wide[q]
                for n in range(len(short)):
                    long[n] += short[n]
                    short[n] = 0
        flush(sums, narrow, wide, squares, counted, gated)
    most = narrow[3].view(np.float32)
    for n in range(len(most)):
        sums[-1, n] = max(sums[-1, n], np.int64(np.rint(np.float64(most[n]) * _ONE)))


case = compiled(_case)
add_row = compiled(_add_row)
add_large_row = compiled(_add_large_row)
add_squares = compiled(_add_squares)
largest = compiled(_largest)
flush = compiled(_flush)
add = compiled(_add)
