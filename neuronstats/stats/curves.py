"""What kind of curve a positional neuron has: oscillatory, at both extremes, at one, or other.

The curve is f(p), the share of sequences in which the neuron was activated at position p, without
position 0. Its binomial noise is known, so every rule says how it allows for it.
docs/position_types.md shows how often the rules are right.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from neuronstats.errors import UserError
from neuronstats.stats.settings import PositionSettings

Counts = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]

TYPES = ("oscillatory", "both_extremes", "one_extreme", "other")
OSCILLATORY, BOTH_EXTREMES, ONE_EXTREME, OTHER = range(4)

# Fewest positions whose curve can have ranges, and neurons whose curves are held at once.
MIN_POSITIONS = 8
CURVE_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Waves:
    """How the curves go through their middle."""

    num_crossings: npt.NDArray[np.int64]
    """[neuron]: times that the smoothed curve went from clearly below its middle to clearly above,
    or back."""
    side: npt.NDArray[np.int8]
    """[neuron, position]: 1 where the curve is clearly above its middle, -1 clearly below, 0 on the
    way from one to the other."""
    above: Bools
    """[neuron, position]: above its middle, on the way as well."""
    oscillatory: Bools
    """[neuron]: enough crossings, by a curve that smoothing does not flatten."""


def classify(
    position_counts: Counts, num_sequences: int, settings: PositionSettings
) -> tuple[npt.NDArray[np.int8], Bools]:
    """Return the type of each neuron's curve, and whether it is a strong one.

    Each curve is judged by itself. Meant for positional neurons: a flat curve has a type too.

    Args:
        position_counts: sequences in which each neuron was activated at each position, integers
            [position, neuron], position 0 included (it is left out here).
        num_sequences: S, full-length sequences behind the counts.
        settings: the thresholds.

    Returns:
        int8 [neuron], an index into `TYPES`; and bool [neuron], strong: for the first three types,
        that the ranges are exactly at the extremes; for other, that the curve is thin.

    Raises:
        UserError: counts out of range, or fewer than 8 positions beside position 0.

    Source: Voita et al. 2023, sec. 5 and fig. 7; method.md, "Positional neurons".
    """
    check_counts(position_counts, num_sequences)
    num_positions, num_neurons = position_counts.shape
    if num_positions - 1 < MIN_POSITIONS:
        raise UserError(
            f"{num_positions} positions are too few to tell types of curves: "
            f"expected at least {MIN_POSITIONS + 1}"
        )
    types = np.empty(num_neurons, np.int8)
    strong = np.empty(num_neurons, np.bool_)
    for start in range(0, num_neurons, CURVE_BLOCK):
        block = slice(start, start + CURVE_BLOCK)
        curves = _curves(position_counts[:, block], num_sequences)
        types[block], strong[block] = _classify_block(curves, num_sequences, settings)
    return types, strong


def find_waves(position_counts: Counts, num_sequences: int, settings: PositionSettings) -> Waves:
    """Find where each neuron's curve is above and below its middle; arguments as in `classify`.

    Returns:
        The waves, from position 1 on.
    """
    return _find_waves(_curves(position_counts, num_sequences), num_sequences, settings)


def window_width(num_positions: int, num_sequences: int, settings: PositionSettings) -> int:
    """Return how many positions smoothing averages: more for few sequences; odd."""
    wanted = 1 / (4 * num_sequences * settings.smooth_error**2) if settings.smooth_error else np.inf
    least, most = settings.smooth_least * num_positions, settings.smooth_most * num_positions
    return 2 * (max(3, round(min(max(wanted, least), most))) // 2) + 1


def _curves(position_counts: Counts, num_sequences: int) -> Floats:
    """Return f(p) from position 1 on, [neuron, position]."""
    return np.ascontiguousarray(position_counts[1:].T) / num_sequences


def _classify_block(
    curves: Floats, num_sequences: int, settings: PositionSettings
) -> tuple[npt.NDArray[np.int8], Bools]:
    """Type curves [neuron, position]."""
    waves = _find_waves(curves, num_sequences, settings)
    at_zero, exactly_zero = _ranges(curves, num_sequences, settings)
    at_one, exactly_one = _ranges(1 - curves, num_sequences, settings)
    types = np.select(
        [waves.oscillatory, at_zero & at_one, at_zero | at_one],
        [OSCILLATORY, BOTH_EXTREMES, ONE_EXTREME],
        OTHER,
    )
    strong = np.select(
        [types == OSCILLATORY, types == BOTH_EXTREMES, types == ONE_EXTREME],
        [
            _exact_waves(curves, waves.side, settings.exact),
            exactly_zero & exactly_one,
            np.where(at_zero, exactly_zero, exactly_one),
        ],
        _thin(curves, num_sequences, settings.thin),
    )
    return types.astype(np.int8), strong.astype(np.bool_)


def _find_waves(curves: Floats, num_sequences: int, settings: PositionSettings) -> Waves:
    """Follow the smoothed curve through its middle, with hysteresis against noise."""
    width = window_width(curves.shape[1], num_sequences, settings)
    smoothed, points = _smooth(curves, width)
    low, high = np.quantile(smoothed, [0.05, 0.95], axis=1)
    middle = (low + high) / 2
    error = np.sqrt(middle * (1 - middle) / (num_sequences * width))
    swing = np.maximum(settings.swing_share * (high - low), settings.swing_errors * error)
    above = smoothed > (middle + swing)[:, None]
    below = smoothed < (middle - swing)[:, None]
    sides = above.astype(np.int8) - below
    first, last = _run_ends(np.where(_fill(sides) == _fill_back(sides), _fill(sides), 0))
    sides[last - first + 1 < settings.shortest_half * curves.shape[1]] = 0
    before, after = _fill(sides), _fill_back(sides)
    crossed = (before[:, 1:] != before[:, :-1]) & (before[:, :-1] != 0)
    num_crossings = crossed.sum(axis=1)

    noise = _noise_of(curves, num_sequences)
    signal = curves.var(axis=1) - noise
    lost = ((curves - smoothed) ** 2).mean(axis=1) - noise * (1 - (1 / points).mean())
    kept = signal - lost >= settings.wave_share * signal
    return Waves(
        num_crossings=num_crossings,
        side=np.where(before == after, before, 0).astype(np.int8),
        above=np.where(before == after, before > 0, smoothed > middle[:, None]),
        oscillatory=(num_crossings >= settings.min_crossings) & (signal > 0) & kept,
    )


def _exact_waves(curves: Floats, side: npt.NDArray[np.int8], exact: float) -> Bools:
    """Check whether the middle halves of all half-waves, taken together, lie exactly at 0 or 1."""
    first, last = _run_ends(side)
    places = np.arange(curves.shape[1])
    quarter = (last - first + 1) // 4
    core = np.minimum(places - first, last - places) >= quarter
    high, low = core & (side > 0), core & (side < 0)
    missed = np.where(high, 1 - curves, 0).sum(axis=1) <= exact * high.sum(axis=1)
    return missed & (np.where(low, curves, 0).sum(axis=1) <= exact * low.sum(axis=1))


def _ranges(curves: Floats, num_sequences: int, settings: PositionSettings) -> tuple[Bools, Bools]:
    """Find which curves have a range near 0, and which of them one exactly at 0.

    A range is a longest run of positions made of windows whose mean is near 0, that is level.
    """
    width = max(2, round(settings.range_share * curves.shape[1]))
    means = _window_sums(curves, width) / width
    near = means <= settings.near
    windows = np.zeros(curves.shape, np.int64)  # near windows that hold the position
    windows[:, : near.shape[1]] += near
    windows[:, width:] -= near[:, :-1]
    member = np.cumsum(windows, axis=1) > 0
    first, last = _run_ends(member)
    longest = np.where(member, last - first + 1, 0).argmax(axis=1)[:, None]
    start, end = np.take_along_axis(first, longest, 1), np.take_along_axis(last, longest, 1)
    found = near.any(axis=1) & _level(curves, start, end, num_sequences, settings)
    return found, found & (means.min(axis=1) <= settings.exact)


def _level(
    curves: Floats, start: Places, end: Places, num_sequences: int, settings: PositionSettings
) -> Bools:
    """Check whether a curve stays at its low positions start..end rather than pass them.

    Its slope there, from where it is within a quarter of its height, is compared with its slope on
    the way from there to its middle: equal on a straight line.
    """
    places = np.arange(curves.shape[1])
    smoothed, _ = _smooth(curves, window_width(curves.shape[1], num_sequences, settings))
    low, high = np.quantile(smoothed, [0.05, 0.95], axis=1, keepdims=True)
    middle = (low + high) / 2
    within = (places >= start) & (places <= end) & (smoothed <= low + (high - low) / 4)
    start = np.where(within, places, end).min(axis=1, keepdims=True)
    end = np.where(within, places, start).max(axis=1, keepdims=True)

    offsets = np.where((places >= start) & (places <= end), places - (start + end) / 2, 0)
    slope = (offsets * curves).sum(axis=1) / np.maximum((offsets**2).sum(axis=1), 1)
    beyond, far = smoothed >= middle, len(places) + 1
    after = np.where(beyond & (places > end), places - end, far).min(axis=1)
    before = np.where(beyond & (places < start), start - places, far).min(axis=1)
    edge = np.take_along_axis(
        smoothed, np.where(after <= before, end[:, 0], start[:, 0])[:, None], 1
    )
    approach = (middle - edge)[:, 0] / np.minimum(before, after)
    return within.any(axis=1) & (np.abs(slope) <= settings.level * approach)


def check_counts(position_counts: Counts, num_sequences: int) -> None:
    """Refuse counts that cannot be activations of `num_sequences` sequences by position.

    Raises:
        UserError: wrong dimensions or dtype, no sequences, no positions, or a count out of range.
    """
    if position_counts.ndim != 2 or not np.issubdtype(position_counts.dtype, np.integer):
        raise UserError(
            f"position counts are {position_counts.dtype} of shape {position_counts.shape}; "
            "expected integers [position, neuron]"
        )
    if num_sequences < 1 or position_counts.shape[0] < 1:
        raise UserError(
            f"{position_counts.shape[0]} positions of {num_sequences} sequences: "
            "at least one of each is needed; were no full-length sequences collected?"
        )
    if position_counts.size and (
        position_counts.min() < 0 or position_counts.max() > num_sequences
    ):
        raise UserError(
            f"position counts run from {position_counts.min()} to {position_counts.max()}, "
            f"but there are {num_sequences} sequences: do both come from the same run?"
        )


def _noise_of(curves: Floats, num_sequences: int) -> Floats:
    """Estimate the binomial variance of a curve's points, averaged over them; no bias for S > 1."""
    return (curves * (1 - curves)).mean(axis=1) / max(num_sequences - 1, 1)


