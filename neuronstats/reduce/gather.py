"""Blocks of neurons -> whole tables: neurons in order, and what the figures by layer show."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuronstats.reduce.project import SCHEMA, LayerSuppression, LayerTokens, layer_tokens
from neuronstats.stats.curves import TYPES
from neuronstats.stats.position_coverage import Coverage
from neuronstats.store.layout import Layout
from neuronstats.store.tables import masked

NEVER_SEEN_BOUND = 3.0  # one-sided 95 % upper bound of a count of which none was seen

Counts = NDArray[np.int64]
Ngram = tuple[int, ...]


# First number of each bin of covering n-grams (figs. 2, 12, 13); 0: only BOS activates the neuron.
COVER_BINS = (0, 1, 6, 51, 501, 5001)


@dataclass(frozen=True)
class BlockResult:
    """What a block adds to the tables."""

    neurons: pa.Table
    domains: pa.Table
    ngrams: pa.Table
    triggers: pa.Table
    loose: dict[int, int]
    """Detectors under the loose reading, by n."""
    few: dict[int, int]
    """Detectors that rest on few occurrences, by n."""
    activations: Counts
    """Of each shard, for the layer's sum to be held against the shard's record."""
    never: Counts
    """Neurons not yet activated after each shard, in the order of `spread`."""
    indicated: Counts
    """Strong oscillatory neurons that indicate each position, int64 [position]."""
    peak_bytes: int
    """Memory that the worker has held at most so far."""


@dataclass
class _LayerSums:
    """What a layer's blocks add up to."""

    neurons: list[pa.Table] = field(default_factory=list)
    detected: dict[int, set[Ngram]] = field(default_factory=dict)
    loose: dict[int, int] = field(default_factory=dict)
    few: dict[int, int] = field(default_factory=dict)
    activations: Counts | int = 0
    never: Counts | int = 0
    indicated: Counts | int = 0
    tokens_detected: dict[int, list[int]] = field(default_factory=dict)
    """Of each token detector."""
    top_tokens: dict[int, list[int]] = field(default_factory=dict)
    """Of each neuron; forgotten once the layer is whole."""

    @property
    def width(self) -> int:
        """Neurons so far."""
        return sum(len(table) for table in self.neurons)


