"""The figure of what neurons write behind GELU, SiLU and gates, beyond the paper's."""

from collections.abc import Sequence

from neuronstats.report.figures.frame import (
    Drawing,
    NamedRun,
    NoDataError,
    from_zero,
    line_kind,
    line_style,
    panels,
)
from neuronstats.report.figures.layers import DEPTH, by_depth
from neuronstats.stats.contributions import LAYER_SHARE
from neuronstats.stats.dead import OPEN_FREQUENCY
from neuronstats.stats.signed import CONTROL_SHARE, NORMED_CONTROL_SHARE, SHUFFLED_SHARE

NOT_THERE = (
    "no run is of a model whose neurons write when they are not activated, or in either direction,"
    " with sums taken (collect.sums)"
)
WRITTEN = {  # columns of layers.parquet
    OPEN_FREQUENCY: ("-", "tokens of an open gate"),
    LAYER_SHARE: ("--", "of the sum of |a|"),
}
SIGNED = {
    CONTROL_SHARE: ("-", "by their top triggers"),
    SHUFFLED_SHARE: ("--", "by other neurons' triggers"),
    NORMED_CONTROL_SHARE: (":", "by theirs, final norm folded in"),
}


def contributions(runs: Sequence[NamedRun]) -> Drawing:
    """Draw how much comes from open gates, and whether neurons lower their triggers, by layer."""
    known = [named for named in runs if named.run.column(LAYER_SHARE.name) is not None]
    if not known:
        raise NoDataError(NOT_THERE)
    figure, axes = panels(2)
    for panel, lines in zip(axes, (WRITTEN, SIGNED), strict=True):
        for index, named in enumerate(known):
            for column, (line, words) in lines.items():
                curve = by_depth(named, column, 100)
                if curve is not None:
                    panel.plot(*curve, line, label=f"{named.label}, {words}", **line_style(index))
        kinds = [line_kind(line, words) for line, words in lines.values()]
        panel.legend(handles=kinds)
        panel.set_xlabel(DEPTH)
        from_zero(panel)
    axes[0].set(title="(a) share of open gates", ylabel="%")
    axes[1].set(
        title="(b) neurons that lower their triggers", ylabel="% of the layer", ylim=(0, 100)
    )
    axes[1].axhline(50, color="0.5", linewidth=1, linestyle=":")
    caption = (
        "How often gates are open, how much of what neurons hand on comes from open ones, and the"
        " share of neurons without detected tokens that lower what triggers them, against chance."
    )
    notes = [
        "a is what the down projection reads; sums leave position 0 out. A neuron lowers its"
        " triggers where the mean over them of its mean a on the trigger, times the projection of"
        " its update, is below 0. Only tokens whose values were summed count (collect.sum_tokens).",
    ]
    return Drawing(caption, notes, figure=figure)
