"""Curves over positions, [neuron, position]: smoothing, noise, sides and runs."""

import numpy as np
import numpy.typing as npt

from neuronstats.stats.positions import Floats

Bools = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]


def noise_of(curves: Floats, num_sequences: int) -> Floats:
    """Estimate the binomial variance of a curve's points, averaged over them; no bias for S > 1."""
    return (curves * (1 - curves)).mean(axis=1) / max(num_sequences - 1, 1)


def window_sums(curves: Floats, width: int) -> Floats:
    """Sum every `width` neighbouring points: [neuron, position - width + 1]."""
    sums = np.cumsum(curves, axis=1)
    sums[:, width:] -= sums[:, :-width].copy()
    return sums[:, width - 1 :]


def smooth(curves: Floats, width: int) -> tuple[Floats, Floats]:
    """Take moving means, of fewer points at the ends; also give the points of each mean."""
    half = width // 2
    padded = np.pad(curves, ((0, 0), (half, half)))
    inside = np.pad(np.ones((1, curves.shape[1])), ((0, 0), (half, half)))
    points = window_sums(inside, width)
    return window_sums(padded, width) / points, points[0]


def fill(sides: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Give each 0 the side that the curve was on last; 0 before the first."""
    places = np.where(sides != 0, np.arange(sides.shape[1]), 0)
    last = np.maximum.accumulate(places, axis=1)
    return np.take_along_axis(sides, last, axis=1)


def fill_back(sides: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Give each 0 the side that the curve is on next; 0 after the last."""
    return fill(sides[:, ::-1])[:, ::-1]


def run_ends(
    values: npt.NDArray[np.generic],
) -> tuple[Places, Places]:
    """Give the ends of the run of equal values that each position is in, [neuron, position]."""
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


def thin(curves: Floats, num_sequences: int, share: float) -> Bools:
    """Tell which curves' points are predicted by their neighbours, as far as noise allows.

    The mean square distance of a point to the mean of its neighbours is 1.5 times the variance of
    independent points (Gasser, Sroka and Jennen-Steinmetz 1986).
    """
    noise = noise_of(curves, num_sequences)
    signal = curves.var(axis=1) - noise
    apart = curves[:, 1:-1] - (curves[:, :-2] + curves[:, 2:]) / 2
    unpredicted = (apart**2).mean(axis=1) / 1.5 - noise
    predicted: Bools = (signal > 0) & (signal - unpredicted >= share * signal)
    return predicted
