"""The figure of the same neuron in two runs, beyond the paper's."""

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes

from neuronstats.report.figures.frame import (
    COLOURS,
    Drawing,
    NamedRun,
    NoDataError,
    panels,
    wrapped,
)
from neuronstats.report.figures.layers import DEPTH
from neuronstats.stats.matches import CONTROL, CORRELATION, EXCESS, TOKENS
from neuronstats.stats.view import LAYER, Column
from neuronstats.store.reduced import matches_of

NOT_THERE = (
    "no two of the runs have their neurons matched (jobs/reduce.py runs=[DIR,DIR2] with"
    " match_tokens=1000000)"
)
SHARES = (0.1, 0.5, 0.9)
SHOWN = {CORRELATION: "same text", CONTROL: "sequences shuffled"}


def matches(runs: Sequence[NamedRun]) -> Drawing:
    """Draw how well neurons are found again in another run, after Gurnee et al. 2024."""
    pairs = [
        (runs[number], runs[other], table)
        for number, other in itertools.combinations(range(len(runs)), 2)
        for table in [matches_of([named.run for named in runs], number, other)]
        if table is not None
    ]
    if not pairs:
        raise NoDataError(NOT_THERE)
    figure, axes = panels(len(pairs))
    said = []
    for panel, (named, other, table) in zip(axes, pairs, strict=True):
        for index, column in enumerate(SHOWN):
            _draw_quantiles(panel, named, table, column, COLOURS[index])
        limits = (-0.03, 1.03)
        panel.set(xlabel=DEPTH, ylabel="highest correlation", xlim=limits, ylim=limits)
        wrapped(panel, f"{named.label} in {other.label}")
        panel.legend()
        known = table.filter(pc.is_valid(table[CORRELATION.name]))
        excess = pc.subtract(known[CORRELATION.name], pc.fill_null(known[CONTROL.name], 0.0))
        count = pc.sum(pc.greater(excess, EXCESS), min_count=0).as_py()
        said.append(f"{count:,} of {len(known):,} of {named.label} in {other.label}")
    caption = (
        "Each neuron's highest correlation with a neuron of the other run's same layer over the"
        " same tokens: median and middle 80 %, and the same with the other run's sequences"
        f" shuffled. Found again, more than {EXCESS} above their control: {'; '.join(said)}."
    )
    notes = [
        "Correlation of bits, activated or not, exact from the counts of bits that both, either or"
        " none have set. Shuffled: each sequence's bits are held against those of another sequence"
        " of its domain, so that position and domain are kept and the text is not.",
        f"Tokens compared: {pairs[0][2][TOKENS.name][0].as_py():,}. Neurons that are always or"
        " never activated have no correlation.",
        "After Gurnee et al. 2024, Universal neurons in GPT2 language models, sec. 3, who correlate"
        f" activations and call {EXCESS} above a baseline universal.",
    ]
    return Drawing(caption, notes, figure=figure)


def _draw_quantiles(
    panel: Axes, named: NamedRun, table: pa.Table, column: Column, colour: str
) -> None:
    """Draw the median of each layer's neurons, and the range that 80 % of them are in."""
    known = table.filter(pc.is_valid(table[column.name]))
    layer, values = known[LAYER.name].to_numpy(), known[column.name].to_numpy()
    layers = np.unique(layer)
    low, middle, high = np.array([np.quantile(values[layer == k], SHARES) for k in layers]).T
    depth = named.run.depth[layers]
    panel.plot(depth, middle, color=colour, marker="o", label=SHOWN[column])
    panel.fill_between(depth, low, high, color=colour, alpha=0.2, linewidth=0)
