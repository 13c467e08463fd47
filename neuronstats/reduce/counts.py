"""Position counts of all shards -> positions.zarr, a layer a task: every object is read once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from neuronstats.errors import UserError
from neuronstats.hashing import checksum
from neuronstats.machine import PROCESS_BYTES, Term, allocator
from neuronstats.store.bitmaps import decode
from neuronstats.store.faults import REPAIR, damage, storage_errors
from neuronstats.store.layout import PARTIAL, POSITIONS, ZARR, Layout, Record, Shard
from neuronstats.store.run import Run

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class LayerCounts:
    """The task of adding up one layer's position counts."""

    layer: int

    def __str__(self) -> str:
        return f"position counts of layer {self.layer}"


def corrupt(what: str) -> UserError:
    """Build the error for stored bytes that differ from their commit."""
    return UserError(f"the {what} is not what was committed: {REPAIR}.")


def sequences_by_domain(run: Run, shards: Sequence[Shard]) -> dict[str, int]:
    """Count the shards' sequences of each of the run's domains."""
    sequences = dict.fromkeys(run.layout.domains, 0)
    for shard in shards:
        sequences[shard.domain] += shard.num_sequences
    return sequences


def create_positions(
    run: Run,
    shards: Sequence[Shard],
    num_layers: int,
    part_neurons: int,
    metadata: Mapping[str, Any],
) -> None:
    """Create positions.zarr beside the old tables, for the workers to fill in chunks of neurons.

    `metadata` becomes the group's attributes.
    """
    layout = run.layout
    store = run.folder.zarr_store(f"{PARTIAL}/{POSITIONS}", read_only=False)
    root = zarr.create_group(store, overwrite=True, attributes=dict(metadata))
    names = ("layer", "position", "neuron")
    shape = (num_layers, layout.num_positions, layout.num_neurons)
    chunks = (1, layout.num_positions, part_neurons)
    codec = ZstdCodec(level=1, checksum=True)
    root.create_array(
        "counts",
        shape=shape,
        chunks=chunks,
        dtype=np.int64,
        dimension_names=names,
        compressors=codec,
    )
    by_domain = root.create_array(
        "counts_by_domain",
        shape=(len(layout.domains), *shape),
        chunks=(1, *chunks),
        dtype=np.int64,
        dimension_names=("domain", *names),
        compressors=codec,
    )
    sequences = sequences_by_domain(run, shards)
    by_domain.attrs["domains"] = list(sequences)
    by_domain.attrs["sequences"] = list(sequences.values())
    by_shard = root.create_array(
        "counts_by_shard",
        shape=(len(shards), num_layers, layout.num_neurons),
        chunks=(len(shards), 1, part_neurons),
        dtype=np.uint32,
        dimension_names=("shard", "layer", "neuron"),
        compressors=codec,
    )
    by_shard.attrs["shards"] = [shard.index for shard in shards]


class LayerCounter:
    """Adds up a layer's position counts, from whole objects compared with their commits."""

    def __init__(
        self, run: Run, shards: Sequence[Shard], records: Mapping[int, Record], positions: Any
    ) -> None:
        self._run, self._shards, self._records = run, shards, records
        self._positions = positions

    def __call__(self, task: LayerCounts) -> Counts:
        """Write a layer's counts; return the activations of each shard, int64 [shard]."""
        layout = self._run.layout
        self._run.require("position_counts", task.layer)
        by_shard = np.zeros((len(self._shards), layout.num_neurons), np.uint32)
        for start in range(0, layout.num_neurons, layout.neurons_per_count_object):
            neurons = slice(start, min(start + layout.neurons_per_count_object, layout.num_neurons))
            self._add(task.layer, neurons, by_shard[:, neurons])
        with storage_errors("write", f"{self._run.folder.location}/{PARTIAL}"):
            self._positions["counts_by_shard"][:, task.layer, :] = by_shard
        return by_shard.sum(axis=1, dtype=np.int64)

    def _add(self, layer: int, neurons: slice, by_shard: NDArray[np.uint32]) -> None:
        """Add up one object's neurons over all shards; fill their sums, uint32 [shard, neuron]."""
        layout = self._run.layout
        width = neurons.stop - neurons.start
        total = np.zeros((layout.num_positions, width), np.int64)
        for domain, name in enumerate(layout.domains):
            counts = np.zeros((layout.num_positions, width), np.uint32)
            for index, shard in enumerate(self._shards):
                if shard.domain == name:
                    own = self._read(layer, neurons.start, shard)
                    if own is not None:
                        counts += own[:, :width]
                        by_shard[index] = own[:, :width].sum(axis=0, dtype=np.uint32)
            total += counts
            with storage_errors("write", f"{self._run.folder.location}/{PARTIAL}"):
                self._positions["counts_by_domain"][domain, layer, :, neurons] = counts
        with storage_errors("write", f"{self._run.folder.location}/{PARTIAL}"):
            self._positions["counts"][layer, :, neurons] = total

    def _read(self, layer: int, first: int, shard: Shard) -> NDArray[np.unsignedinteger] | None:
        """Read an object, [position, neuron]; None where none was committed: all are zero."""
        layout = self._run.layout
        part = first // layout.neurons_per_count_object
        key = f"position_counts/{layer:03d}/c/{shard.index}/0/{part}"
        committed = self._records[shard.index].objects.get(key)
        if committed is None:
            return None
        data = self._run.folder.read(f"{ZARR}/{key}")
        if data is None or (len(data), checksum(data)) != committed:
            raise corrupt(f"object {ZARR}/{key} of {shard}")
        shape = (layout.num_positions, layout.neurons_per_count_object)
        counts = np.empty(shape, layout.count_dtype.newbyteorder("<"))
        with damage(f"position counts of layer {layer} of {shard}", REPAIR):
            decode(data, counts)
        if counts.max(initial=0) > shard.num_sequences:
            raise corrupt(f"position counts of layer {layer} of {shard}")
        return counts


def memory_terms(layout: Layout, num_shards: int) -> tuple[Term, ...]:
    """Bound the memory of a worker that adds up a layer, by what it is for."""
    cells = layout.num_positions * layout.neurons_per_count_object
    terms = [
        Term("process", PROCESS_BYTES),
        Term("position counts", cells * (4 + 8 + 3 * layout.count_dtype.itemsize)),
        Term("position counts as written", 2 * 8 * cells),
        Term("counts by shard", 2 * 4 * num_shards * layout.num_neurons),
    ]
    return (*terms, allocator(terms))
