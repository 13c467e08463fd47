"""What is summed beside the bits: how often which signs meet, and how much a neuron hands on.

Let g be the input of the activation function f, and a what the down projection reads of the neuron:
f(g), or f(g) u where the FFN is gated. All sums are whole numbers, so that neither the order nor
the cut of the work changes them: a and |a| are rounded to multiples of 2**-24; a**2 to multiples of
2**-40, summed in two parts, as its multiples of 2**-8 and what is left.

On the CPU kernels_sums has the loops. Elsewhere values of up to 2**11 rows are added in float64,
where whole numbers below 2**53 add up exactly, hence LIMIT; then they go on as int64.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuronstats.bits import kernels_sums

FRACTION, HIGH, LOW = 24, 8, 40  # bits behind the point: of a and |a|; of a**2, high part and all
ROWS = 1 << 11  # added in float64 at a time
LIMIT = 1 << 16  # of |a|: 2**(16 + 24) and 2**(2 * 16 + 8), times 2**11 rows, stay below 2**53
MAX_TOKENS = 1 << 22  # of a shard: 2**40 times as many stay below 2**63

CASES = {
    True: ("open_positive", "open_negative", "closed_positive", "closed_negative"),
    False: ("open", "closed"),
}
"""Counts of tokens, by whether the FFN is gated: g above the threshold or not; u > 0 or not."""
AMOUNTS = ("sum", "absolute", "absolute_open", "square_high", "square_low", "maximum")
"""Of a, |a|, |a| where the gate is open, a**2 in two parts; and the largest |a|, no sum."""
LEFT_OUT = kernels_sums.LEFT_OUT  # of a row that does not count
NO_SLOT = -1  # of a row whose token has no sum of its own

Integers = NDArray[np.int64]


def first_position(num_positions: int) -> int:
    """Return the first position that counts: 0 is an attention sink, and left out if others are."""
    return min(1, num_positions - 1)


def quantities(*, gated: bool) -> tuple[str, ...]:
    """Return the names of the rows of `Sums.values`."""
    return CASES[gated] + AMOUNTS


class Sums:
    """One layer's sums over a shard.

    Args:
        num_neurons: of the layer.
        num_slots: tokens whose values of a are summed one by one.
        gated: whether a is f(g) u.
        device: where they are kept.
        threshold: a gate is open where g is above it; a number of g's type.
    """

    def __init__(
        self,
        num_neurons: int,
        num_slots: int,
        *,
        gated: bool,
        device: torch.device,
        threshold: float = 0.0,
    ) -> None:
        names = quantities(gated=gated)
        self._gated, self._threshold = gated, threshold
        self.values = torch.zeros((len(names), num_neurons), dtype=torch.int64, device=device)
        """int64 [quantity, neuron], in the order of `quantities`."""
        self.by_token = torch.zeros((num_slots, num_neurons), dtype=torch.int64, device=device)
        """int64 [slot, neuron]: sum of a over a token's occurrences."""

    def add(self, gate: Tensor, activation: Tensor, value: Tensor, slots: Tensor) -> None:
        """Add some tokens.

        Args:
            gate: g, any float type, [token, neuron].
            activation: f(g), the same.
            value: a, the same.
            slots: int64 [token]: the slot that its values are summed in, NO_SLOT or LEFT_OUT.
        """
        parts = (part.float() for part in (gate, activation, value))
        if value.device.type == "cpu":
            g, f, a = (part.contiguous().numpy() for part in parts)
            width = a.shape[1]
            kernels_sums.add(
                g,
                f.view(np.int32),
                a,
                a.view(np.int32),
                slots.numpy(),
                np.float32(self._threshold),
                self._gated,
                self.values.numpy(),
                self.by_token.numpy(),
                np.empty((kernels_sums.NARROW, width), np.int32),
                np.empty((kernels_sums.WIDE, width), np.int64),
                np.empty((kernels_sums.SQUARES, width)),
                np.empty(width, np.int64),
            )
            return
        chunks = (torch.split(part, ROWS) for part in (*parts, slots))
        for chunk in zip(*chunks, strict=True):
            self._add_chunk(*chunk)

    def _add_chunk(self, gate: Tensor, activation: Tensor, value: Tensor, slots: Tensor) -> None:
        """Do `add` with torch's operations, on any device."""
        counts = (slots != LEFT_OUT)[:, None]
        is_open = gate > self._threshold
        a = value.double().masked_fill_(~counts, 0)
        if self._gated:
            negative = torch.signbit(value) ^ torch.signbit(activation) | (value == 0) & (
                activation != 0
            )
            cases = [is_open & ~negative, is_open & negative, ~is_open & ~negative]
            cases.append(~is_open & negative)
        else:
            cases = [is_open, ~is_open]
        fixed = (a * 2.0**FRACTION).round_()
        square = a * a * 2.0**HIGH
        high = square.floor()
        low = ((square - high) * 2.0 ** (LOW - HIGH)).round_()
        size = fixed.abs()
        sums = [(case & counts).sum(0) for case in cases]
        sums += [part.sum(0).long() for part in (fixed, size, size * is_open, high, low)]
        self.values[:-1] += torch.stack(sums)
        self.values[-1] = torch.maximum(self.values[-1], size.amax(0).long())
        kept = slots >= 0
        self.by_token.index_add_(0, slots[kept], fixed[kept].long())


def merge(total: Integers, part: Integers) -> None:
    """Add another shard's sums [quantity, neuron] to a total, whose last row is a maximum."""
    total[:-1] += part[:-1]
    np.maximum(total[-1], part[-1], out=total[-1])


def largest(values: Integers) -> float:
    """Return the largest |a| of any neuron."""
    return float(values[-1].max(initial=0)) / 2**FRACTION


def as_floats(values: Integers, *, gated: bool) -> dict[str, NDArray[np.float64]]:
    """Return amounts by name: sum, absolute, absolute_open, maximum, and square of both parts."""
    rows = dict(zip(quantities(gated=gated), values.astype(np.float64), strict=True))
    square = rows["square_high"] / 2**HIGH + rows["square_low"] / 2**LOW
    names = ("sum", "absolute", "absolute_open", "maximum")
    return {name: rows[name] / 2**FRACTION for name in names} | {"square": square}
