"""The sweep with its results written to a real run folder, as a collect worker writes them."""

from pathlib import Path

import numpy as np

from benchmarks.forward import Bitmaps, Swept
from benchmarks.subject import Subject
from neuronstats.collect.writing import Writing
from neuronstats.corpus.corpus import Corpus
from neuronstats.store.commit import ShardWriter
from neuronstats.store.create import new_run
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import Layout, make_shards


class Written:
    """Sweeps one shard and commits it, again and again to the same place."""

    def __init__(self, subject: Subject, swept: Swept, folder: Path) -> None:
        """Make a run in a new folder."""
        self._subject, self._swept = subject, swept
        self._writing = Writing()
        shape, num_sequences = subject.shape, len(subject.tokens)
        corpus = Corpus(
            tokens=subject.tokens,
            domain=np.zeros(num_sequences, np.int16),
            row=np.arange(num_sequences),
            domains=("bench",),
        )
        layout = Layout(
            num_layers=swept.num_layers,
            num_bitmaps=swept.num_layers,
            num_neurons=shape.neurons,
            num_positions=subject.tokens.shape[1],
            shard_sequences=num_sequences,
            domains=corpus.domains,
            shards=make_shards(corpus, num_sequences),
        )
        info = {"fingerprint": "bench", "identity": {}, "model": {}}
        self._run = new_run(RunFolder(str(folder), create=True), corpus, layout, info)

    def with_thread(self) -> None:
        """Write layers in a thread while the next ones are computed, as a collect worker does."""
        writer = ShardWriter(self._run, self._run.layout.shards[0])
        for _ in self._writing.layers(self._swept.sweep(self._subject.tokens), writer):
            pass
        self._writing.commit(writer).result()

    def read(self) -> Bitmaps:
        """Read back what was written last."""
        layout = self._run.layout
        return [
            self._run.read_bits(layer, slice(None), layout.shards)
            for layer in range(layout.num_bitmaps)
        ]

    def stored_bytes(self) -> int:
        """Return the bytes on disk of bitmaps and counts."""
        records = self._run.records().values()
        return sum(size for record in records for size, _ in record.objects.values())

    def close(self) -> None:
        """End the writer thread."""
        self._writing.close()
