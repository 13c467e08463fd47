"""The frame that all figures share: style, name, caption, picture files; or why there is none."""

import contextlib
import dataclasses
import io
import itertools
import math
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from neuronstats.report.notebook import LoadedRun
from neuronstats.units import short

# Okabe and Ito's colours, told apart by colour-blind readers too; yellow is left out on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MANY = 6  # runs or legend entries that are named one under another
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 3,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "savefig.dpi": 150,
    "svg.fonttype": "path",
    "svg.hashsalt": "neuronstats",
    "text.parse_math": False,  # tokens are shown as they are, dollars too
}


# For what DejaVu cannot write (a model's or a domain's name), where such a font is installed.
OTHER_SCRIPTS = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "PingFang SC",
                 "Microsoft YaHei", "Arial Unicode MS")  # fmt: skip


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw in the report's style; a letter that no font has is a box, without a warning."""
    installed = set(font_manager.get_font_names())
    family = [STYLE["font.family"], *(name for name in OTHER_SCRIPTS if name in installed)]
    with mpl.rc_context({**STYLE, "font.family": family}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        yield


class NoDataError(Exception):
    """A figure has nothing to show; the message says why."""


@dataclass(frozen=True)
class NamedRun:
    """A run and the name that it has in this report."""

    label: str
    run: LoadedRun


@dataclass(frozen=True)
class Drawing:
    """A figure, drawn or not."""

    caption: str = ""
    """What is seen, in at most two sentences."""
    notes: Sequence[str] = ()
    """What is measured, exactly; the page folds it away."""
    reason: str = ""
    """Why there is nothing to see; empty where there is."""
    figure: Figure | None = field(default=None, compare=False, repr=False)
    rows: Sequence[Sequence[str]] = ()
    """A figure that is a table: the names of the columns, then rows."""
    settings: Sequence[str] = ()
    """The reduce settings that decide what is seen; `draw` adds their values to the notes."""
    name: str = ""
    """As in the paper (1a), or a word; `draw` knows it from the catalogue."""
    title: str = ""
    """Where it is not the catalogue's."""

    @property
    def number(self) -> str:
        """What the page calls it."""
        return f"Figure {self.name}" if self.name[0].isdigit() else "Beyond the paper"

    @property
    def stem(self) -> str:
        """The name of its files, without their ending."""
        return f"fig_{self.name.replace(' ', '_')}"

    def render(self, kind: str) -> bytes:
        """Return the picture's bytes as svg or png, the same for the same tables."""
        assert self.figure is not None
        sink = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        with style():
            self.figure.savefig(sink, format=kind, metadata=metadata)
        return sink.getvalue()


Draw = Callable[[Sequence[NamedRun]], Drawing]


def new_figure(width: float = 6.0, height: float = 3.6) -> Figure:
    """Return an empty figure of this size in inches, tied to no window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(
    count: int, *, columns: int = 2, width: float = 4.6, height: float = 3.2
) -> tuple[Figure, list[Axes]]:
    """Return a figure of several panels, and the panels."""
    columns = min(columns, max(1, count))
    rows = -(-count // columns)
    figure = new_figure(width * columns, height * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = list(grid.ravel())
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def line_style(index: int) -> dict[str, Any]:
    """Return colour and marker of the run with this index."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def wilson(count: float, total: float) -> tuple[float, float]:
    """Return the 95 % interval of a share, from 0 to 1 (Wilson's); `total` is more than 0.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    z = 1.959964
    share, scale = count / total, 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def share_words(count: int, total: int) -> str:
    """Return a share with its 95 % interval: 2 of 3 (67 %, 95 % interval 21 to 94 %)."""
    if not total:
        return "0 of 0"
    low, high = wilson(count, total)
    share = f"{100 * count / total:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %"
    return f"{count:,} of {total:,} ({share})"


def intervals(
    panel: Axes, x: Sequence[float], counts: Sequence[int], totals: Sequence[int], colour: str
) -> None:
    """Draw the 95 % intervals of shares, in per cent."""
    ends = [wilson(count, total) for count, total in zip(counts, totals, strict=True)]
    low, high = 100 * np.array(ends).reshape(-1, 2).T
    panel.vlines(x, low, high, color=colour, alpha=0.4, linewidth=3)


def basis(runs: Sequence[NamedRun]) -> str:
    """Return which runs a figure is of, with their tokens, data and whether they are complete."""
    words: dict[str, list[str]] = {}
    for named in runs:
        run = named.run
        part = (
            ""
            if run.metadata["complete"]
            else (f", partial: {run.metadata['shards']} of {len(run.layout.shards)} shards")
        )
        words.setdefault(f"{short(run.tokens)} tokens ({run.data}{part})", []).append(named.label)
    if len(runs) > MANY and len(words) == 1:
        return f"{len(runs)} runs, each of {next(iter(words))}."
    each = (f"{label}: {made_of}" for made_of, labels in words.items() for label in labels)
    return "; ".join(each) + "."


def settings_words(runs: Sequence[NamedRun], names: Sequence[str]) -> str:
    """Return the reduce settings behind a figure: once where the runs agree, else each run's."""
    words = []
    for name in names:
        values = [_plain(named.run.setting(name)) for named in runs]
        if len(set(values)) == 1:
            words.append(f"{name} {values[0]}")
        else:
            each = zip(values, runs, strict=True)
            words.append(f"{name} " + ", ".join(f"{v} ({named.label})" for v, named in each))
    return f"Settings: {'; '.join(words)}." if words else ""


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return "none" if value is None else str(value)


def wrapped(panel: Axes, title: str, **keywords: Any) -> None:
    """Write a panel's title, in lines that are no longer than the panel is wide."""
    figure = panel.get_figure(root=True)
    assert figure is not None
    size = keywords.get("fontsize", STYLE["axes.titlesize"])
    share = 1 / panel.get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]
    letters = int(figure.get_size_inches()[0] * share * 72 / (0.62 * size))
    lines = [part for line in title.split("\n") for part in textwrap.wrap(line, letters)]
    panel.set_title("\n".join(lines), **keywords)


