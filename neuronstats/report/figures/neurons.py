"""Figures over neurons: covers (2, 12, 13), positional ones (8, 10)."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from neuronstats.report.figures import published
from neuronstats.report.figures.frame import (
    Drawing,
    NamedRun,
    NoDataError,
    from_zero,
    intervals,
    legend,
    line_style,
    panels,
    wrapped,
)
from neuronstats.report.figures.layers import DEPTH, NO_BITMAPS, by_depth
from neuronstats.report.notebook import LoadedRun
from neuronstats.stats import ngrams
from neuronstats.stats.curves import TYPES
from neuronstats.stats.ngrams import COVER_BINS, WORDS
from neuronstats.stats.positions import CONSISTENCY, MEAN_CONSISTENCY, MI, STRONG, TYPE
from neuronstats.stats.view import LAYER

BIN_COLOURS = (
    "#bbbbbb",
    "#440154",
    "#3b528b",
    "#21918c",
    "#5ec962",
    "#fde725",
)  # grey, then viridis
TYPE_COLOURS = {
    "oscillatory": "#0072B2",
    "both_extremes": "#D55E00",
    "one_extreme": "#009E73",
    "other": "#CC79A7",
    "": "#777777",
}
WEAK_ALPHA = 0.35
RASTERISED = 2000  # more circles than this in a panel would make a picture of many megabytes
TYPED_BY = ("positional_mi", "min_crossings", "wave_share", "range_share", "near", "exact", "thin")


def cover_bins(run: LoadedRun, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Group alive neurons of layers with bitmaps by the number of n-grams that cover them.

    Returns:
        Layers int64 [layer], and neurons int64 [bin, layer], bins as in COVER_BINS; None without
        data.
    """
    name = ngrams.cover_bins(n).name
    if name not in run.layers.column_names:
        return None
    known = run.layers.filter(pc.is_valid(run.layers[name]))
    if not len(known):
        return None
    return known[LAYER.name].to_numpy().astype(np.int64), np.array(known[name].to_pylist()).T


