"""What kind of curve a positional neuron has: oscillatory, at both extremes, at one, or other.

The curve is f(p), the share of sequences in which the neuron was activated at position p, without
position 0. Its binomial noise is known, so every rule says how it allows for it. docs/typing.md
shows how often the rules are right.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from neuronstats.errors import SettingsError, UserError
from neuronstats.positions import Counts, check_counts

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

TYPES = ("oscillatory", "both_extremes", "one_extreme", "other")
OSCILLATORY, BOTH_EXTREMES, ONE_EXTREME, OTHER = range(4)

# Fewest positions whose curve can have ranges, and neurons whose curves are held at once.
MIN_POSITIONS = 8
NEURON_BLOCK = 256


@dataclass(kw_only=True, slots=True)
class PositionSettings:
    """Which neurons are positional, and every threshold of their types.

    Source: Voita et al. 2023, sec. 5 (0.05 nats); the paper shows the types by example (fig. 7),
    the thresholds are ours.
    """

    positional_mi: float = 0.05
    """Mutual information in nats above which a neuron is positional."""
    min_crossings: int = 4
    """Times an oscillatory curve goes through its middle: two rises and two falls. A plateau goes
    twice, three periods at least five times."""
    swing_share: float = 0.25
    """How far a curve must go past its middle on either side to have gone through it, as a share of
    its height (its 95th percentile less its 5th, after smoothing)."""
    swing_errors: float = 4.0
    """The same in standard errors of the smoothed curve; the larger distance counts."""
    wave_share: float = 0.6
    """Share of the curve's variance, binomial noise taken off, that must be left after smoothing
    for it to be oscillatory. Jagged curves lose more."""
    smooth_error: float = 0.025
    """Standard error that smoothing aims at where f is 0.5: the window is `1/(4*S*error^2)`
    positions, within the bounds below."""
    smooth_least: float = 0.0078125
    """Narrowest smoothing window as a share of the positions (1/128); never below 3 positions."""
    smooth_most: float = 0.03125
    """Widest smoothing window as a share of the positions (1/32); never below 3 positions."""
    near: float = 0.1
    """Highest mean of f in a range near 0; for a range near 1, of 1 - f."""
    exact: float = 0.01
    """The same for a range exactly at the extreme. A range of m positions shows rates down to
    about 3/(m*S)."""
    range_share: float = 0.1
    """Shortest range as a share of the positions."""
    level: float = 0.5
    """Most rise or fall within a range, as a share of what a straight line as high as the whole
    curve has in as many positions. A line from 1 to 0 passes both extremes and stays at neither."""
    thin: float = 0.9
    """Share of the curve's variance, binomial noise taken off, that the mean of a point's two
    neighbours must predict for a curve of no extreme to be strong."""

    def __post_init__(self) -> None:
        """Refuse thresholds that mean nothing.

        Raises:
            SettingsError: names the setting, its value and what was expected.
        """
        if self.min_crossings < 2:
            raise SettingsError(f"min_crossings={self.min_crossings}: expected at least 2")
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name not in ("min_crossings", "swing_errors") and not 0 <= value <= 1:
                raise SettingsError(f"{entry.name}={value}: expected a number from 0 to 1")
        if not self.swing_errors >= 0:
            raise SettingsError(f"swing_errors={self.swing_errors}: expected at least 0")
        if not self.exact <= self.near < 0.5:
            raise SettingsError(
                f"exact={self.exact}, near={self.near}: expected exact <= near < 0.5"
            )
        if not 0 < self.range_share <= 0.5 or self.smooth_least > self.smooth_most:
            raise SettingsError(
                f"range_share={self.range_share}, smooth_least={self.smooth_least}, "
                f"smooth_most={self.smooth_most}: expected a range_share above 0 and up to 0.5, "
                "and smooth_least <= smooth_most"
            )


@dataclass(frozen=True, slots=True)
class Waves:
    """How the curves go through their middle."""

    num_crossings: npt.NDArray[np.int64]
    """[neuron]: times that the smoothed curve went from clearly below its middle to clearly above,
    or back."""
    state: npt.NDArray[np.int8]
    """[neuron, position]: 1 where the curve is above its middle, -1 below, 0 between the two."""
    oscillatory: Bools
    """[neuron]: enough crossings, by a curve that smoothing does not flatten."""


def classify(
    position_counts: Counts, num_sequences: int, settings: PositionSettings
) -> tuple[npt.NDArray[np.int8], Bools]:
    """Give each neuron's curve its type, and whether it is a strong one.

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
    for start in range(0, num_neurons, NEURON_BLOCK):
        block = slice(start, start + NEURON_BLOCK)
        curves = _curves(position_counts[:, block], num_sequences)
        types[block], strong[block] = _classify_block(curves, num_sequences, settings)
    return types, strong


def find_waves(position_counts: Counts, num_sequences: int, settings: PositionSettings) -> Waves:
    """Tell where each neuron's curve is above and below its middle; arguments as in `classify`.

    Returns:
        The waves, from position 1 on.
    """
    return _find_waves(_curves(position_counts, num_sequences), num_sequences, settings)


