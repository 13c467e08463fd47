"""Blocks of neurons -> whole tables, written as the blocks arrive: one layer is held at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuronstats.machine import Term
from neuronstats.reduce.block import BlockResult, most_parts, part_neurons
from neuronstats.reduce.project import LayerSuppression, LayerTokens, layer_tokens
from neuronstats.reduce.rows import to_table
from neuronstats.stats.dead import dead_curve
from neuronstats.stats.settings import ReduceSettings
from neuronstats.stats.view import LAYER, Column, LayerTotals, Section, unite, unknown
from neuronstats.store.layout import Layout
from neuronstats.store.tables import GROUP_ROWS, TableFiles

BY_LAYER = "neurons_by_layer"  # neurons.parquet before what detectors write is known
# Bytes of a row in memory; measured on the embedded model: 83 of neurons, 66 of triggers, 50 of
# domains.
NEURON_BYTES, NGRAM_BYTES, DOMAIN_BYTES = 128, 96, 64

Counts = NDArray[np.int64]
Sets = Mapping[str, NDArray[Any]]
Task = TypeVar("Task")
Result = TypeVar("Result", BlockResult, LayerSuppression)


@dataclass
class _Layer:
    """What the blocks of the layer in hand add up to."""

    neurons: list[pa.Table] = field(default_factory=list)
    """Rows of the blocks' neurons."""
    sections: list[Section] = field(default_factory=list)
    """Sums and sets of each section."""
    detected: dict[int, list[int]] = field(default_factory=dict)
    """Detected tokens of each token detector."""
    top_tokens: dict[int, list[int]] = field(default_factory=dict)
    """Most frequent triggering tokens of each neuron."""


class Gather:
    """Writes the tables from the blocks' results, which come in the order of the blocks.

    Args:
        files: the tables.
        layout: the run's.
        tokens_seen: after each shard, in the order of `interleave_domains`, int64 [shard].
    """

    def __init__(self, files: TableFiles, layout: Layout, tokens_seen: Counts) -> None:
        self._signed = bool(layout.sums)
        self._files, self._num_neurons, self._tokens_seen = files, layout.num_neurons, tokens_seen
        self._layer = _Layer()
        self._previous: list[Sets] = []
        self._below: list[Sets] = []
        self._rows: list[dict[Column, Any]] = []
        self._suppression: dict[int, LayerSuppression] = {}
        self.peak_bytes = 0
        """Memory that any worker has held at most."""
        self.layer_tokens: list[LayerTokens] = []
        """Of the whole layers with token detectors, or, where neurons write in either direction,
        with triggers: what is to be projected."""

    def add(self, result: BlockResult) -> None:
        """Write one block's rows, and add it to its layer."""
        layer = self._layer
        for name, table in result.tables.items():
            if name == "neurons":
                layer.neurons.append(table)
            else:
                self._files.append(name, table)
        self.peak_bytes = max(self.peak_bytes, result.peak_bytes)
        layer.sections = (
            [a.with_next(b) for a, b in zip(layer.sections, result.sections, strict=True)]
            if layer.sections
            else result.sections
        )
        _gather_tokens(layer.detected, result.tables.get("ngrams"))
        _gather_tokens(layer.top_tokens, result.tables.get("triggers"))
        if sum(map(len, layer.neurons)) == self._num_neurons:
            self._finish_layer()

    def _finish_layer(self) -> None:
        """Compute the row of a layer whose blocks are all there, and start the next."""
        number, layer = len(self._rows), self._layer
        self._files.append(BY_LAYER, pa.concat_tables(layer.neurons), group=True)
        row: dict[Column, Any] = {LAYER: number}
        previous = self._previous or [{} for _ in layer.sections]
        below = self._below or [{} for _ in layer.sections]
        for section, its_previous, its_below in zip(layer.sections, previous, below, strict=True):
            totals = LayerTotals(section.layer_sums, section.layer_sets, its_previous, its_below)
            row |= section.layer_columns(totals)
            if "dead_after_shard" in section.layer_sums:
                curve = dead_curve(number, totals, self._tokens_seen)
                self._files.append("dead_curve", to_table(curve))
        top = layer.top_tokens
        if self._signed and top:
            others = {neuron: top[neuron] for neuron in top if neuron not in layer.detected}
            self.layer_tokens.append(LayerTokens(number, layer.detected, others))
        elif layer.detected:
            self.layer_tokens.append(layer_tokens(number, layer.detected, top, sorted(top)))
        self._previous = [section.layer_sets for section in layer.sections]
        self._below = [unite(*pair) for pair in zip(below, self._previous, strict=True)]
        self._rows.append(row)
        self._layer = _Layer()

    def add_suppression(self, found: LayerSuppression) -> None:
        """Write what one layer's detectors write on their tokens; layers come in order."""
        for name, table in found.tables.items():
            self._files.append(name, table)
        self._rows[found.layer] |= found.columns
        self._suppression[found.layer] = replace(found, tables={})

    def finish(self) -> None:
        """Write the tables that need all blocks: neurons and layers."""
        for layer in self._files.take(BY_LAYER):
            self._files.append("neurons", self._with_suppression(layer), group=True)
        values = {column: [row[column] for row in self._rows] for column in self._rows[0]}
        self._files.append("layers", to_table(values))

    def _with_suppression(self, neurons: pa.Table) -> pa.Table:
        """Fill a layer's columns of suppression."""
        found = self._suppression.get(neurons["layer"][0].as_py())
        if found is None or not {c.name for c in found.neuron_columns} <= {*neurons.column_names}:
            return neurons
        columns = {}
        for column, known in found.neuron_columns.items():
            columns[column] = unknown(len(neurons), known.dtype)
            columns[column][found.neurons] = known
        filled = to_table(columns)
        for field_, values in zip(filled.schema, filled.columns, strict=True):
            index = neurons.schema.get_field_index(field_.name)
            neurons = neurons.set_column(index, field_, values)
        return neurons

    def summary(self) -> str:
        """Write what was found, in one line."""
        totals: dict[str, int] = {}
        for row in self._rows:
            for column, value in row.items():
                if column.kind == "int64":
                    totals[column.name] = totals.get(column.name, 0) + (value or 0)
        words = [("neurons", "neurons"), ("dead", "dead"), ("detectors_1", "token detectors")]
        words += [("never_open", "never open"), ("positional", "positional")]
        return ", ".join(f"{totals[name]} {word}" for name, word in words if name in totals)


