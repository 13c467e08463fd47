"""Figures of curves by position: the gallery of types (7), what waves indicate (9)."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuronstats.report.figures.frame import (
    Drawing,
    NamedRun,
    NoDataError,
    new_figure,
    panels,
    wrapped,
)
from neuronstats.report.figures.neurons import TYPE_COLOURS, TYPED_BY, kind_name, positional
from neuronstats.report.notebook import LoadedRun
from neuronstats.stats.curves import OSCILLATORY, TYPES, Bools, find_waves
from neuronstats.stats.positions import MI, STRONG, TYPE, indicated_ranges
from neuronstats.stats.settings import PositionSettings
from neuronstats.stats.view import LAYER, NEURON

PER_CELL = 2  # curves of each type and strength
NUMBERED = 20  # more neurons in a panel than this have no numbers beside them
LAYERS = 4  # of fig. 9: those with most neurons


def typical(found: pa.Table, kind: str, *, strong: bool) -> list[dict[str, int]]:
    """Return neurons of a type and strength: those in the middle of their order of information."""
    is_same = pc.and_(pc.equal(found[TYPE.name], kind), pc.equal(found[STRONG.name], strong))
    order = [(MI.name, "descending"), (LAYER.name, "ascending"), (NEURON.name, "ascending")]
    same = found.filter(is_same).sort_by(order)
    first = max(0, (len(same) - PER_CELL) // 2)
    return list(same.slice(first, PER_CELL).select([LAYER.name, NEURON.name]).to_pylist())


def gallery(runs: Sequence[NamedRun]) -> Drawing:
    """Draw fig. 7: typical curves, a row a type."""
    kinds = [(named, kind) for named in runs for kind in TYPES
             if pc.any(pc.equal(positional(named.run)[TYPE.name], kind)).as_py()]  # fmt: skip
    if not kinds:
        raise NoDataError("no run has a positional neuron with a type")
    cells = [
        [(strong, pick) for strong in (True, False) for pick in typical(found, kind, strong=strong)]
        for named, kind in kinds
        for found in [positional(named.run)]
    ]
    columns = max(2, *map(len, cells))
    figure = new_figure(2.5 * columns, 1.9 * len(kinds) + 0.4)
    grid = figure.subplots(len(kinds), columns, squeeze=False, sharey=True)
    for row, (named, kind), chosen in zip(grid, kinds, cells, strict=True):
        for panel in row[len(chosen) :]:
            panel.set_axis_off()
        for panel, (strong, pick) in zip(row, chosen, strict=False):
            layer, neuron = pick[LAYER.name], pick[NEURON.name]
            shape = named.run.curve(layer, neuron)
            panel.plot(shape, ".", color=TYPE_COLOURS[kind], markersize=1.6, rasterized=True)
            where = f"{named.label}, layer {layer}, neuron {neuron}"
            words = f"{kind_name(kind)}, {'strong' if strong else 'weak'}"
            wrapped(panel, f"{words}\n{where}", fontsize=7)
            panel.set_ylim(-0.04, 1.04)
        row[0].set_ylabel("frequency")
    for panel in grid[-1]:
        panel.set_xlabel("position")
    caption = (
        "Activation frequency by position of neurons typical for their type and strength: those in"
        " the middle of the type's order of mutual information with position."
    )
    notes = [
        "Two of each where there are two. Position 0 holds the begin-of-sequence token and has no"
        " part in the type."
    ]
    return Drawing(caption, notes, figure=figure, settings=TYPED_BY)


def ranges(runs: Sequence[NamedRun]) -> Drawing:
    """Draw fig. 9: where strong oscillatory neurons are activated, and which positions are left."""
    cells = [
        (named, layer, neurons) for named in runs for layer, neurons in _strong_waves(named.run)
    ]
    if not cells:
        raise NoDataError("no run has a strong oscillatory neuron")
    figure, axes = panels(len(cells))
    for panel, (named, layer, neurons) in zip(axes, cells, strict=True):
        on = indicated(named.run, layer, neurons)  # [neuron, position]
        for row, mask in enumerate(on):
            spans = indicated_ranges(mask)
            panel.broken_barh(_bars(spans), (row - 0.4, 0.8), color=TYPE_COLOURS["oscillatory"])
        together = np.logical_or.reduce(on)  # [position]
        panel.broken_barh(_bars(indicated_ranges(together)), (-1.7, 0.8), color="0.2")
        positions = on.shape[1] + 1
        words = f"{100 * together.mean():.0f} % of the positions"
        if together.any():
            words += f", by {on.sum(axis=0)[together].mean():.1f} neurons each"
        panel.set(xlabel="position", xlim=(0, positions), ylim=(-2.1, len(neurons)))
        wrapped(panel, f"{named.label}, layer {layer}: {words}")
        numbered = len(neurons) <= NUMBERED
        names = [str(neuron) if numbered else "" for neuron in neurons]
        panel.set_yticks([-1.3, *range(len(neurons))], ["any", *names])
        panel.set_ylabel("neuron" if numbered else f"{len(neurons)} neurons")
        panel.grid(visible=False, axis="y")
    caption = (
        "Positions at which a strong oscillatory neuron's smoothed curve of frequency is above its"
        " middle, a row a neuron; the dark row: any of them. Above the panel: their share of the"
        " positions from 1 on, and how many neurons indicate each of these in the mean."
    )
    notes = [f"Layers with most such neurons, at most {LAYERS} of a run."]
    return Drawing(caption, notes, figure=figure, settings=TYPED_BY)


def indicated(run: LoadedRun, layer: int, neurons: Sequence[int]) -> Bools:
    """Return where neurons' curves are above their middles, bool [neuron, position from 1 on]."""
    thresholds = PositionSettings(
        **{field.name: run.setting(field.name, field.default) for field in fields(PositionSettings)}
    )
    span = slice(min(neurons), max(neurons) + 1)
    counts = run.position_counts(layer, span)[:, np.array(neurons) - span.start]
    return find_waves(counts, run.num_sequences, thresholds).above


def _strong_waves(run: LoadedRun) -> list[tuple[int, list[int]]]:
    found = positional(run)
    wanted = pc.and_(pc.equal(found[TYPE.name], TYPES[OSCILLATORY]), found[STRONG.name])
    found = found.filter(wanted)
    layer, neuron = found[LAYER.name].to_numpy(), found[NEURON.name].to_numpy()
    by_layer = {int(k): [int(n) for n in neuron[layer == k]] for k in np.unique(layer)}
    most = sorted(by_layer, key=lambda k: (-len(by_layer[k]), k))[:LAYERS]
    return [(k, by_layer[k]) for k in sorted(most)]


def _bars(spans: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return ranges as (start, length)."""
    return [(first, last - first) for first, last in spans.tolist()]