def window_width(num_positions: int, num_sequences: int, settings: PositionSettings) -> int:
    """Choose how many positions smoothing takes the mean of: more for few sequences; odd."""
    wanted = 1 / (4 * num_sequences * settings.smooth_error**2) if settings.smooth_error else np.inf
    least, most = settings.smooth_least * num_positions, settings.smooth_most * num_positions
    return 2 * (max(3, round(min(max(wanted, least), most))) // 2) + 1


def _curves(position_counts: Counts, num_sequences: int) -> Floats:
    """f(p) from position 1 on, [neuron, position]."""
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
            _exact_waves(curves, waves.state, settings.exact),
            exactly_zero & exactly_one,
            np.where(at_zero, exactly_zero, exactly_one),
        ],
        _thin(curves, num_sequences, settings.thin),
    )
    return types.astype(np.int8), strong.astype(np.bool_)


def _noise(curves: Floats, num_sequences: int) -> Floats:
    """Estimate the binomial variance of a curve's points, averaged over them; no bias for S > 1."""
    return (curves * (1 - curves)).mean(axis=1) / max(num_sequences - 1, 1)


def _window_sums(curves: Floats, width: int) -> Floats:
    """Sum every `width` neighbouring points: [neuron, position - width + 1]."""
    sums = np.cumsum(curves, axis=1)
    sums[:, width:] -= sums[:, :-width].copy()
    return sums[:, width - 1 :]


def _smooth(curves: Floats, width: int) -> tuple[Floats, Floats]:
    """Take moving means, of fewer points at the ends; also give the points of each mean."""
    half = width // 2
    padded = np.pad(curves, ((0, 0), (half, half)))
    inside = np.pad(np.ones((1, curves.shape[1])), ((0, 0), (half, half)))
    points = _window_sums(inside, width)
    return _window_sums(padded, width) / points, points[0]


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
    before, after = _fill(sides), _fill(sides[:, ::-1])[:, ::-1]
    crossed = (before[:, 1:] != before[:, :-1]) & (before[:, :-1] != 0)
    num_crossings = crossed.sum(axis=1)

    noise = _noise(curves, num_sequences)
    signal = curves.var(axis=1) - noise
    lost = ((curves - smoothed) ** 2).mean(axis=1) - noise * (1 - (1 / points).mean())
    kept = signal - lost >= settings.wave_share * signal
    return Waves(
        num_crossings=num_crossings,
        state=np.where(before == after, before, 0).astype(np.int8),
        oscillatory=(num_crossings >= settings.min_crossings) & (signal > 0) & kept,
    )


def _fill(sides: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Give each 0 the side that the curve was on last; 0 before the first."""
    places = np.where(sides != 0, np.arange(sides.shape[1]), 0)
    last = np.maximum.accumulate(places, axis=1)
    return np.take_along_axis(sides, last, axis=1)


def _run_ends(
    values: npt.NDArray[np.generic],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Give the first and last position of each position's run of equal values, [neuron, position]."""
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


def _exact_waves(curves: Floats, state: npt.NDArray[np.int8], exact: float) -> Bools:
    """Tell whether the middle halves of all half-waves lie exactly at 0 and at 1, taken together."""
    first, last = _run_ends(state)
    places = np.arange(curves.shape[1])
    quarter = (last - first + 1) // 4
    core = np.minimum(places - first, last - places) >= quarter
    high, low = core & (state > 0), core & (state < 0)
    missed = np.where(high, 1 - curves, 0).sum(axis=1) <= exact * high.sum(axis=1)
    return missed & (np.where(low, curves, 0).sum(axis=1) <= exact * low.sum(axis=1))


def _ranges(curves: Floats, num_sequences: int, settings: PositionSettings) -> tuple[Bools, Bools]:
    """Tell which curves have a range near 0, and which of them one exactly at 0.

    A range is a longest run of positions made of windows whose mean is near 0, that is level.
    """
    num_positions = curves.shape[1]
    width = max(2, round(settings.range_share * num_positions))
    means = _window_sums(curves, width) / width
    near = means <= settings.near
    inside = np.zeros(curves.shape, np.int64)
    inside[:, : near.shape[1]] += near
    inside[:, width:] -= near[:, :-1]
    member = np.cumsum(inside, axis=1) > 0
    first, last = _run_ends(member)
    lengths = np.where(member, last - first + 1, 0)
    longest = lengths.argmax(axis=1)[:, None]
    start, stop = np.take_along_axis(first, longest, 1), np.take_along_axis(last, longest, 1) + 1

    within = (np.arange(num_positions) >= start) & (np.arange(num_positions) < stop)
    length = (stop - start)[:, 0]
    offsets = np.arange(num_positions) - (start + stop - 1) / 2
    slope = (within * offsets * curves).sum(axis=1) / ((length**3 - length) / 12)
    smoothed, _ = _smooth(curves, window_width(num_positions, num_sequences, settings))
    low, high = np.quantile(smoothed, [0.05, 0.95], axis=1)
    level = np.abs(slope) * num_positions <= settings.level * (high - low)
    found = near.any(axis=1) & level
    return found, found & (means.min(axis=1) <= settings.exact)


def _thin(curves: Floats, num_sequences: int, thin: float) -> Bools:
    """Tell which curves' points are predicted by their neighbours, as far as noise allows.

    The mean square distance of a point to the mean of its neighbours is 1.5 times the variance of
    independent points (Gasser, Sroka and Jennen-Steinmetz 1986).
    """
    noise = _noise(curves, num_sequences)
    signal = curves.var(axis=1) - noise
    apart = curves[:, 1:-1] - (curves[:, :-2] + curves[:, 2:]) / 2
    unpredicted = (apart**2).mean(axis=1) / 1.5 - noise
    predicted: Bools = (signal > 0) & (signal - unpredicted >= thin * signal)
    return predicted
