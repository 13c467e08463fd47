"""N-gram detectors: the n-grams that activate each neuron, and whether few of them explain it.

Source: Voita et al. 2023, sec. 4, app. A, figs. 2-5 and 12-15; docs/method.md, "N-grams".
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from neuronstats.stats.settings import ReduceSettings
from neuronstats.stats.view import NEURON, BlockView, Column, LayerTotals, Lists, Section, unknown

if TYPE_CHECKING:
    from neuronstats.stats.ngram_counts import NgramCounts, NgramRows

WORDS = {1: "token", 2: "bigram", 3: "trigram"}
# First number of each bin of covering n-grams (figs. 2, 12, 13); 0: only BOS activates the neuron.
COVER_BINS = (0, 1, 6, 51, 501, 5001)

ROW_COLUMNS = (
    N := Column("n", "int32", "tokens of the n-gram"),
    TOKEN_IDS := Column("token_ids", "list<int32>", "its tokens, in reading order"),
    TEXT := Column("text", "string", "the same as text"),
    OCCURRENCES := Column("occurrences", "int64", "times that it occurs in the text"),
    ACTIVATIONS := Column("activations", "int64", "those on which the neuron was activated"),
    RATE := Column("rate", "float64", "activations / occurrences"),
    SHARE := Column("share", "float64", "activations / the neuron's counted activations"),
)


def cover(n: int | str) -> Column:
    """Return the column of the covering number."""
    meaning = (
        f"fewest distinct {n}-grams that account for cover_share of its counted activations; 0"
        " where nothing was counted; null without bitmaps"
    )
    return Column(f"cover_{n}", "int32", meaning)


def detector(n: int | str) -> Column:
    """Return the column that tells a detector."""
    meaning = f"it detects the {n}-grams that activate it; null without bitmaps"
    return Column(f"detector_{n}", "bool", meaning)


def columns(lengths: Sequence[int | str]) -> tuple[Column, ...]:
    """Return the columns of neurons.parquet."""
    return (*map(cover, lengths), *map(detector, lengths))


LAYER_COUNTS = {
    "detectors": "detectors of {n}-grams (figs. 3a, 14a)",
    "detectors_loose": "the same if all {n}-grams may count as detected, in the cover or not",
    "detectors_few": "detectors whose {n}-grams occur fewer than few_occurrences times in all",
    "detected": "distinct {n}-grams with a detector in this layer (figs. 3b, 14b)",
    "detected_cumulative": "the same in this layer or one below (dashed)",
    "new_overall": "of detected_{n}, those that no layer below detects (figs. 4, 15)",
    "new_to_previous": "of detected_{n}, those that the layer just below does not detect",
}


def layer_count(name: str, n: int | str) -> Column:
    """Return one of the columns of `LAYER_COUNTS`."""
    return Column(f"{name}_{n}", "int64", LAYER_COUNTS[name].format(n=n))


def cover_bins(n: int | str) -> Column:
    """Return the column of neurons by bins of the covering number."""
    bins = ", ".join(map(str, COVER_BINS))
    meaning = f"neurons not dead by cover_{n}; the bins begin at {bins} (figs. 2, 12, 13)"
    return Column(f"cover_bins_{n}", "list<int64>", meaning)


def layer_columns(lengths: Sequence[int | str]) -> tuple[Column, ...]:
    """Return the columns of layers.parquet."""
    counts = (layer_count(name, n) for n in lengths for name in LAYER_COUNTS)
    return (*counts, *map(cover_bins, lengths))


def section(view: BlockView, settings: ReduceSettings) -> Section:
    """Count the n-grams that activate each neuron; unknown in a layer without bitmaps."""
    from neuronstats.stats.ngram_counts import count_ngrams  # compiles: not for the names above

    lengths = settings.ngrams
    declared = partial(_layer_columns, tuple(lengths))
    if view.bits is None:
        width = view.num_neurons
        return Section(
            {cover(n): unknown(width, np.int32) for n in lengths}
            | {detector(n): unknown(width, np.bool_) for n in lengths},
            layer_columns=declared,
            tables={"ngrams": _rows(view, {}), "triggers": _rows(view, {})},
        )
    found = count_ngrams(view.bits, view.ngram_ids, settings)
    alive = view.activations > 0
    sums: dict[Column | str, Any] = {}
    for n, counts in found.items():
        bins = np.searchsorted(COVER_BINS, counts.cover[alive], side="right") - 1
        sums[f"detectors_{n}"] = int(counts.detector.sum())
        sums[f"detectors_loose_{n}"] = int(counts.detector_loose.sum())
        sums[f"detectors_few_{n}"] = _on_few_occurrences(counts, settings.few_occurrences)
        sums[f"cover_bins_{n}"] = np.bincount(bins, minlength=len(COVER_BINS))
    return Section(
        {cover(n): found[n].cover for n in lengths}
        | {detector(n): found[n].detector for n in lengths},
        layer_sums=sums,
        layer_sets={f"detected_{n}": np.unique(found[n].detected.ngram) for n in found},
        layer_columns=declared,
        tables={
            "ngrams": _rows(view, {n: counts.detected for n, counts in found.items()}),
            "triggers": _rows(view, {n: counts.triggers for n, counts in found.items()}),
        },
    )


def _on_few_occurrences(found: "NgramCounts", least: int) -> int:
    """Count the detectors whose detected n-grams occur fewer than `least` times in all."""
    occurrences = np.bincount(
        found.detected.neuron, found.detected.occurrences, len(found.detector)
    )
    return int(np.count_nonzero(found.detector & (occurrences < least)))


def _layer_columns(lengths: Sequence[int], totals: LayerTotals) -> dict[Column, Any]:
    """Compute a layer's row: what it detects, against the layers below it; None without bitmaps."""
    values: dict[str, Any] = dict(totals.sums)
    for n in lengths if totals.sets else ():
        name = f"detected_{n}"
        none = np.zeros(0, np.uint32)
        here, below = totals.sets[name], totals.below.get(name, none)
        new = np.isin(here, below, invert=True)
        values[name] = len(here)
        values[f"detected_cumulative_{n}"] = len(below) + int(new.sum())
        values[f"new_overall_{n}"] = int(new.sum())
        previous = totals.previous.get(name, none)
        values[f"new_to_previous_{n}"] = int(np.isin(here, previous, invert=True).sum())
    return {column: values.get(column.name) for column in layer_columns(lengths)}


def _rows(view: BlockView, found: Mapping[int, "NgramRows"]) -> dict[Column, Any]:
    """Return rows of all lengths: of a neuron by n, falling activations, token ids."""
    parts = [found[n] for n in sorted(found)]
    ids = [row for part in parts for row in part.token_ids.tolist()]

    def joined(name: str, dtype: Any) -> Any:
        return np.concatenate([np.zeros(0, dtype), *(getattr(part, name) for part in parts)])

    lengths = np.array([len(row) for row in ids], np.int64)
    tokens = [part.token_ids.ravel() for part in parts]
    return {
        NEURON: joined("neuron", np.int32),
        N: lengths.astype(np.int32),
        TOKEN_IDS: Lists(np.concatenate([np.zeros(0, np.int32), *tokens]), lengths),
        TEXT: np.array([view.text(row) for row in ids], object),
        OCCURRENCES: joined("occurrences", np.int64),
        ACTIVATIONS: joined("activations", np.int64),
        RATE: joined("rate", np.float64),
        SHARE: joined("share", np.float64),
    }
