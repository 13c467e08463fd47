"""What is summed beside the bits: how often which signs meet, and how much a neuron hands on.

Let g be the input of the activation function f, and a what the down projection reads of the neuron:
f(g), or f(g) u where the FFN is gated. All sums are whole numbers, so that neither the order nor
the cut of the work changes them: a and |a| are rounded to multiples of 2**-24; a**2 to multiples of
2**-40, summed in two parts, as its multiples of 2**-8 and what is left. `sums` takes them.
"""

import numpy as np
from numpy.typing import NDArray

FRACTION, HIGH, LOW = 24, 8, 40  # bits behind the point: of a and |a|; of a**2, high part and all
ROWS = 1 << 11  # added in float64 at a time, where the loops of kernels_sums do not serve
LIMIT = 1 << 16  # of |a|: 2**(16 + 24) and 2**(2 * 16 + 8), times 2**11 rows, stay below 2**53
MAX_TOKENS = 1 << 22  # of a shard: 2**40 times as many stay below 2**63

CASES = {
    True: ("open_positive", "open_negative", "closed_positive", "closed_negative"),
    False: ("open", "closed"),
}
"""Counts of tokens, by whether the FFN is gated: g above the threshold or not; u > 0 or not."""
AMOUNTS = ("sum", "absolute", "absolute_open", "square_high", "square_low", "maximum")
"""Of a, |a|, |a| where the gate is open, a**2 in two parts; and the largest |a|, no sum."""

Integers = NDArray[np.int64]


def first_position(num_positions: int) -> int:
    """Return the first position that counts: 0 is an attention sink, and left out if others are."""
    return min(1, num_positions - 1)


def names(*, gated: bool) -> tuple[str, ...]:
    """Return the names of the rows of `Sums.values`."""
    return CASES[gated] + AMOUNTS


def merge(total: Integers, part: Integers) -> None:
    """Add another shard's sums [quantity, neuron] to a total, whose last row is a maximum."""
    total[:-1] += part[:-1]
    np.maximum(total[-1], part[-1], out=total[-1])


def largest(values: Integers) -> float:
    """Return the largest |a| of any neuron."""
    return float(values[-1].max(initial=0)) / 2**FRACTION


def as_floats(values: Integers, *, gated: bool) -> dict[str, NDArray[np.float64]]:
    """Return amounts by name: sum, absolute, absolute_open, maximum, and square of both parts."""
    rows = dict(zip(names(gated=gated), values.astype(np.float64), strict=True))
    square = rows["square_high"] / 2**HIGH + rows["square_low"] / 2**LOW
    plain = ("sum", "absolute", "absolute_open", "maximum")
    return {name: rows[name] / 2**FRACTION for name in plain} | {"square": square}
