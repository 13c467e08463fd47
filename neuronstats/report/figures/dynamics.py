"""The figure of a training: dead neurons, detectors and positional ones by its checkpoints."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from neuronstats.report.figures.frame import (
    COLOURS,
    MARKERS,
    Drawing,
    NamedRun,
    NoDataError,
    from_zero,
    line_kind,
    panels,
)
from neuronstats.report.figures.layers import DETECTED_BY
from neuronstats.report.figures.neurons import TYPE_COLOURS, TYPED_BY
from neuronstats.stats.curves import TYPES
from neuronstats.stats.ngrams import WORDS, layer_count
from neuronstats.stats.positions import OF_TYPE
from neuronstats.units import short

NOT_THERE = (
    "it follows a training through its checkpoints: give several of one, runs=[DIR,DIR2]; the step"
    " is read from the names of their models, such as checkpoint-1000000 or the revision step1000"
)
LINES = {1: "-", 2: "--", 3: ":"}
LOG_FROM = 50  # steps that differ by more share a logarithmic axis
Training = list[tuple[int, NamedRun]]


def dynamics(runs: Sequence[NamedRun]) -> Drawing:
    """Draw what becomes of a model's neurons as it is trained (sec. 5.4)."""
    trainings = _trainings(runs)
    if not trainings:
        raise NoDataError(NOT_THERE)
    figure, (dead, detectors, positional) = panels(3, columns=3, width=4.2)
    for index, (name, points) in enumerate(trainings.items()):
        marker: dict[str, Any] = {"marker": MARKERS[index % len(MARKERS)], "label": name}
        colour = COLOURS[index % len(COLOURS)]
        shares = [
            100 * _total(named, named.run.never) / len(named.run.neurons) for _, named in points
        ]
        steps = [step for step, _ in points]
        dead.plot(steps, shares, color=colour, **marker)
        for n, line in LINES.items():
            counted = [(s, _total(named, layer_count("detectors", n).name)) for s, named in points]
            known = [(step, total) for step, total in counted if not np.isnan(total)]
            if known:
                detectors.plot(*zip(*known, strict=True), line, color=colour, **marker)
        for kind, column in zip(TYPES, OF_TYPE, strict=True):
            totals = [_total(named, column.name) for _, named in points]
            positional.plot(steps, totals, color=TYPE_COLOURS[kind], **marker)
    dead.set(title="(a) never activated (dead, or never open)", ylabel="% of all neurons")
    detectors.set(title="(b) detectors", ylabel="neurons")
    positional.set(title="(c) positional, by type", ylabel="neurons")
    for panel, whole in ((dead, False), (detectors, True), (positional, True)):
        _number_steps(panel, trainings)
        from_zero(panel, whole=whole)
    named_trainings = [
        Line2D([], [], color="0.4", marker=MARKERS[i % len(MARKERS)], label=name)
        for i, name in enumerate(trainings)
    ]
    dead.legend()
    detectors.legend(handles=[line_kind(line, f"{WORDS[n]}s") for n, line in LINES.items()])
    kinds = [
        Line2D([], [], color=TYPE_COLOURS[kind], label=kind.replace("_", " ")) for kind in TYPES
    ]
    positional.legend(handles=[*kinds, *(named_trainings if len(trainings) > 1 else [])])
    words = "; ".join(
        f"{name}: {', '.join(short(step) for step, _ in points)}"
        for name, points in trainings.items()
    )
    caption = (
        "Neurons by the training step of the checkpoint, in all layers analysed: never activated;"
        f" detecting tokens, bigrams or trigrams; telling their position. Steps: {words}."
    )
    notes = [
        "The step is the number in the checkpoint's name: tokens in those of jobs/train.py, steps"
        " of the optimiser in most others. Detectors are of layers with bitmaps alone.",
        "Published (sec. 5.4): strong positional patterns from 50k batches on, oscillatory ones"
        " only at 300k; without positional encoding many strong ones, none oscillatory.",
    ]
    made_by = (*DETECTED_BY, *TYPED_BY)
    return Drawing(caption, notes, figure=figure, settings=made_by)


def _trainings(runs: Sequence[NamedRun]) -> dict[str, Training]:
    """Return the trainings with several checkpoints by a name to show, each by rising steps."""
    found: dict[str, Training] = {}
    for named in runs:
        training = named.run.run.about.training
        if training is not None:
            found.setdefault(training[0], []).append((training[1], named))
    kept = {
        name: sorted(points, key=lambda point: point[0])
        for name, points in found.items()
        if len(points) > 1
    }
    short_names = [name.rstrip("/_-").rsplit("/", 1)[-1] or "training" for name in kept]
    if len(set(short_names)) < len(kept):
        return kept
    return dict(zip(short_names, kept.values(), strict=True))


def _total(named: NamedRun, column: str) -> float:
    """Add up a column of layers.parquet; NaN where it is null in all layers."""
    values = named.run.column(column)
    return float("nan") if values is None else float(np.nansum(values))


def _number_steps(panel: Axes, trainings: dict[str, Training]) -> None:
    """Write steps along the axis, logarithmically where they differ by much."""
    steps = sorted({step for points in trainings.values() for step, _ in points})
    positive = [step for step in steps if step]
    if positive and positive[-1] > LOG_FROM * positive[0]:
        panel.set_xscale("symlog", linthresh=positive[0])
    panel.xaxis.set_major_formatter(lambda number, _: short(number))
    panel.set_xlabel("training step")
