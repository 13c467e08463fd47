"""The same neuron in several runs over the same tokens: a pair of runs and a layer a task."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from neuronstats.bits import packed_bytes
from neuronstats.cluster.pool import Pool
from neuronstats.console import Console
from neuronstats.errors import SettingsError
from neuronstats.machine import PROCESS_BYTES, Term, allocator
from neuronstats.reduce.rows import to_table
from neuronstats.stats import matches
from neuronstats.stats.view import LAYER, NEURON, Column
from neuronstats.store.layout import MATCHES
from neuronstats.store.run import Run

READ_NEURONS = 256  # bitmaps read at a time, of all tokens: of them those compared are kept


@dataclass(frozen=True)
class MatchTask:
    """A layer of the first run, held against that of another."""

    other: int
    layer: int

    def __str__(self) -> str:
        return f"matches of layer {self.layer} in run {self.other}"


def num_layers_to_match(runs: Sequence[Run]) -> int:
    """Return how many first layers of some runs can be matched.

    Raises:
        SettingsError: a run has other tokens than the first, or no bitmaps.
    """
    first = runs[0]
    for run in runs:
        where = run.folder.location
        if run.about.tokens_fingerprint != first.about.tokens_fingerprint:
            raise SettingsError(
                f"match_tokens: {where} was collected on other tokens than"
                f" {first.folder.location}; neurons are matched over the same tokens: collect both"
                " with the same data settings and tokenizer, or leave match_tokens out."
            )
        if not run.layout.num_bitmaps:
            raise SettingsError(
                f"match_tokens: {where} has no bitmaps, which neurons are matched by: collect with"
                " collect.bitmaps=all, or leave match_tokens out."
            )
        if len(run.record_keys()) < len(run.layout.shards):
            raise SettingsError(
                f"match_tokens: {where} is not finished: run collect again to the end, or leave"
                " match_tokens out."
            )
    return min(run.layout.num_bitmaps for run in runs)


def match(
    runs: Sequence[Run],
    num_layers: int,
    num_tokens: int,
    pool: Pool,
    console: Console,
) -> bool:
    """Write the matches of the first run's neurons in the others, and back, into its folder.

    Args:
        runs: over the same tokens.
        num_layers: see `num_layers_to_match`.
        num_tokens: compare at most so many, whole sequences spread evenly.
        pool: of workers of `memory_terms`.
        console: for progress and what was found.

    Returns:
        Whether all was done.
    """
    layers = range(num_layers)
    tasks = [MatchTask(other, layer) for other in range(1, len(runs)) for layer in layers]
    args = ([run.folder.location for run in runs], num_tokens)
    found: dict[MatchTask, pa.Table] = {}
    with console.progress("match", len(tasks), "layers") as advance:
        for task, table in pool.run(MatchWorker, args, tasks):
            found[task] = table
            advance(1, str(task))
    if len(found) < len(tasks):
        return False
    table = pa.concat_tables([found[task] for task in tasks])
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    runs[0].folder.write(MATCHES, sink.getvalue())
    console.say(
        f"matched: {len(runs) - 1} runs against {runs[0].folder.location}, {len(layers)} layers,"
        f" {table['tokens'][0].as_py():,} tokens: {runs[0].folder.location}/{MATCHES}"
    )
    return True


def memory_terms(runs: Sequence[Run], num_tokens: int) -> tuple[Term, ...]:
    """Bound the memory of a worker, by what it is for."""
    layout = runs[0].layout
    row = packed_bytes(layout.num_positions)
    compared = row * len(compared_sequences(layout.num_sequences, layout.num_positions, num_tokens))
    neurons = sum(sorted(run.layout.num_neurons for run in runs)[-2:])
    terms = [
        Term("process", PROCESS_BYTES),
        Term("bits as read", 2 * READ_NEURONS * row * layout.num_sequences),
        Term("bits compared", 3 * neurons * (compared + 8)),  # picked, shuffled, as words
        Term("pairs", 5 * 8 * matches.BLOCK * neurons),
    ]
    return (*terms, allocator(terms))


def compared_sequences(
    num_sequences: int, num_positions: int, num_tokens: int
) -> NDArray[np.int64]:
    """Return the sequences that are compared, spread evenly, at least one: int64 [sequence]."""
    count = min(num_sequences, max(1, num_tokens // num_positions))
    return np.linspace(0, num_sequences - 1, count).round().astype(np.int64)


class MatchWorker:
    """Matches a layer's neurons of the first run with those of another.

    Args:
        locations: the runs.
        num_tokens: see `match`.
    """

    def __init__(self, locations: Sequence[str], num_tokens: int) -> None:
        self._runs = [Run.open(location, patient=True) for location in locations]
        layout = self._runs[0].layout
        self._sequences = compared_sequences(layout.num_sequences, layout.num_positions, num_tokens)
        self._num_tokens = len(self._sequences) * layout.num_positions
        self._moved = matches.shuffled(self._runs[0].corpus().domain[self._sequences])

    def __call__(self, task: MatchTask) -> pa.Table:
        """Match one layer: the rows of both directions."""
        runs = self._runs[0], self._runs[task.other]
        first, second = (self._bits(run, task.layer) for run in runs)
        words = matches.words(first)
        best = matches.best_matches(words, matches.words(second), self._num_tokens)
        control = matches.best_matches(
            words, matches.words(second[:, self._moved]), self._num_tokens
        )
        names = [run.fingerprint for run in runs]
        sides = [
            self._rows(names, task.layer, best, control),
            self._rows(names[::-1], task.layer, best[::-1], control[::-1]),
        ]
        return pa.concat_tables(sides)

    def _bits(self, run: Run, layer: int) -> NDArray[np.uint8]:
        """Read the bits [neuron, sequence, byte] of the sequences that are compared."""
        width = run.layout.num_neurons
        step = max(1, READ_NEURONS // run.layout.neurons_per_chunk) * run.layout.neurons_per_chunk
        parts = (slice(start, min(start + step, width)) for start in range(0, width, step))
        return np.concatenate(
            [run.read_bits(layer, part, run.layout.shards)[:, self._sequences] for part in parts]
        )

    def _rows(
        self,
        names: Sequence[str],
        layer: int,
        best: Sequence[matches.Best],
        control: Sequence[matches.Best],
    ) -> pa.Table:
        own, back = best
        size = len(own.neuron)
        unknown = own.neuron < 0
        columns: dict[Column, Any] = {
            matches.RUN: [names[0]] * size,
            matches.OTHER: [names[1]] * size,
            LAYER: np.full(size, layer, np.int32),
            NEURON: np.arange(size, dtype=np.int32),
            matches.MATCH: np.ma.masked_array(own.neuron.astype(np.int32), unknown),
            matches.CORRELATION: np.ma.masked_array(own.correlation, unknown),
            matches.CONTROL: np.ma.masked_array(control[0].correlation, control[0].neuron < 0),
            matches.MUTUAL: np.ma.masked_array(
                back.neuron[own.neuron.clip(0)] == np.arange(size), unknown
            ),
            matches.TOKENS: np.full(size, self._num_tokens),
        }
        return to_table(columns)
