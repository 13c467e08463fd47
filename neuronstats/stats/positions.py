"""Positional neurons: how much a neuron tells of its position, and by what kind of curve.

Source: Voita et al. 2023, sec. 5, app. B, figs. 7-11 and 16; docs/method.md, "Positional neurons".
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neuronstats.stats.curves import (
    MIN_POSITIONS,
    OSCILLATORY,
    OTHER,
    TYPES,
    Bools,
    Counts,
    Floats,
    check_counts,
    classify,
    find_waves,
)
from neuronstats.stats.settings import PositionSettings
from neuronstats.stats.view import NEURON, BlockView, Column, LayerTotals, Section

# Neurons taken at once, so that the float64 temporaries of a 66b layer stay at tens of MB.
INFORMATION_BLOCK = 512

MI = Column("position_mi", "float64", "mutual information of position and activation, nats")
CORRECTED = Column(
    "position_mi_corrected", "float64", "the same less its bias from few sequences, nats"
)
TYPE = Column("position_type", "string", f"{', '.join(TYPES)}; null where not positional")
STRONG = Column("position_strong", "bool", "a strong one of its type; null where not positional")
CONSISTENCY = Column(
    "position_consistency",
    "float64",
    "share of the domains in which the type holds; null where not positional",
)
COLUMNS = (MI, CORRECTED, TYPE, STRONG, CONSISTENCY)

POSITIONAL = Column("positional", "int64", "neurons of position_mi > positional_mi")
OF_TYPE = tuple(Column(kind, "int64", f"those of type {kind} (fig. 8)") for kind in TYPES)
STRONG_OF_TYPE = tuple(
    Column(f"{kind}_strong", "int64", f"the strong ones of type {kind}") for kind in TYPES
)
MEAN_CONSISTENCY = Column("position_consistency", "float64", "mean over the positional neurons")
COVERED = Column(
    "oscillatory_coverage",
    "float64",
    "share of the positions that a strong oscillatory neuron indicates (fig. 9)",
)
REDUNDANCY = Column(
    "oscillatory_redundancy", "float64", "mean number of such neurons at these positions"
)
LAYER_COLUMNS = (POSITIONAL, *OF_TYPE, *STRONG_OF_TYPE, MEAN_CONSISTENCY, COVERED, REDUNDANCY)

DOMAIN_COLUMNS = (
    DOMAIN := Column("domain", "string", "the domain"),
    DOMAIN_TOKENS := Column("tokens", "int64", "tokens of the domain"),
    DOMAIN_ACTIVATIONS := Column("activations", "int64", "those on which it was activated"),
    DOMAIN_FREQUENCY := Column("frequency", "float64", "activations / tokens"),
    DOMAIN_MI := Column("position_mi", "float64", "mutual information in this domain, nats"),
)


def section(view: BlockView, settings: PositionSettings) -> Section:
    """Measure mutual information with position, and type the curves of positional neurons."""
    counts, sequences = view.position_counts, view.num_sequences
    num_positions, width = counts.shape
    first = _first_position(view)
    information = mutual_information(counts[first:], sequences)
    positional = information > settings.positional_mi
    types, strong = np.full(width, OTHER, np.int8), np.zeros(width, np.bool_)
    held, asked = np.zeros(width, np.int64), 0
    indicated = np.zeros(num_positions, np.int64)
    if num_positions > MIN_POSITIONS and positional.any():  # a shorter curve has no shape
        types[positional], strong[positional] = classify(counts[:, positional], sequences, settings)
        held[positional], asked = count_domains(
            view.counts[:, :, positional], view.sequences, types[positional], settings, first
        )
        waves = positional & strong & (types == OSCILLATORY)
        indicated = coverage(counts, sequences, waves, settings).by_position
    number = [int((positional & (types == kind)).sum()) for kind in range(len(TYPES))]
    number_strong = [int((positional & strong & (types == k)).sum()) for k in range(len(TYPES))]
    return Section(
        {
            MI: information,
            CORRECTED: corrected_information(information, num_positions - first, sequences),
            TYPE: np.ma.masked_array(np.array(TYPES, object)[types], ~positional),
            STRONG: np.ma.masked_array(strong, ~positional),
            CONSISTENCY: np.ma.masked_array(
                held / max(asked, 1), ~positional if asked else np.ones(width, np.bool_)
            ),
        },
        layer_sums={
            POSITIONAL: int(positional.sum()),
            **dict(zip(OF_TYPE, number, strict=True)),
            **dict(zip(STRONG_OF_TYPE, number_strong, strict=True)),
            "domains that hold": int(held.sum()),
            "domains asked": asked * int(positional.sum()),
            "indicated": indicated,
        },
        layer_columns=_layer_columns,
        tables={"domains": _domain_rows(view)},
    )


def _first_position(view: BlockView) -> int:
    """Return the first position that counts in mutual information; one is always left."""
    return min(view.first_position, view.num_positions - 1)


def _domain_rows(view: BlockView) -> dict[Column, Any]:
    """Return a row per neuron and domain, by neuron, then in the domains' order."""
    num_domains, width = len(view.domains), view.num_neurons
    first = _first_position(view)
    tokens = view.sequences * view.num_positions
    activations = view.counts.sum(axis=1)  # [domain, neuron]
    information = [
        mutual_information(counts[first:], max(1, sequences))
        for counts, sequences in zip(view.counts, view.sequences.tolist(), strict=True)
    ]
    return {
        NEURON: np.repeat(np.arange(width), num_domains),
        DOMAIN: np.tile(np.array(view.domains, object), width),
        DOMAIN_TOKENS: np.tile(tokens, width),
        DOMAIN_ACTIVATIONS: activations.T.ravel(),
        DOMAIN_FREQUENCY: (activations / np.maximum(tokens, 1)[:, None]).T.ravel(),
        DOMAIN_MI: np.stack(information).T.ravel(),
    }


