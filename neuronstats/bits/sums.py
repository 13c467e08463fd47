"""What is summed beside the bits: how often which signs meet, and how much a neuron hands on.

Let g be the input of the activation function f, and a what the down projection reads of the neuron:
f(g), or f(g) u where the FFN is gated. All sums are whole numbers, so that neither the order nor
the cut of the work changes them: a and |a| are rounded to multiples of 2**-24; a**2 to multiples of
2**-40, summed in two parts, as its multiples of 2**-8 and what is left.

Values of up to 2**11 rows are added in float64, where whole numbers below 2**53 add up exactly;
hence LIMIT. Then they go on as int64.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuronstats.bits.compiled import compiled

FRACTION, HIGH, LOW = 24, 8, 40  # bits behind the point: of a and |a|; of a**2, high part and all
ROWS = 1 << 11  # added in float64 at a time
LIMIT = 1 << 16  # of |a|: 2**(16 + 24) and 2**(2 * 16 + 8), times 2**11 rows, stay below 2**53
MAX_TOKENS = 1 << 22  # of a shard: 2**40 times as many stay below 2**63

CASES = {
    True: ("open_positive", "open_negative", "closed_positive", "closed_negative"),
    False: ("open", "closed"),
}
"""Counts of tokens, by whether the FFN is gated: g > 0 or not; u > 0 or not."""
AMOUNTS = ("sum", "absolute", "absolute_open", "square_high", "square_low", "maximum")
"""Of a, |a|, |a| where g > 0, a**2 in two parts; and the largest |a|, which is no sum."""
LEFT_OUT, NO_SLOT = -2, -1  # rows that do not count; rows whose token has no sum of its own
_TILE = 1024  # neurons at a time: their sums stay in the second-level cache

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
    """

    def __init__(
        self, num_neurons: int, num_slots: int, *, gated: bool, device: torch.device
    ) -> None:
        names = quantities(gated=gated)
        self._gated, self._first = gated, len(CASES[gated])
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
            arrays = [part.contiguous().numpy() for part in parts]
            work = np.empty((self.values.shape[0], _TILE))
            _add(
                arrays[0],
                arrays[1].view(np.int32),
                arrays[2],
                arrays[2].view(np.int32),
                slots.numpy(),
                self.values.numpy(),
                self.by_token.numpy(),
                work,
                self._gated,
            )
            return
        chunks = (torch.split(part, ROWS) for part in (*parts, slots))
        for chunk in zip(*chunks, strict=True):
            self._add_chunk(*chunk)

    def _add_chunk(self, gate: Tensor, activation: Tensor, value: Tensor, slots: Tensor) -> None:
        """Do `add` with torch's operations, on any device."""
        counts = (slots != LEFT_OUT)[:, None]
        is_open = gate > 0
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


def _add_rows(
    gate: Any,
    activation: Any,
    value: Any,
    value_bits: Any,
    slots: Any,
    sums: Any,
    by_token: Any,
    work: Any,
    gated: Any,
) -> None:
    """Add float32 [token, neuron] arrays to int64 sums; signs are looked at as int32.

    The last row of the sums is a maximum. `work` is float64 [quantity, _TILE].
    """
    num_rows, num_neurons = value.shape
    cases = 4 if gated else 2
    for first in range(0, num_rows, ROWS):
        last = min(num_rows, first + ROWS)
        for start in range(0, num_neurons, _TILE):
            width = min(_TILE, num_neurons - start)
            work[:] = 0
            total, size, size_open = work[cases], work[cases + 1], work[cases + 2]
            squares, rest, most = work[cases + 3], work[cases + 4], work[cases + 5]
            for r in range(first, last):
                slot = slots[r]
                if slot == LEFT_OUT:
                    continue
                g, v = gate[r, start : start + width], value[r, start : start + width]
                f = activation[r, start : start + width]
                b = value_bits[r, start : start + width]
                for n in range(width):
                    a = np.float64(v[n])
                    fixed = np.rint(a * 16777216.0)
                    absolute = abs(fixed)
                    is_open = 1.0 if g[n] > 0 else 0.0
                    square = a * a * 256.0
                    high = np.floor(square)
                    total[n] += fixed
                    size[n] += absolute
                    size_open[n] += absolute * is_open
                    squares[n] += high
                    rest[n] += np.rint((square - high) * 4294967296.0)
                    most[n] = max(most[n], absolute)
                if gated:
                    for n in range(width):
                        negative = (b[n] ^ f[n]) < 0 or (v[n] == 0 and (f[n] & 0x7FFFFFFF) != 0)
                        is_open = 1.0 if g[n] > 0 else 0.0
                        minus = 1.0 if negative else 0.0
                        work[0, n] += is_open * (1.0 - minus)
                        work[1, n] += is_open * minus
                        work[2, n] += (1.0 - is_open) * (1.0 - minus)
                        work[3, n] += (1.0 - is_open) * minus
                else:
                    for n in range(width):
                        is_open = 1.0 if g[n] > 0 else 0.0
                        work[0, n] += is_open
                        work[1, n] += 1.0 - is_open
                if slot >= 0:
                    own = by_token[slot, start : start + width]
                    for n in range(width):
                        own[n] += np.int64(np.rint(np.float64(v[n]) * 16777216.0))
            for q in range(cases + 5):
                for n in range(width):
                    sums[q, start + n] += np.int64(work[q, n])
            for n in range(width):
                sums[cases + 5, start + n] = max(sums[cases + 5, start + n], np.int64(most[n]))


_add = compiled(_add_rows)


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
