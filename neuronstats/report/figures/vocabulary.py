"""The figure of prediction, suppression and partition neurons, beyond the paper's."""

from collections.abc import Sequence

from neuronstats.report.figures.frame import (
    Drawing,
    NamedRun,
    NoDataError,
    legend,
    line_style,
    panels,
)
from neuronstats.report.figures.layers import DEPTH, by_depth
from neuronstats.stats.vocabulary import LAYER_COLUMNS, TYPES

NOT_THERE = (
    "no run has its neurons' updates projected on the vocabulary (reduce.vocabulary=false, or"
    " reduced by a version that did not: reduce again)"
)


def vocabulary(runs: Sequence[NamedRun]) -> Drawing:
    """Draw types of neurons by what they write, by layer, after Gurnee et al. 2024."""
    figure, axes = panels(len(TYPES), columns=3, width=3.4)
    known = []
    for index, named in enumerate(runs):
        curves = [by_depth(named, c, 100 / named.run.layout.num_neurons) for c in LAYER_COLUMNS]
        for panel, curve in zip(axes, curves, strict=True):
            if curve is not None:
                panel.plot(*curve, label=named.label, **line_style(index))
        known += [] if curves[0] is None else [named]
    if not known:
        raise NoDataError(NOT_THERE)
    top = max(0.2, *(panel.get_ylim()[1] for panel in axes))
    for panel, kind in zip(axes, TYPES, strict=True):
        panel.set(title=kind, xlabel=DEPTH, ylabel="% of the layer", ylim=(-0.025 * top, top))
    legend(axes[0], known)
    counts = "; ".join(
        f"{named.label} "
        + ", ".join(
            f"{named.run.layers[column.name].to_numpy().sum():,} {kind}"
            for kind, column in zip(TYPES, LAYER_COLUMNS, strict=True)
        )
        for named in known
    )
    caption = (
        "Share of each layer's neurons that raise a few tokens (prediction), lower a few"
        f" (suppression) or split the vocabulary (partition), from weights alone. In all: {counts}."
    )
    notes = [
        "Moments over the vocabulary of the neuron's update, projected on the output embedding:"
        " excess kurtosis above vocabulary_kurtosis with skewness above 0 (prediction) or below"
        " (suppression); of the others, variance above vocabulary_variance times that of a random"
        " direction (partition). After Gurnee et al. 2024, Universal neurons in GPT2 language"
        " models, sec. 5, who project with rows of length 1.",
    ]
    made_by = ("vocabulary_kurtosis", "vocabulary_variance")
    return Drawing(caption, notes, figure=figure, settings=made_by)