class Merge:
    """Takes the blocks' results in order and gives the tables that need all of them.

    Args:
        layout: the run's.
        num_layers: the first layers, which are reduced.
        ngrams: lengths counted.
        num_tokens: tokens seen.
    """

    def __init__(
        self, layout: Layout, num_layers: int, ngrams: Sequence[int], num_tokens: int
    ) -> None:
        self._layout, self._ngrams, self._tokens = layout, ngrams, num_tokens
        self._layers = [_LayerSums() for _ in range(num_layers)]
        self._suppression: dict[int, LayerSuppression] = {}
        self.peak_bytes = 0
        """Memory that any worker has held at most."""
        self.layer_tokens: list[LayerTokens] = []
        """Of the layers that are whole and have token detectors: what is to be projected."""

    def add(self, layer: int, result: BlockResult) -> None:
        """Take one block's result."""
        sums = self._layers[layer]
        self.peak_bytes = max(self.peak_bytes, result.peak_bytes)
        sums.neurons.append(result.neurons)
        sums.activations = sums.activations + result.activations
        sums.never = sums.never + result.never
        sums.indicated = sums.indicated + result.indicated
        for total, own in ((sums.loose, result.loose), (sums.few, result.few)):
            for n, count in own.items():
                total[n] = total.get(n, 0) + count
        for n, ids in zip(
            result.ngrams["n"].to_pylist(), result.ngrams["token_ids"].to_pylist(), strict=True
        ):
            sums.detected.setdefault(n, set()).add(tuple(ids))
        _gather(sums.tokens_detected, result.ngrams)
        _gather(sums.top_tokens, result.triggers)
        if sums.width == self._layout.num_neurons:
            if sums.tokens_detected:
                top = sums.top_tokens
                self.layer_tokens.append(
                    layer_tokens(layer, sums.tokens_detected, top, sorted(top))
                )
            sums.top_tokens = {}

    def add_suppression(self, layer: int, found: LayerSuppression) -> None:
        """Take what one layer's detectors write on their tokens."""
        self._suppression[layer] = found

    def suppression(self) -> pa.Table:
        """Return suppression.parquet: a row per token detector."""
        tables = [self._suppression[layer].table for layer in sorted(self._suppression)]
        return pa.concat_tables([SCHEMA.empty_table(), *tables])

    @property
    def activations(self) -> Counts:
        """Activations of each shard and layer, int64 [shard, layer]."""
        return np.stack([np.asarray(sums.activations) for sums in self._layers], axis=1)

    def neurons(self) -> pa.Table:
        """Return neurons.parquet, sorted by layer and neuron."""
        whole = pa.concat_tables([table for sums in self._layers for table in sums.neurons])
        means = np.full(len(whole), np.nan)
        for layer, found in self._suppression.items():
            means[layer * self._layout.num_neurons + np.array(found.neurons)] = (
                found.trigger_projection
            )
        judged = ~np.isnan(means)
        for name, values, kind in [
            ("suppresses", means < 0, pa.bool_()),
            ("trigger_projection", means, pa.float64()),
        ]:
            column = masked(values, judged, kind)
            whole = whole.set_column(whole.schema.get_field_index(name), name, column)
        return whole

    def dead_curve(self, tokens: Sequence[int]) -> pa.Table:
        """Return neurons that were never activated by tokens seen, by layer.

        Args:
            tokens: seen after each shard, in the order of the blocks' counts.
        """
        parts = []
        for layer, sums in enumerate(self._layers):
            columns = {
                "layer": np.full(len(tokens), layer, np.int32),
                "tokens": np.asarray(tokens, np.int64),
                "neurons": np.full(len(tokens), self._layout.num_neurons, np.int64),
                "dead": np.asarray(sums.never, np.int64),
            }
            parts.append(pa.table(columns))
        return pa.concat_tables(parts)

    def layers(self, neurons: pa.Table) -> pa.Table:
        """Return layers.parquet from the finished table of neurons."""
        return pa.Table.from_pylist(
            [self._layer(index, neurons) for index in range(len(self._layers))],
            schema=self._schema(),
        )

    def _schema(self) -> pa.Schema:
        counts = ("detectors", "detectors_loose", "detectors_few", "detected")
        per_n = (*counts, "detected_cumulative", "new_overall", "new_to_previous")
        return pa.schema(
            [
                ("layer", pa.int32()),
                ("neurons", pa.int64()),
                ("dead", pa.int64()),
                ("dead_share", pa.float64()),
                ("dead_frequency_bound", pa.float64()),
                ("alive_frequency", pa.float64()),
                *[(f"{name}_{n}", pa.int64()) for n in self._ngrams for name in per_n],
                *[(f"cover_bins_{n}", pa.list_(pa.int64())) for n in self._ngrams],
                ("suppressing_share", pa.float64()),
                ("suppressing_shuffled_share", pa.float64()),
                ("suppressing_control_share", pa.float64()),
                ("positional", pa.int64()),
                *[(kind, pa.int64()) for kind in TYPES],
                *[(f"{kind}_strong", pa.int64()) for kind in TYPES],
                ("position_consistency", pa.float64()),
                ("oscillatory_coverage", pa.float64()),
                ("oscillatory_redundancy", pa.float64()),
            ]
        )

    def _layer(self, layer: int, neurons: pa.Table) -> dict[str, Any]:
        width = self._layout.num_neurons
        rows = neurons.slice(layer * width, width)
        alive = rows.filter(pc.invert(rows["dead"]))
        dead = width - len(alive)
        row: dict[str, Any] = {
            "layer": layer,
            "neurons": width,
            "dead": dead,
            "dead_share": dead / width,
            "dead_frequency_bound": NEVER_SEEN_BOUND / self._tokens,
            "alive_frequency": self._frequency(alive),
            "suppressing_share": pc.mean(rows["suppresses"].cast(pa.float64())).as_py(),
            "positional": len(rows) - rows["position_type"].null_count,
        }
        if layer in self._suppression:
            row["suppressing_shuffled_share"] = self._suppression[layer].shuffled_share
            row["suppressing_control_share"] = self._suppression[layer].control_share
        if layer < self._layout.num_bitmaps:
            for n in self._ngrams:
                row |= self._ngram_counts(layer, n, rows)
        for kind in TYPES:
            of_kind = rows.filter(pc.equal(rows["position_type"], kind))
            row[kind] = len(of_kind)
            row[f"{kind}_strong"] = pc.sum(of_kind["position_strong"], min_count=0).as_py()
        row["position_consistency"] = pc.mean(rows["position_consistency"]).as_py()
        if row["oscillatory_strong"]:
            found = Coverage.of(np.asarray(self._layers[layer].indicated))
            row["oscillatory_coverage"] = found.share
            row["oscillatory_redundancy"] = found.redundancy if found.share else None
        return row

    def _frequency(self, alive: pa.Table) -> float | None:
        """Mean frequency, from whole numbers: the same however the rows came in blocks."""
        if not len(alive):
            return None
        return float(pc.sum(alive["activations"]).as_py() / (self._tokens * len(alive)))

    def _ngram_counts(self, layer: int, n: int, rows: pa.Table) -> dict[str, Any]:
        """Figs. 2-4, 12-15: what one layer detects, against the layers below it."""
        sets = [sums.detected.get(n, set()) for sums in self._layers[: layer + 1]]
        here, below = sets[-1], set().union(*sets[:-1])
        previous = sets[-2] if layer else set()
        cover = rows.filter(pc.invert(rows["dead"]))[f"cover_{n}"].to_numpy()
        which = np.searchsorted(COVER_BINS, cover, side="right") - 1
        return {
            f"detectors_{n}": pc.sum(rows[f"detector_{n}"], min_count=0).as_py(),
            f"detectors_loose_{n}": self._layers[layer].loose[n],
            f"detectors_few_{n}": self._layers[layer].few[n],
            f"detected_{n}": len(here),
            f"detected_cumulative_{n}": len(here | below),
            f"new_overall_{n}": len(here - below),
            f"new_to_previous_{n}": len(here - previous),
            f"cover_bins_{n}": np.bincount(which, minlength=len(COVER_BINS)).tolist(),
        }


def _gather(tokens: dict[int, list[int]], rows: pa.Table) -> None:
    """Add the tokens of a table's unigrams to those of their neurons, in the rows' order."""
    single = rows.filter(pc.equal(rows["n"], 1))
    ids = pc.list_flatten(single["token_ids"]).to_pylist()
    for neuron, token in zip(single["neuron"].to_pylist(), ids, strict=True):
        tokens.setdefault(neuron, []).append(token)


def summary(neurons: pa.Table) -> str:
    """Say what was found, in one line."""
    dead = pc.sum(neurons["dead"], min_count=0).as_py()
    words = [f"{len(neurons)} neurons, {dead} dead"]
    if "detector_1" in neurons.column_names:
        words.append(f"{pc.sum(neurons['detector_1'], min_count=0).as_py()} token detectors")
    words.append(f"{len(neurons) - neurons['position_type'].null_count} positional")
    return ", ".join(words)