def legend(panel: Axes, runs: Sequence[NamedRun], *more: Line2D | None) -> None:
    """Write a legend: the runs by their colours, then other kinds of lines once for all runs.

    Args:
        panel: with the runs drawn in `line_style`, in this order.
        runs: of which some may have nothing in the panel.
        more: further entries; None: left out.
    """
    labels = [str(line.get_label()) for line in panel.lines]
    handles = [
        Line2D([], [], label=named.label, **line_style(index))
        for index, named in enumerate(runs)
        if any(label == named.label or label.startswith(f"{named.label}, ") for label in labels)
    ]
    entries = [*handles, *(entry for entry in more if entry is not None)]
    columns = 1 + len(entries) // MANY
    small = {"fontsize": 5, "labelspacing": 0.2} if columns > 1 else {}
    panel.legend(handles=entries, ncols=columns, **small)


def line_kind(line: str, words: str) -> Line2D:
    """Return a legend's entry for a kind of line, whatever its colour."""
    return Line2D([], [], color="0.4", linestyle=line, label=words)


def from_zero(panel: Axes, *, whole: bool = False) -> None:
    """Begin a panel's y just below zero, so that marks at zero are seen; after all is drawn.

    Of counts (`whole`) only whole numbers are marked.
    """
    top = max(panel.get_ylim()[1], 1.0 if whole else 0.0)
    panel.set_ylim(-0.025 * top, top)
    if whole:
        panel.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def draw(function: Draw, name: str, title: str, runs: Sequence[NamedRun]) -> Drawing:
    """Return a figure, or the reason why it has nothing to show.

    Its name, its runs and the settings behind it are written above it and added to its notes.
    """
    try:
        with style():
            drawing = function(runs)
            drawing = dataclasses.replace(drawing, name=name, title=drawing.title or title)
            parts = [basis(runs), settings_words(runs, drawing.settings)]
            made_of = [part for part in parts if part]
            if drawing.figure is not None:
                number = f"{drawing.name}. " if drawing.name[0].isdigit() else ""
                width = round(15 * drawing.figure.get_size_inches()[0])
                wrapped_parts = [textwrap.wrap(part, width) for part in made_of]
                lines = [number + drawing.title, *itertools.chain(*wrapped_parts)]
                drawing.figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=8)
                drawing.figure.draw_without_rendering()  # lays out, once for both kinds of file
                drawing.figure.set_layout_engine("none")
            notes = [note for note in (*drawing.notes, *made_of) if note]
            return dataclasses.replace(drawing, notes=notes)
    except NoDataError as missing:
        return Drawing(name=name, title=title, reason=str(missing))
