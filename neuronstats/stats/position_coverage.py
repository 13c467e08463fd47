"""Whether a type holds in every domain, and which positions a layer's waves cover."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from neuronstats.errors import UserError
from neuronstats.stats.curves import classify, find_waves
from neuronstats.stats.position_curves import Bools
from neuronstats.stats.positions import (
    Counts,
    Floats,
    corrected_information,
    mutual_information,
)
from neuronstats.stats.settings import PositionSettings


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which positions some neurons indicate; position 0 is left out.

    Source: Voita et al. 2023, fig. 9, as numbers.
    """

    by_position: npt.NDArray[np.int64]
    """[position]: neurons that indicate it; 0 at position 0."""
    share: float
    """Share of the positions from 1 on that at least one neuron indicates, 0 to 1."""
    redundancy: float
    """Mean number of neurons over the positions that any indicates; NaN where none does."""

    @classmethod
    def of(cls, by_position: npt.NDArray[np.int64]) -> "Coverage":
        """Sum up how many neurons indicate each position."""
        covered = by_position[1:] > 0
        redundancy = by_position[1:][covered].mean() if covered.any() else np.nan
        return cls(by_position, float(covered.mean()), float(redundancy))


def consistency(
    counts_by_domain: Counts,
    sequences_by_domain: npt.NDArray[np.integer],
    types: npt.NDArray[np.integer],
    settings: PositionSettings,
) -> Floats:
    """Tell in which share of the domains each neuron's type holds.

    It holds in a domain where the neuron's curve is of that type and its mutual information,
    corrected for the domain's number of sequences, is above `positional_mi`. Domains of fewer than
    `min_domain_sequences` sequences are left out.

    Args:
        counts_by_domain: activations [domain, position, neuron], integers.
        sequences_by_domain: sequences behind them, [domain].
        types: each neuron's type over all domains, as `classify` gives it, [neuron].
        settings: the thresholds.

    Returns:
        float64 [neuron], 0 to 1; NaN where no domain has enough sequences.

    Raises:
        UserError: arrays that do not fit together, or counts out of range.
    """
    if counts_by_domain.ndim != 3 or len(counts_by_domain) != len(sequences_by_domain):
        raise UserError(
            f"counts of shape {counts_by_domain.shape} and {len(sequences_by_domain)} domains: "
            "expected [domain, position, neuron]"
        )
    holds = np.zeros(len(types), np.int64)
    num_domains = 0
    for counts, sequences in zip(counts_by_domain, sequences_by_domain.tolist(), strict=True):
        if sequences < settings.min_domain_sequences:
            continue
        information = mutual_information(counts, sequences)
        corrected = corrected_information(information, len(counts), sequences)
        own_types, _ = classify(counts, sequences, settings)
        holds += (own_types == types) & (corrected > settings.positional_mi)
        num_domains += 1
    if num_domains == 0:
        return np.full(len(types), np.nan)
    return holds / num_domains


def coverage(
    position_counts: Counts, num_sequences: int, chosen: Bools, settings: PositionSettings
) -> Coverage:
    """Tell which positions a layer's chosen neurons indicate, by being above their middle there.

    Args:
        position_counts: activations [position, neuron], integers, position 0 included.
        num_sequences: sequences behind them.
        chosen: bool [neuron]: the strong oscillatory ones for fig. 9.
        settings: the thresholds.

    Returns:
        The coverage; of nothing where no neuron is chosen.
    """
    by_position = np.zeros(len(position_counts), np.int64)
    if chosen.any():
        waves = find_waves(position_counts[:, chosen], num_sequences, settings)
        by_position[1:] = waves.above.sum(axis=0)
    return Coverage.of(by_position)


def indicated_ranges(above: Bools) -> npt.NDArray[np.int64]:
    """List the ranges of positions in which one neuron's curve is above its middle.

    Args:
        above: bool [position], one row of `Waves.above`, so from position 1 on.

    Returns:
        [range, 2]: first position and one past the last, ascending, counted from position 0.
    """
    steps = np.diff(above.astype(np.int8), prepend=0, append=0)
    return np.column_stack([np.flatnonzero(steps > 0), np.flatnonzero(steps < 0)]) + 1