def _layer_columns(totals: LayerTotals) -> dict[Column, Any]:
    """Add to the counts of a layer what follows from its sums."""
    sums = totals.sums
    columns = {key: value for key, value in sums.items() if isinstance(key, Column)}
    asked = sums["domains asked"]
    columns[MEAN_CONSISTENCY] = sums["domains that hold"] / asked if asked else None
    found = Coverage.of(sums["indicated"])
    strong = sums[STRONG_OF_TYPE[OSCILLATORY]]
    columns[COVERED] = found.share if strong else None
    columns[REDUNDANCY] = found.redundancy if strong and found.share else None
    return columns


def mutual_information(position_counts: Counts, num_sequences: int) -> Floats:
    """Measure mutual information between the position and the bit "activated" of each neuron.

    `I = 1/T * sum_p [ f(p) ln(f(p)/f) + (1-f(p)) ln((1-f(p))/(1-f)) ]` with `f(p)` the share of
    sequences in which the neuron was activated at position p, `f` its mean, and 0 ln 0 = 0. Exactly
    0 for a neuron whose counts are the same at every position (dead or always activated among
    them). Each neuron is summed by itself, in one fixed order, so the split of the neurons into
    blocks never changes a bit of the result.

    Args:
        position_counts: sequences in which each neuron was activated at each position, integers
            [position, neuron] from 0 to `num_sequences`.
        num_sequences: full-length sequences behind the counts, at least 1.

    Returns:
        Nats, float64 [neuron], from 0 to ln 2.

    Raises:
        UserError: no sequences, no positions, or counts outside 0..num_sequences.

    Source: Voita et al. 2023, sec. 5.
    """
    check_counts(position_counts, num_sequences)
    num_neurons = position_counts.shape[1]
    information = np.empty(num_neurons, np.float64)
    for start in range(0, num_neurons, INFORMATION_BLOCK):
        block = slice(start, start + INFORMATION_BLOCK)
        information[block] = _block_information(position_counts[:, block], num_sequences)
    return information


def corrected_information(information: Floats, num_positions: int, num_sequences: int) -> Floats:
    """Return mutual information, nats [neuron], less its bias from few sequences (Miller-Madow).

    The bias of T positions of S sequences is, to first order, `(T-1)/(2*S*T)`, about `1/(2S)`. It
    is taken off every neuron, dead ones too, and overstated for those that are activated less than
    a few times per position. Not clipped at 0: around 0 the correction is right on average only if
    values below it stay.

    Source: method.md, "Positional neurons".
    """
    return information - (num_positions - 1) / (2 * num_sequences * num_positions)


def _block_information(position_counts: Counts, num_sequences: int) -> Floats:
    """Measure few neurons; rows are neurons, so each is summed contiguously."""
    active = np.ascontiguousarray(position_counts.T, dtype=np.int64)  # [neuron, position]
    silent = num_sequences - active
    num_positions = active.shape[1]
    total = (_divergence(active) + _divergence(silent)) / (num_sequences * num_positions)
    return np.maximum(total, 0.0)


def _divergence(counts: npt.NDArray[np.int64]) -> Floats:
    """Sum over positions of `c ln(c * T / sum(c))` for each row; 0 ln 0 = 0.

    The quotient is formed from integers, so it is exactly 1 wherever the curve is flat.
    """
    totals = counts.sum(axis=1, keepdims=True)
    ratio = (counts * counts.shape[1]) / np.maximum(totals, 1)
    ratio[counts == 0] = 1.0
    terms: Floats = counts * np.log(ratio)
    return terms.sum(axis=1)


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


def count_domains(
    counts_by_domain: Counts,
    sequences_by_domain: npt.NDArray[np.integer],
    types: npt.NDArray[np.integer],
    settings: PositionSettings,
    first: int = 0,
) -> tuple[npt.NDArray[np.int64], int]:
    """Count the domains in which each neuron's type holds.

    It holds in a domain where the neuron's curve is of that type and its mutual information,
    corrected for the domain's number of sequences, is above `positional_mi`. Domains of fewer than
    `min_domain_sequences` sequences are not asked.

    Args:
        counts_by_domain: activations [domain, position, neuron], integers.
        sequences_by_domain: sequences behind them, [domain].
        types: each neuron's type over all domains, as `classify` returns it, [neuron].
        settings: the thresholds.
        first: the first position that counts in mutual information.

    Returns:
        The domains in which it holds, int64 [neuron], and how many were asked.
    """
    held, asked = np.zeros(len(types), np.int64), 0
    for counts, sequences in zip(counts_by_domain, sequences_by_domain.tolist(), strict=True):
        if sequences < settings.min_domain_sequences:
            continue
        information = mutual_information(counts[first:], sequences)
        corrected = corrected_information(information, len(counts) - first, sequences)
        own_types, _ = classify(counts, sequences, settings)
        held += (own_types == types) & (corrected > settings.positional_mi)
        asked += 1
    return held, asked


def coverage(
    position_counts: Counts, num_sequences: int, chosen: Bools, settings: PositionSettings
) -> Coverage:
    """Count which positions a layer's chosen neurons indicate, by being above their middle there.

    Of activations [position, neuron], position 0 included; for fig. 9 the strong oscillatory ones
    are chosen, bool [neuron].
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
