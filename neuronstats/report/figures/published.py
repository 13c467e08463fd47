"""What the paper's figures show for Meta's OPT models, read off them by eye, beside our curves."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from neuronstats.report.figures.frame import NamedRun, line_style

NAME = "published (read by eye)"


@dataclass(frozen=True)
class Reading:
    """What one curve of the paper shows."""

    points: tuple[tuple[float, float], ...] = ()
    """Layer relative to depth, value in the units of our axis."""
    levels: tuple[float, ...] = ()
    """Values whose layer was not read: the highest, or the last of a cumulated curve."""


_ALIVE = ((0.5, 0.0), (0.75, 0.0), (1.0, 0.0))  # the second half of every model
# By figure, then model. Voita et al. 2023; a few per cent of the axis may be wrong either way.
READINGS: dict[str, dict[str, Reading]] = {
    "1a": {
        "opt-125m": Reading(((0.0, 0.0), (0.09, 9.0), (0.18, 16.0), (0.27, 41.0), *_ALIVE)),
        "opt-350m": Reading(((0.0, 0.0), *_ALIVE)),
        "opt-1.3b": Reading(((0.22, 21.0), *_ALIVE)),
        "opt-2.7b": Reading(((0.03, 35.0), (0.3, 25.0), *_ALIVE)),
        "opt-6.7b": Reading(((0.03, 24.0), *_ALIVE)),
        "opt-13b": Reading(((0.0, 37.0), *_ALIVE)),
        "opt-30b": Reading(((0.06, 53.0), *_ALIVE)),
        "opt-66b": Reading(((0.0, 55.0), (0.05, 73.0), (0.15, 50.0), (0.33, 10.0), *_ALIVE)),
    },
    "1b": {
        "opt-125m": Reading(((0.09, 0.10), (0.33, 0.01), (0.75, 0.074)), (0.085,)),
        "opt-1.3b": Reading(((0.75, 0.061),), (0.087,)),
        "opt-2.7b": Reading(((0.75, 0.056),), (0.083,)),
        "opt-6.7b": Reading(((0.75, 0.05),), (0.077,)),
        "opt-13b": Reading(((0.75, 0.05),), (0.079,)),
        "opt-30b": Reading(((0.75, 0.041),), (0.060,)),
        "opt-66b": Reading(((0.75, 0.034),), (0.049,)),
    },
    "3a": {
        "opt-1.3b": Reading(levels=(22.0,)),
        "opt-2.7b": Reading(levels=(50.0,)),
        "opt-6.7b": Reading(levels=(65.0,)),
        "opt-13b": Reading(levels=(113.0,)),
        "opt-30b": Reading(((0.0, 195.0), (0.13, 238.0))),
        "opt-66b": Reading(((0.0, 345.0), (0.03, 120.0), (0.18, 455.0), (0.4, 0.0))),
    },
    "3b": {
        "opt-1.3b": Reading(levels=(350.0,)),
        "opt-2.7b": Reading(levels=(850.0,)),
        "opt-6.7b": Reading(levels=(1100.0,)),
        "opt-13b": Reading(levels=(2300.0,)),
        "opt-30b": Reading(levels=(5500.0,)),
        "opt-66b": Reading(levels=(10000.0,)),
    },
    "4": {"opt-13b": Reading(levels=(625.0,))},
}
# What was read as words: figure, model, words.
REMARKS: dict[str, dict[str, str]] = {
    "1b": dict.fromkeys(
        READINGS["1b"],
        "mean frequencies mostly below 0.02 in the first half; the dotted line is the peak shortly"
        " before the last layer",
    ),
    "3": {"opt-66b": "5351 token detectors in all, at most 1.5k detected tokens in one layer"},
    "4": {"opt-13b": "nearly all detected tokens are new against the layers below"},
    "8": {
        "opt-125m": "10 strong oscillatory neurons in the second layer, about 40 positional ones in"
        " each of the first two",
        "opt-350m": "positional neurons exist",
        **dict.fromkeys(
            ("opt-1.3b", "opt-2.7b"), "oscillatory is the commonest type up to 2.7b parameters"
        ),
        **dict.fromkeys(
            ("opt-6.7b", "opt-13b", "opt-30b", "opt-66b"), "no oscillatory neurons from 6.7b on"
        ),
    },
    "suppression": dict.fromkeys(READINGS["3a"], "over 80 % of the token detectors suppress"),
}


def readings(figure: str, model: str) -> Reading | None:
    """Return what a figure of the paper shows of a model; None for models that it does not show."""
    return READINGS.get(figure, {}).get(model.lower())


def beside(panel: Axes, figure: str, runs: Sequence[NamedRun]) -> Line2D | None:
    """Mark what the paper shows of the runs' models, in the runs' colours.

    Args:
        panel: our curves.
        figure: of the paper, as in READINGS.
        runs: drawn in the panel, in this order.

    Returns:
        An entry for the panel's legend; None where the paper shows none of the models.
    """
    shown = False
    for index, named in enumerate(runs):
        reading = readings(figure, named.run.name)
        if reading is None:
            continue
        shown = True
        colour = line_style(index)["color"]
        label = f"{named.label}, {NAME}"
        if reading.points:
            x, y = zip(*reading.points, strict=True)
            panel.plot(
                x, y, "o", color=colour, markersize=8, fillstyle="none", label=label, clip_on=False
            )
        for level in reading.levels:
            panel.axhline(level, color=colour, linestyle=":", linewidth=1, label=label)
    if not shown:
        return None
    return Line2D([], [], color="0.4", marker="o", markersize=8, fillstyle="none", linestyle=":",
                  linewidth=1, label=NAME)  # fmt: skip


def remarks(figures: Sequence[str], runs: Sequence[NamedRun]) -> str:
    """Return what the marks are, and what else was read of the runs' models; empty for others."""
    models = dict.fromkeys(named.run.name.lower() for named in runs)
    marked = [m for m in models if any(readings(figure, m) for figure in figures)]
    words = []
    if marked:
        words.append(
            f"Rings and dotted lines: the values published for {', '.join(marked)} (Voita et al."
            " 2023, on 20M or 5M tokens of their data), read off the paper's figures by eye, so"
            " within a few per cent; a dotted line is a highest value whose layer was not read."
        )
    for figure in figures:
        found = [(m, REMARKS[figure][m]) for m in models if m in REMARKS.get(figure, {})]
        words += [f"Published for {model}: {text}." for model, text in found]
    return " ".join(words)