def _window_sums(curves: Floats, width: int) -> Floats:
    """Sum every `width` neighbouring points: [neuron, position - width + 1]."""
    sums = np.cumsum(curves, axis=1)
    sums[:, width:] -= sums[:, :-width].copy()
    return sums[:, width - 1 :]


def _smooth(curves: Floats, width: int) -> tuple[Floats, Floats]:
    """Return moving means, of fewer points at the ends, and the number of points of each."""
    half = width // 2
    padded = np.pad(curves, ((0, 0), (half, half)))
    inside = np.pad(np.ones((1, curves.shape[1])), ((0, 0), (half, half)))
    points = _window_sums(inside, width)
    return _window_sums(padded, width) / points, points[0]


def _fill(sides: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Replace each 0 by the side that the curve was on last; 0 before the first."""
    places = np.where(sides != 0, np.arange(sides.shape[1]), 0)
    last = np.maximum.accumulate(places, axis=1)
    return np.take_along_axis(sides, last, axis=1)


def _fill_back(sides: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Replace each 0 by the side that the curve is on next; 0 after the last."""
    return _fill(sides[:, ::-1])[:, ::-1]


def _run_ends(
    values: npt.NDArray[np.generic],
) -> tuple[Places, Places]:
    """Return the ends of the run of equal values that each position is in, [neuron, position]."""
    num_positions = values.shape[1]
    places = np.broadcast_to(np.arange(num_positions), values.shape)
    change = values[:, 1:] != values[:, :-1]
    starts = np.zeros(values.shape, np.int64)
    starts[:, 1:] = np.where(change, places[:, 1:], 0)
    ends = np.full(values.shape, num_positions - 1)
    ends[:, :-1] = np.where(change, places[:, :-1], num_positions - 1)
    first = np.maximum.accumulate(starts, axis=1)
    last = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    return first, last


def _thin(curves: Floats, num_sequences: int, share: float) -> Bools:
    """Find which curves' points are predicted by their neighbours, as far as noise allows.

    The mean square distance of a point to the mean of its neighbours is 1.5 times the variance of
    independent points (Gasser, Sroka and Jennen-Steinmetz 1986).
    """
    noise = _noise_of(curves, num_sequences)
    signal = curves.var(axis=1) - noise
    apart = curves[:, 1:-1] - (curves[:, :-2] + curves[:, 2:]) / 2
    unpredicted = (apart**2).mean(axis=1) / 1.5 - noise
    predicted: Bools = (signal > 0) & (signal - unpredicted >= share * signal)
    return predicted
