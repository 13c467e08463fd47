"""Figures by layer: dead neurons, frequencies (1), detectors (3, 14), new n-grams (4, 15), ours."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from neuronstats.report.figures import published
from neuronstats.report.figures.frame import (
    Drawing,
    NamedRun,
    NoDataError,
    from_zero,
    legend,
    line_kind,
    line_style,
    new_figure,
    panels,
    wrapped,
)
from neuronstats.stats.dead import ALIVE_FREQUENCY, DEAD_SHARE, NEURONS, NEVER_SEEN_BOUND, SEEN
from neuronstats.stats.ngrams import WORDS, layer_count
from neuronstats.stats.view import LAYER, Column
from neuronstats.units import short

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
LOG_FROM = 20  # runs whose tokens differ by more share a logarithmic axis
DETECTED_BY = ("cover_share", "max_cover", "detect_rate", "min_count")
DEPTH = "layer relative to depth (0: first, 1: last)"
DETECTED = {"detected": ("-", "in the layer"), "detected_cumulative": ("--", "up to the layer")}
NEW = {  # counts of layers.parquet, and how they are drawn
    "detected": ("detected in the layer", "-", 4.0),
    "new_to_previous": ("new against the layer just below", "-", 2.0),
    "new_overall": ("new against all layers below", "--", 1.0),
}
NO_BITMAPS = "no run keeps bitmaps (collect.bitmaps), which n-grams are counted on"


def by_depth(named: NamedRun, column: Column, factor: float = 1.0) -> Curve | None:
    """Return layers relative to depth and a column of layers.parquet, without its nulls."""
    values = named.run.column(column.name)
    if values is None:
        return None
    known = ~np.isnan(values)
    return named.run.depth[known], values[known] * factor


def overlay(
    runs: Sequence[NamedRun], column: Column, ylabel: str, *, factor: float = 1.0, missing: str
) -> tuple[Figure, Axes]:
    """Return a figure with a column of layers.parquet by depth, a curve for each run."""
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
    axes.set(xlabel=DEPTH, ylabel=ylabel)
    return figure, axes


def finish(
    axes: Axes, runs: Sequence[NamedRun], figure: str, *more: Line2D, whole: bool = False
) -> None:
    """Mark what the paper shows, name what is drawn, begin at zero."""
    legend(axes, runs, *more, published.beside(axes, figure, runs))
    from_zero(axes, whole=whole)


NOT_DEAD = "no run is of a model whose neurons can be dead: behind GELU or SiLU each always writes"


def dead(runs: Sequence[NamedRun]) -> Drawing:
    """Draw fig. 1a: the share of dead neurons."""
    figure, axes = overlay(
        runs, DEAD_SHARE, "dead neurons, % of the layer", factor=100, missing=NOT_DEAD
    )
    finish(axes, runs, "1a")
    bounds = ", ".join(
        f"{NEVER_SEEN_BOUND / named.run.tokens:.2g} ({named.label})"
        for named in runs
        if named.run.never == "dead"
    )
    caption = (
        "Share of each layer's neurons that were not activated on a single token of the run. Never"
        " seen is not never: with 95 % confidence such a neuron's frequency is below 3/tokens ="
        f" {bounds}."
    )
    notes = [published.remarks(["1a"], runs)]
    return Drawing(caption, notes, figure=figure)


def frequency(runs: Sequence[NamedRun]) -> Drawing:
    """Draw fig. 1b: the mean frequency of the others."""
    figure, axes = overlay(
        runs,
        ALIVE_FREQUENCY,
        "mean activation frequency",
        missing=f"no neuron is alive, or {NOT_DEAD}",
    )
    finish(axes, runs, "1b")
    caption = "Activation frequency, the mean over each layer's neurons that are not dead."
    notes = [
        "Frequency: activations divided by tokens, the begin-of-sequence token included.",
        published.remarks(["1b"], runs),
    ]
    return Drawing(caption, notes, figure=figure)


def detectors(runs: Sequence[NamedRun], lengths: Sequence[int], name: str) -> Drawing:
    """Draw figs. 3 and 14: detectors by layer (a), and the n-grams that have one (b)."""
    lengths = _counted(runs, lengths)
    figure, axes = panels(2 * len(lengths))
    for place, n in enumerate(lengths):
        left, right = axes[2 * place : 2 * place + 2]
        for index, named in enumerate(runs):
            found = by_depth(named, layer_count("detectors", n))
            if found is None:
                continue
            style = line_style(index)
            left.plot(*found, label=named.label, **style)
            for name_of_count, (line, words) in DETECTED.items():
                curve = by_depth(named, layer_count(name_of_count, n))
                assert curve is not None
                right.plot(*curve, line, label=f"{named.label}, {words}", **style)
        left.set(title=f"(a) detectors of {WORDS[n]}s", xlabel=DEPTH, ylabel="neurons in the layer")
        right.set(
            title=f"(b) {WORDS[n]}s with a detector", xlabel=DEPTH, ylabel=f"distinct {WORDS[n]}s"
        )
        finish(left, runs, f"{name}a", whole=True)
        kinds = [line_kind(line, words) for line, words in DETECTED.values()]
        finish(right, runs, f"{name}b", *kinds, whole=True)
    caption = (
        "(a) Neurons that only few n-grams activate, and nearly every occurrence of these does; (b)"
        " n-grams with such a detector in the layer (solid), or in it or a layer below (dashed)."
    )
    notes = [
        f"A detector is covered by few n-grams (at most {_covers(runs, lengths)}, for"
        f" {_each(runs, 'cover_share', 95)} of its activations), is activated in at least"
        f" {_each(runs, 'detect_rate', 95)} of the occurrences of those that count as detected, and"
        " these alone still cover it. The begin-of-sequence token is left out.",
        f"Layers with bitmaps alone: {_counted_layers(runs)}.",
        f"In all: {_detectors_in_all(runs, lengths)}.",
        published.remarks([name, f"{name}a", f"{name}b"], runs),
    ]
    return Drawing(caption, notes, figure=figure, settings=DETECTED_BY)


def new_ngrams(runs: Sequence[NamedRun], lengths: Sequence[int], name: str) -> Drawing:
    """Draw figs. 4 and 15: what a layer detects that the layers below, or the last, do not."""
    lengths = _counted(runs, lengths)
    cells = [
        (named, n)
        for n in lengths
        for named in runs
        if by_depth(named, layer_count("detected", n)) is not None
    ]
    figure, axes = panels(len(cells))
    for panel, (named, n) in zip(axes, cells, strict=True):
        for index, (count, (words, line, width)) in enumerate(NEW.items()):
            curve = by_depth(named, layer_count(count, n))
            assert curve is not None
            panel.plot(*curve, line, label=words, linewidth=width, **line_style(index))
        marks = published.beside(panel, name, [named])
        panel.set(xlabel=DEPTH, ylabel=f"distinct {WORDS[n]}s")
        wrapped(panel, named.label)
        from_zero(panel, whole=True)
        panel.legend(handles=[*panel.lines[: len(NEW)], *([marks] if marks else [])])
    caption = (
        "Of the n-grams that the neurons of a layer detect, those that no neuron of any layer below"
        " detects, and those that none of the layer just below does."
    )
    notes = [
        f"Layers with bitmaps alone: {_counted_layers(runs)}.",
        published.remarks([name], runs),
    ]
    return Drawing(caption, notes, figure=figure, settings=DETECTED_BY)


def _counted(runs: Sequence[NamedRun], lengths: Sequence[int]) -> list[int]:
    """Return the lengths that any run has detectors counted for."""
    found = {n: [by_depth(named, layer_count("detectors", n)) for named in runs] for n in lengths}
    kept = [n for n, curves in found.items() if any(curve is not None for curve in curves)]
    if not kept:
        raise NoDataError(NO_BITMAPS)
    if not any(curve is not None and curve[1].any() for n in kept for curve in found[n]):
        words = " or ".join(f"{WORDS[n]}s" for n in kept)
        raise NoDataError(f"no neuron of any run is a detector of {words}")
    return kept


def _detectors_in_all(runs: Sequence[NamedRun], lengths: Sequence[int]) -> str:
    """Return how many detectors each run has, and how many of them on weak evidence."""
    words = []
    for named in runs:
        for n in lengths:
            strict, few, loose = (
                None if curve is None else int(curve[1].sum())
                for name in ("detectors", "detectors_few", "detectors_loose")
                for curve in [by_depth(named, layer_count(name, n))]
            )
            if strict is None or loose is None:
                continue
            least = named.run.setting("few_occurrences")
            weak = "" if few is None else f"{few} of them on fewer than {least} occurrences, "
            words.append(
                f"{strict} detectors of {WORDS[n]}s in {named.label} ({weak}{loose} where the"
                " detected are gathered from all triggers, not from the cover alone)"
            )
    return "; ".join(words)


def _counted_layers(runs: Sequence[NamedRun]) -> str:
    """Return how many layers of each run have their n-grams counted."""
    words = [
        f"the first {named.run.bitmap_layers} of {named.run.model_layers} ({named.label})"
        for named in runs
    ]
    return ", ".join(words)


def _covers(runs: Sequence[NamedRun], lengths: Sequence[int]) -> str:
    found = [named.run.setting("max_cover", {}) for named in runs]
    words = [f"{each.get(str(n), '?')} {WORDS[n]}s" for n in lengths for each in found[:1]]
    same = all(each == found[0] for each in found)
    return " or ".join(words) + (
        "" if same else " in the first run; the others have other settings"
    )


def _each(runs: Sequence[NamedRun], name: str, default: float) -> str:
    shares = sorted({float(named.run.setting(name, default / 100)) for named in runs})
    return " or ".join(f"{100 * share:g} %" for share in shares)


def dead_curve(runs: Sequence[NamedRun]) -> Drawing:
    """Draw how the dead share falls as tokens are seen."""
    figure = new_figure()
    axes = figure.subplots()
    drawn = False
    for index, named in enumerate(runs):
        table = named.run.table("dead_curve")
        if table is None or not len(table):
            continue
        drawn = True
        layer, tokens, neurons, never = (
            table[name].to_numpy()
            for name in (LAYER.name, SEEN.name, NEURONS.name, named.run.never)
        )
        steps = np.unique(tokens)
        share = np.stack([100 * never[layer == k] / neurons[layer == k] for k in np.unique(layer)])
        weight = [neurons[layer == k][0] for k in np.unique(layer)]
        worst = int(np.argmax(share[:, -1]))
        style = line_style(index)
        axes.plot(
            steps, np.average(share, axis=0, weights=weight), label=f"{named.label}, all", **style
        )
        axes.plot(steps, share[worst], "--", label=f"{named.label}, layer {worst}", **style)
    if not drawn:
        raise NoDataError(
            "the runs were reduced by a version that keeps no such table: reduce again"
        )
    ends = [named.run.tokens for named in runs]
    if max(ends) > LOG_FROM * min(ends):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda number, _: short(number))
    axes.set(xlabel="tokens seen", ylabel="neurons never activated yet, %")
    from_zero(axes)
    axes.legend()
    caption = (
        "Neurons that were not activated on any token seen so far, of all recorded layers (solid)"
        " and of the layer with most of them at the end (dashed). Where the curve still falls, more"
        " text would find fewer of them."
    )
    notes = ["Text is taken from all domains evenly."]
    smooth = all(named.run.never == "never_open" for named in runs)
    title = "Never-open neurons against tokens seen" if smooth else ""
    return Drawing(caption, notes, figure=figure, title=title)
