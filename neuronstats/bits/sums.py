"""Sums beside the bits, taken as a layer computes: see `quantities` for what they are.

On the CPU kernels_sums has the loops. Elsewhere values of up to ROWS rows are added in float64,
where whole numbers below 2**53 add up exactly, hence LIMIT; then they go on as int64.
"""

import numpy as np
import torch
from torch import Tensor

from neuronstats.bits import kernels_sums
from neuronstats.bits.quantities import FRACTION, HIGH, LOW, ROWS, names

LEFT_OUT = kernels_sums.LEFT_OUT  # of a row that does not count
NO_SLOT = -1  # of a row whose token has no sum of its own


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
        num_quantities = len(names(gated=gated))
        self._gated, self._threshold = gated, threshold
        self.values = torch.zeros((num_quantities, num_neurons), dtype=torch.int64, device=device)
        """int64 [quantity, neuron], in the order of `quantities.names`."""
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
