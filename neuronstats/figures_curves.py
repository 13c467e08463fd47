"""Figures of curves by position: the gallery of types (7), what waves indicate (9)."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuronstats.drawing import Draw, Drawing, NamedRun, NoDataError, basis, new_figure, panels
from neuronstats.figures_neurons import TYPE_COLOURS, positional
from neuronstats.loaded import LoadedRun
from neuronstats.position_types import TYPES

PER_CELL = 2  # curves of each type and strength
LAYERS = 4  # of fig. 9: those with most neurons


def typical(found: pa.Table, kind: str, *, strong: bool) -> list[dict[str, int]]:
    """Choose neurons of a type and strength: those in the middle of their order of information."""
    same = found.filter(
        pc.and_(pc.equal(found["position_type"], kind), pc.equal(found["position_strong"], strong))
    )
    same = same.sort_by(
        [("position_mi", "descending"), ("layer", "ascending"), ("neuron", "ascending")]
    )
    first = max(0, (len(same) - PER_CELL) // 2)
    return list(same.slice(first, PER_CELL).select(["layer", "neuron", "position_mi"]).to_pylist())


def gallery(runs: Sequence[NamedRun]) -> Drawing:
    """Fig. 7: typical curves, a row a type."""
    kinds = [(named, kind) for named in runs for kind in TYPES
             if pc.any(pc.equal(positional(named.run)["position_type"], kind)).as_py()]  # fmt: skip
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
            shape = named.run.curve(pick["layer"], pick["neuron"])
            panel.plot(shape, ".", color=TYPE_COLOURS[kind], markersize=1.6, rasterized=True)
            where = f"{named.label}, layer {pick['layer']}, neuron {pick['neuron']}"
            words = f"{kind.replace('_', ' ')}, {'strong' if strong else 'weak'}"
            panel.set_title(f"{words}\n{where}", fontsize=7)
            panel.set_ylim(-0.04, 1.04)
        row[0].set_ylabel("frequency")
    for panel in grid[-1]:
        panel.set_xlabel("position")
    caption = (
        "Activation frequency by position of neurons typical for their type and strength: those in"
        " the middle of the type's order of mutual information with position. Two of each where"
        f" there are two. {basis(runs)}"
    )
    return Drawing("7", "Typical curves of positional neurons", caption, figure=figure)


def ranges(runs: Sequence[NamedRun]) -> Drawing:
    """Fig. 9: where strong oscillatory neurons are activated, and if that covers all positions."""
    cells = [
        (named, layer, neurons) for named in runs for layer, neurons in _strong_waves(named.run)
    ]
    if not cells:
        raise NoDataError("no run has a strong oscillatory neuron")
    figure, axes = panels(len(cells))
    for panel, (named, layer, neurons) in zip(axes, cells, strict=True):
        on = np.stack(
            [named.run.curve(layer, neuron) > 0.5 for neuron in neurons]
        )  # [neuron, position]
        for row, mask in enumerate(on):
            panel.broken_barh(
                _spans(np.asarray(mask)), (row - 0.4, 0.8), color=TYPE_COLOURS["oscillatory"]
            )
        panel.broken_barh(_spans(np.any(on, axis=0)), (-1.6, 0.5), color="0.2")
        share = 100 * on.any(axis=0).mean()
        panel.set(xlabel="position", xlim=(0, on.shape[1]), ylim=(-2, len(neurons)))
        panel.set_title(f"{named.label}, layer {layer}: {share:.0f} % of positions in a range")
        panel.set_yticks(
            range(len(neurons)),
            [str(n) for n in neurons] if len(neurons) <= 20 else [""] * len(neurons),
        )
        panel.set_ylabel("neuron")
    caption = (
        "Positions at which a strong oscillatory neuron is activated in more than half of the"
        " sequences, a row a neuron; the dark row below: any of them. Layers with most such"
        f" neurons, at most {LAYERS} of a run. {basis(runs)}"
    )
    return Drawing("9", "Positions that oscillatory neurons indicate", caption, figure=figure)


def _strong_waves(run: LoadedRun) -> list[tuple[int, list[int]]]:
    found = positional(run)
    wanted = pc.and_(pc.equal(found["position_type"], "oscillatory"), found["position_strong"])
    found = found.filter(wanted)
    layer, neuron = found["layer"].to_numpy(), found["neuron"].to_numpy()
    by_layer = {int(k): [int(n) for n in neuron[layer == k]] for k in np.unique(layer)}
    most = sorted(by_layer, key=lambda k: (-len(by_layer[k]), k))[:LAYERS]
    return [(k, by_layer[k]) for k in sorted(most)]


def _spans(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the runs of True as (start, length)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), int(b - a)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


CATALOGUE: dict[str, tuple[Draw, str]] = {
    "7": (gallery, "Typical curves of positional neurons"),
    "9": (ranges, "Positions that oscillatory neurons indicate"),
}
