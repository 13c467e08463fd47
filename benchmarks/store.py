"""The sweep with its results written to a real run folder, as a collect worker writes them."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.forward import Bitmaps, Swept
from benchmarks.subject import Subject, Tokens
from neuronstats.collect.worker import write_layers
from neuronstats.corpus.corpus import Corpus
from neuronstats.store.commit import ShardWriter
from neuronstats.store.create import new_run
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import Layout, make_shards
from neuronstats.store.run import Run


def create_run(
    folder: Path,
    tokens: Tokens,
    num_layers: int,
    num_neurons: int,
    shard_sequences: int,
    model: Mapping[str, Any],
) -> Run:
    """Make an empty run in a new folder: one domain, bitmaps of all layers.

    Args:
        folder: for it.
        tokens: ids [sequence, position].
        num_layers: of the run.
        num_neurons: of each layer.
        shard_sequences: sequences of a shard.
        model: what the run says of its model.
    """
    num_sequences, num_positions = tokens.shape
    corpus = Corpus(
        tokens=tokens,
        domain=np.zeros(num_sequences, np.int16),
        row=np.arange(num_sequences),
        domains=("bench",),
    )
    layout = Layout(
        num_layers=num_layers,
        num_bitmaps=num_layers,
        num_neurons=num_neurons,
        num_positions=num_positions,
        shard_sequences=shard_sequences,
        domains=corpus.domains,
        shards=make_shards(corpus, shard_sequences),
    )
    identity = {"data.tokens": corpus.fingerprint}
    info = {"fingerprint": "bench", "identity": identity, "model": dict(model)}
    return new_run(RunFolder(str(folder), create=True), corpus, layout, info)


class Written:
    """Sweeps one shard and commits it, again and again to the same place."""

    def __init__(self, subject: Subject, swept: Swept, folder: Path) -> None:
        """Make a run in a new folder."""
        self._subject, self._swept = subject, swept
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="writer")
        shape, num_sequences = subject.shape, len(subject.tokens)
        self._run = create_run(
            folder, subject.tokens, swept.num_layers, shape.neurons, num_sequences, {}
        )

    def on_one_core(self) -> None:
        """Do everything on one core: compute, then compress and write, layer by layer."""
        with pinned():
            writer = ShardWriter(self._run, self._run.layout.shards[0])
            for record in self._swept.sweep(self._subject.tokens):
                writer.write_layer(record.layer, record.bitmap, record.position_counts)
            writer.commit()

    def with_thread(self) -> None:
        """Write layers in a thread while the next ones are computed, as a collect worker does."""
        writer = ShardWriter(self._run, self._run.layout.shards[0])
        for _ in write_layers(self._swept.sweep(self._subject.tokens), writer, self._writing):
            pass

    def read(self) -> Bitmaps:
        """Read back what was written last."""
        layout = self._run.layout
        return [
            self._run.read_bits(layer, slice(None), layout.shards)
            for layer in range(layout.num_bitmaps)
        ]

    def stored_bytes(self) -> int:
        """Bytes on disk of bitmaps and counts."""
        records = self._run.records().values()
        return sum(size for record in records for size, _ in record.objects.values())

    def close(self) -> None:
        """End the writer thread."""
        self._writing.shutdown()


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Keep every thread of this process on one core."""
    before = os.sched_getaffinity(0)
    _set_affinity({min(before)})
    try:
        yield
    finally:
        _set_affinity(before)


def _set_affinity(cores: set[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)
