"""The figure of detectors that suppress their triggers, beyond the paper's."""

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc

from neuronstats.report.figures import published
from neuronstats.report.figures.frame import (
    Drawing,
    NamedRun,
    intervals,
    line_kind,
    line_style,
    share_words,
)
from neuronstats.report.figures.layers import DETECTED_BY, by_depth, finish, overlay
from neuronstats.stats.suppression import CONTROL_SHARE, SHARE, SHUFFLED_SHARE, SUPPRESSES
from neuronstats.stats.view import LAYER

CONTROLS = {  # of the suppressing share, in layers.parquet
    SHUFFLED_SHARE: ("others' triggers", "--"),
    CONTROL_SHARE: ("neurons that detect none", "-."),
}


def suppression(runs: Sequence[NamedRun]) -> Drawing:
    """Draw the share of token detectors that suppress what they detect."""
    figure, axes = overlay(
        runs,
        SHARE,
        "suppressing, % of token detectors",
        factor=100,
        missing="no run has projections of token detectors (none was found, or reduce did not"
        " read the checkpoint)",
    )
    axes.axhline(50, color="0.5", linewidth=1, linestyle=":")
    for index, named in enumerate(runs):
        judged = named.run.neurons.filter(pc.is_valid(named.run.neurons[SUPPRESSES.name]))
        layer, does = (judged[column.name].to_numpy() for column in (LAYER, SUPPRESSES))
        layers, totals = np.unique(layer, return_counts=True)
        counts = [int(does[layer == each].sum()) for each in layers]
        depth = named.run.depth[layers].tolist()
        intervals(axes, depth, counts, totals.tolist(), line_style(index)["color"])
        for column, (words, line) in CONTROLS.items():
            control = by_depth(named, column, 100)
            if control is not None:
                label = f"{named.label}, {words}"
                axes.plot(*control, line, label=label, **line_style(index), alpha=0.6)
    kinds = [line_kind(line, words) for words, line in CONTROLS.values()]
    finish(axes, runs, "suppression", *kinds)
    axes.set_ylim(-3, 103)
    caption = (
        "Share of each layer's token detectors whose update lowers the output logits of the tokens"
        f" that they detect, with 95 % intervals. In all: {_suppressing(runs)}."
    )
    notes = [
        "A detector suppresses where its update's projection on the output embedding is below zero"
        " in the mean over its detected tokens.",
        "Dotted: one half, which a sign drawn at random would give. Dashed, where computed: the"
        " same neurons against each other's detected tokens; dash-dotted: neurons of the layer that"
        " detect none against these tokens.",
        "Intervals: Wilson's.",
        published.remarks(["suppression"], runs),
    ]
    made_by = (*DETECTED_BY, "centred")
    return Drawing(caption, notes, figure=figure, settings=made_by)


def _suppressing(runs: Sequence[NamedRun]) -> str:
    """Return how many of each run's token detectors suppress, over all layers."""
    words = []
    for named in runs:
        judged = pc.drop_null(named.run.neurons[SUPPRESSES.name])
        count = pc.sum(judged, min_count=0).as_py()
        words.append(f"{share_words(count, len(judged))} of {named.label}")
    return ", ".join(words)
