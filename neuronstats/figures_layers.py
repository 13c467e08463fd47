"""Figures by layer: dead neurons and frequencies (1), detectors (3, 14), new n-grams (4, 15), ours."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neuronstats.figures import (
    Draw,
    Drawing,
    NamedRun,
    NoDataError,
    basis,
    line_style,
    new_figure,
    panels,
)
from neuronstats.layerstats import NEVER_SEEN_BOUND

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
DEPTH = "layer relative to depth (0: first, 1: last)"
NO_BITMAPS = "no run keeps bitmaps (collect.bitmaps), which n-grams are counted on"


def by_depth(named: NamedRun, column: str, factor: float = 1.0) -> Curve | None:
    """Return layers relative to depth and a column of layers.parquet, without its nulls."""
    values = named.run.column(column)
    if values is None:
        return None
    known = ~np.isnan(values)
    return named.run.depth[known], values[known] * factor


def _overlay(
    runs: Sequence[NamedRun], column: str, ylabel: str, *, factor: float = 1.0, missing: str
) -> tuple[object, object]:
    figure = new_figure()
    axes = figure.subplots()
    drawn = 0
    for index, named in enumerate(runs):
        curve = by_depth(named, column, factor)
        if curve is not None:
            axes.plot(*curve, label=named.label, **line_style(index))
            drawn += 1
    if not drawn:
        raise NoDataError(missing)
    axes.set(xlabel=DEPTH, ylabel=ylabel, xlim=(-0.03, 1.03))
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure, axes


def dead(runs: Sequence[NamedRun]) -> Drawing:
    """Fig. 1a."""
    figure, _ = _overlay(
        runs, "dead_share", "dead neurons, % of the layer", factor=100, missing="no layers"
    )
    bounds = ", ".join(f"{NEVER_SEEN_BOUND / named.run.tokens:.2g} ({named.label})" for named in runs)
    caption = (
        "Share of each layer's neurons that were not activated on a single token of the run, in per"
        " cent. Never seen is not never: with 95 % confidence such a neuron's frequency is below"
        f" 3/tokens = {bounds}. {basis(runs)}"
    )
    return Drawing("1a", "Dead neurons by layer", caption, figure=figure)


def frequency(runs: Sequence[NamedRun]) -> Drawing:
    """Fig. 1b."""
    figure, _ = _overlay(
        runs, "alive_frequency", "mean activation frequency", missing="no neuron is alive"
    )
    caption = (
        "Activation frequency (activations divided by tokens, the begin-of-sequence token included),"
        f" mean over each layer's neurons that are not dead. {basis(runs)}"
    )
    return Drawing("1b", "Mean frequency of the alive neurons by layer", caption, figure=figure)


CATALOGUE: list[tuple[Draw, str, str]] = [
    (dead, "1a", "Dead neurons by layer"),
    (frequency, "1b", "Mean frequency of the alive neurons by layer"),
]
