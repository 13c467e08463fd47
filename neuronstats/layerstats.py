"""Blocks of neurons -> whole tables: neurons in order, and what the figures by layer show."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuronstats.position_types import TYPES
from neuronstats.store import Layout
from neuronstats.suppress import SCHEMA, LayerSuppression, LayerTokens, layer_tokens
from neuronstats.tables import masked

NEVER_SEEN_BOUND = 3.0  # one-sided 95 % upper bound of a count of which none was seen

Counts = NDArray[np.int64]
Ngram = tuple[int, ...]


@dataclass(frozen=True)
class BlockResult:
    """What a block adds to the tables."""

    neurons: pa.Table
    domains: pa.Table
    ngrams: pa.Table
    triggers: pa.Table
    loose: dict[int, int]
    """Detectors under the loose reading, by n."""
    activations: Counts
    """Of each shard, for the layer's sum to be held against the shard's record."""
    never: Counts
    """Neurons not yet activated after each shard, in the order of `spread`."""


class Merge:
    """Takes the blocks' results in order and gives the tables that need all of them.

    Args:
        layout: the run's.
        ngrams: lengths counted.
        num_tokens: tokens seen.
    """

    def __init__(self, layout: Layout, ngrams: Sequence[int], num_tokens: int) -> None:
        self._layout, self._ngrams, self._tokens = layout, ngrams, num_tokens
        self._neurons: list[list[pa.Table]] = [[] for _ in range(layout.num_layers)]
        self._detected: dict[int, list[set[Ngram]]] = {
            n: [set() for _ in range(layout.num_layers)] for n in ngrams
        }
        self._loose: dict[int, Counts] = {n: np.zeros(layout.num_layers, np.int64) for n in ngrams}
        self._activations: list[Counts | int] = [0] * layout.num_layers
        self._never: list[Counts | int] = [0] * layout.num_layers
        self._tokens_detected: list[dict[int, list[int]]] = [{} for _ in range(layout.num_layers)]
        self._top_tokens: list[dict[int, list[int]]] = [{} for _ in range(layout.num_layers)]
        self._suppression: dict[int, LayerSuppression] = {}

    def add(self, layer: int, result: BlockResult) -> None:
        """Take one block's result."""
        self._neurons[layer].append(result.neurons)
        self._activations[layer] = self._activations[layer] + result.activations
        self._never[layer] = self._never[layer] + result.never
        for n, count in result.loose.items():
            self._loose[n][layer] += count
        for n, ids in zip(
            result.ngrams["n"].to_pylist(), result.ngrams["token_ids"].to_pylist(), strict=True
        ):
            self._detected[n][layer].add(tuple(ids))
        _gather(self._tokens_detected[layer], result.ngrams)
        _gather(self._top_tokens[layer], result.triggers)

    def layer_tokens(self) -> list[LayerTokens]:
        """Return the layers with token detectors, and what is to be projected in each."""
        tasks = []
        for layer, detected in enumerate(self._tokens_detected):
            if detected:
                top = self._top_tokens[layer]
                tasks.append(layer_tokens(layer, detected, top, sorted(top)))
        return tasks

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
        return np.stack([np.asarray(a) for a in self._activations], axis=1)

    def neurons(self) -> pa.Table:
        """Return neurons.parquet, sorted by layer and neuron."""
        whole = pa.concat_tables([table for layer in self._neurons for table in layer])
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
        for layer, never in enumerate(self._never):
            columns = {
                "layer": np.full(len(tokens), layer, np.int32),
                "tokens": np.asarray(tokens, np.int64),
                "neurons": np.full(len(tokens), self._layout.num_neurons, np.int64),
                "dead": np.asarray(never, np.int64),
            }
            parts.append(pa.table(columns))
        return pa.concat_tables(parts)

    def layers(self, neurons: pa.Table) -> pa.Table:
        """Return layers.parquet from the finished table of neurons."""
        return pa.Table.from_pylist(
            [self._layer(index, neurons) for index in range(self._layout.num_layers)],
            schema=self._schema(),
        )

    def _schema(self) -> pa.Schema:
        counts = ("detectors", "detectors_loose", "detected", "detected_cumulative")
        per_n = (*counts, "new_overall", "new_to_previous")
        return pa.schema(
            [
                ("layer", pa.int32()),
                ("neurons", pa.int64()),
                ("dead", pa.int64()),
                ("dead_share", pa.float64()),
                ("dead_frequency_bound", pa.float64()),
                ("alive_frequency", pa.float64()),
                *[(f"{name}_{n}", pa.int64()) for n in self._ngrams for name in per_n],
                ("suppressing_share", pa.float64()),
                ("suppressing_shuffled_share", pa.float64()),
                ("suppressing_control_share", pa.float64()),
                ("positional", pa.int64()),
                *[(kind, pa.int64()) for kind in TYPES],
                *[(f"{kind}_strong", pa.int64()) for kind in TYPES],
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
        return row

    def _frequency(self, alive: pa.Table) -> float | None:
        """Mean frequency, from whole numbers: the same however the rows came in blocks."""
        if not len(alive):
            return None
        return float(pc.sum(alive["activations"]).as_py() / (self._tokens * len(alive)))

    def _ngram_counts(self, layer: int, n: int, rows: pa.Table) -> dict[str, int]:
        """Figs. 3, 4, 14, 15: what one layer detects, against the layers below it."""
        here = self._detected[n][layer]
        below: set[Ngram] = set().union(*self._detected[n][:layer])
        previous = self._detected[n][layer - 1] if layer else set()
        return {
            f"detectors_{n}": pc.sum(rows[f"detector_{n}"], min_count=0).as_py(),
            f"detectors_loose_{n}": int(self._loose[n][layer]),
            f"detected_{n}": len(here),
            f"detected_cumulative_{n}": len(here | below),
            f"new_overall_{n}": len(here - below),
            f"new_to_previous_{n}": len(here - previous),
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