def memory_terms(
    layout: Layout,
    num_layers: int,
    num_tokens: int,
    num_shards: int,
    settings: ReduceSettings,
) -> list[Term]:
    """Bound what `Gather` holds of so many layers, tokens and shards, by what it is for."""
    neurons = layout.num_neurons
    at_most = min(num_layers, layout.num_bitmaps) * neurons
    detected = sum(min(num_tokens, at_most * settings.max_cover[n]) for n in settings.ngrams)
    tokens = 64 * neurons * (settings.top_triggers + settings.max_cover.get(1, 0))
    per_neuron = NEURON_BYTES + DOMAIN_BYTES * len(layout.domains)
    if layout.num_bitmaps:
        rows = sum(settings.top_triggers + settings.max_cover[n] for n in settings.ngrams)
        per_neuron += NGRAM_BYTES * rows
    widest = min(neurons, most_parts(layout, num_tokens) * part_neurons(layout, num_tokens))
    return [
        Term("a block's rows", 2 * per_neuron * widest),  # as sent and as a table
        Term("rows to be written", GROUP_ROWS * (3 * NGRAM_BYTES + DOMAIN_BYTES)),
        Term("a layer's neurons", 3 * NEURON_BYTES * neurons),  # read, joined, written
        Term("a layer's triggers", tokens if layout.num_bitmaps else 0),
        Term("detected n-grams", 4 * 4 * detected),
        Term("sums by layer", 16 * num_layers * (num_shards + layout.num_positions)),
    ]


def in_order(
    results: Iterator[tuple[Task, Result]], work: Sequence[Task], files: TableFiles
) -> Iterator[tuple[Task, Result]]:
    """Yield results in the order of the work; the rows of early ones wait on disk."""
    places = {str(task): place for place, task in enumerate(work)}
    waiting: dict[int, tuple[Result, Any]] = {}
    following = 0
    for task, result in results:
        place = places[str(task)]
        if place != following:
            waiting[place] = (replace(result, tables={}), files.park(result.tables))
            continue
        yield task, result
        following += 1
        while following in waiting:
            early, bring_back = waiting.pop(following)
            yield work[following], replace(early, tables=bring_back())
            following += 1


def _gather_tokens(tokens: dict[int, list[int]], rows: pa.Table | None) -> None:
    """Add the tokens of a block's unigrams, whose neurons ascend, in the rows' order."""
    if rows is None:
        return
    single = rows.filter(pc.equal(rows["n"], 1))
    neurons = single["neuron"].to_numpy()
    firsts = np.flatnonzero(np.diff(neurons, prepend=-1))
    ids = np.split(pc.list_flatten(single["token_ids"]).to_numpy(), firsts[1:])
    tokens.update(zip(neurons[firsts].tolist(), (own.tolist() for own in ids), strict=False))
