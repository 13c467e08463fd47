"""The sums of powers over the vocabulary: a loop that numba compiles for the CPU."""

from typing import Any

from neuronstats.bits.compiled import compiled


@compiled
def add_powers(values: Any, shift: Any, sums: Any) -> None:
    """Add the first four powers of values [token, neuron] - shift [neuron] to sums [4, neuron]."""
    for token in range(values.shape[0]):
        for neuron in range(values.shape[1]):
            value = values[token, neuron] - shift[neuron]
            power = value
            sums[0, neuron] += power
            power *= value
            sums[1, neuron] += power
            power *= value
            sums[2, neuron] += power
            power *= value
            sums[3, neuron] += power