def covers(runs: Sequence[NamedRun], n: int) -> Drawing:
    """Draw figs. 2, 12, 13: alive neurons by how many n-grams cover them."""
    data = [(named, found) for named in runs if (found := cover_bins(named.run, n)) is not None]
    if not data:
        raise NoDataError(NO_BITMAPS)
    if not any(counts.any() for _, (_, counts) in data):
        raise NoDataError("no neuron of a layer with bitmaps is alive")
    figure, axes = panels(len(data))
    for panel, (named, (layers, counts)) in zip(axes, data, strict=True):
        total = np.maximum(counts.sum(axis=0), 1)
        below = np.zeros(len(layers))
        for index, row in enumerate(counts):
            share = 100 * row / total
            panel.bar(
                layers, share, 0.9, bottom=below, color=BIN_COLOURS[index], label=bin_name(index)
            )
            below += share
        panel.set(xlabel="layer", ylabel="alive neurons, %", ylim=(0, 100))
        wrapped(panel, named.label)
        panel.set_xticks(layers if len(layers) <= 12 else layers[:: -(-len(layers) // 12)])
        panel.grid(visible=False)
    handles, words = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        words,
        loc="outside lower center",
        ncols=3,
        title=f"{WORDS[n]}s that cover a neuron",
    )
    shares = sorted({f"{100 * named.run.setting('cover_share', 0.95):g} %" for named, _ in data})
    caption = (
        f"Alive neurons of layers with bitmaps by the smallest number of distinct {WORDS[n]}s that"
        f" together account for {' or '.join(shares)} of their activations."
    )
    notes = [
        "The begin-of-sequence token and n-grams that hold it are left out (0: nothing else"
        " activates the neuron)."
    ]
    return Drawing(caption, notes, figure=figure, settings=("cover_share",))


def bin_name(index: int) -> str:
    """Return the name of a bin of covering n-grams."""
    if index == len(COVER_BINS) - 1:
        return f"over {COVER_BINS[index] - 1}"
    last = COVER_BINS[index + 1] - 1
    return str(last) if last == COVER_BINS[index] else f"{COVER_BINS[index]} to {last}"


def positional(run: LoadedRun) -> pa.Table:
    """Return the positional neurons: rows of neurons.parquet that have a type."""
    return run.neurons.filter(pc.is_valid(run.neurons[TYPE.name]))


def circles(panel: Axes, run: LoadedRun) -> None:
    """Draw fig. 8's panel: each positional neuron a circle, layer against rank in the layer."""
    found = positional(run)
    kinds, strong = found[TYPE.name].to_pylist(), found[STRONG.name].to_pylist()
    layer, information = found[LAYER.name].to_numpy(), found[MI.name].to_numpy()
    ordered = list(TYPE_COLOURS)
    order = sorted(
        range(len(kinds)),
        key=lambda i: (layer[i], ordered.index(kinds[i]), not strong[i], -information[i]),
    )
    ranks: dict[int, int] = {}
    dots: dict[tuple[str, bool], list[tuple[int, int]]] = {}
    for i in order:
        rank = ranks.get(int(layer[i]), 0) + 1
        ranks[int(layer[i])] = rank
        dots.setdefault((kinds[i], bool(strong[i])), []).append((int(layer[i]), rank))
    size = 30 if len(kinds) < 400 else 10
    many = len(kinds) > RASTERISED
    for (kind, full), places in dots.items():
        alpha = 1.0 if full else WEAK_ALPHA
        x, y = np.array(places).T
        colour = TYPE_COLOURS[kind]
        panel.scatter(x, y, size, color=colour, alpha=alpha, linewidths=0, rasterized=many)
    panel.set(
        xlabel="layer",
        ylabel="positional neurons",
        xlim=(-0.5, run.num_layers - 0.5),
    )
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panel.set_ylim(bottom=0, top=max(ranks.values(), default=1) * 1.03 + 0.7)
    if not kinds:
        panel.text(0.5, 0.5, "no positional neurons", transform=panel.transAxes, ha="center")


def kind_name(kind: str) -> str:
    """Return a type as people write it."""
    return kind.replace("_", " ") or "untyped"


def _circles_figure(runs: Sequence[NamedRun], titles: Sequence[str]) -> Drawing:
    figure, axes = panels(len(runs), height=3.8)
    used: set[str] = set()
    for panel, named, words in zip(axes, runs, titles, strict=True):
        circles(panel, named.run)
        wrapped(panel, words)
        used |= set(positional(named.run)[TYPE.name].to_pylist())
    handles = [
        Line2D([], [], linestyle="", marker="o", color=colour, label=kind_name(kind))
        for kind, colour in TYPE_COLOURS.items() if kind or kind in used
    ]  # fmt: skip
    handles.append(
        Line2D(
            [], [], linestyle="", marker="o", color="0.3", alpha=WEAK_ALPHA, label="(pale: weak)"
        )
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    thresholds = sorted({f"{named.run.setting('positional_mi', 0.05):g}" for named in runs})
    caption = (
        "Every neuron whose activation and position share more than"
        f" {' or '.join(thresholds)} nats of mutual information: a circle at its layer, coloured by"
        " the type of its curve of frequency by position."
    )
    notes = ["Ordered by type, then strength, then information.", published.remarks(["8"], runs)]
    return Drawing(caption, notes, figure=figure, settings=TYPED_BY)


def types(runs: Sequence[NamedRun]) -> Drawing:
    """Draw figs. 8 and 16: positional neurons by layer and type."""
    if not any(len(positional(named.run)) for named in runs):
        most = max(pc.max(named.run.neurons[MI.name]).as_py() for named in runs)
        raise NoDataError(
            f"no neuron is positional; the most that any tells of its position is {most:.3f} nats"
        )
    return _circles_figure(runs, [named.label for named in runs])


def training(runs: Sequence[NamedRun]) -> Drawing:
    """Draw figs. 10 and 11: models with and without positions, or one as it is trained."""
    shapes = {(named.run.model_layers, named.run.layout.num_neurons) for named in runs}
    if len(runs) < 2 or len(shapes) > 1:
        raise NoDataError(
            "it sets runs of one architecture side by side (with and without positional encoding,"
            " or through training): give several, runs=[DIR,DIR2]"
        )
    titles = [
        f"{named.label}, {'with' if named.run.has_positions else 'without'} positions"
        for named in runs
    ]
    return _circles_figure(runs, titles)


def domain_consistency(runs: Sequence[NamedRun]) -> Drawing:
    """Draw in which share of the domains a positional neuron's type holds."""
    figure, (spread, layers) = panels(2)
    drawn = 0
    for index, named in enumerate(runs):
        found, by_layer = consistencies(named.run), by_depth(named, MEAN_CONSISTENCY, 100)
        if found is None or by_layer is None:
            continue
        shares, numbers = np.unique(found, return_counts=True)
        words = f"{named.label}, {len(found)} neurons"
        style = line_style(index)
        spread.plot(100 * shares, 100 * numbers / len(found), label=words, **style)
        totals = [len(found)] * len(shares)
        intervals(spread, (100 * shares).tolist(), numbers.tolist(), totals, style["color"])
        layers.plot(*by_layer, label=named.label, **style)
        drawn += 1
    if not drawn:
        raise NoDataError(
            "no run has positional neurons and a domain of enough sequences"
            " (reduce.min_domain_sequences) to ask"
        )
    share = "domains in which its type holds, %"
    spread.set(title="(a) all layers", xlabel=share, ylabel="positional neurons, %", xlim=(-4, 104))
    layers.set(
        title="(b) by layer",
        xlabel=DEPTH,
        xlim=(-0.03, 1.03),
        ylabel="mean share of domains, %",
        ylim=(-3, 103),
    )
    for panel in (spread, layers):
        from_zero(panel)
        legend(panel, runs)
    caption = (
        "(a) Positional neurons by the share of the domains in which their type holds, with 95 %"
        " intervals; (b) the mean of that share over a layer's. A neuron that tells position does"
        " so in every domain."
    )
    notes = [
        "A positional neuron's type holds in a domain where its curve over that domain's text alone"
        " has the same type and, corrected for the domain's number of sequences, information above"
        " the same threshold; domains of fewer than min_domain_sequences sequences are not asked."
    ]
    made_by = (*TYPED_BY, "min_domain_sequences")
    return Drawing(caption, notes, figure=figure, settings=made_by)


def consistencies(run: LoadedRun) -> NDArray[np.float64] | None:
    """Return for each positional neuron the share of domains where its type holds, if known."""
    if not run.has(CONSISTENCY.name):
        return None
    found = pc.drop_null(run.neurons[CONSISTENCY.name])
    return np.asarray(found.to_numpy())


assert set(TYPES) < set(TYPE_COLOURS)
