"""A reduced run, opened for reading: its tables, curves, tokens and bits, each when asked for."""

import io
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray

from neuronstats import bits
from neuronstats.errors import UserError
from neuronstats.store import tables
from neuronstats.store.layout import MATCHES, POSITIONS, TABLES, Shard
from neuronstats.store.manifest import Manifest
from neuronstats.store.run import Run

Counts = NDArray[np.int64]
UInt8 = NDArray[np.uint8]


class ReducedRun:
    """One reduced run.

    Args:
        location: the run folder, or an object-store URL.

    Raises:
        SettingsError: there is no run.
        UserError: it was not reduced, or its tables are of another run.
    """

    def __init__(self, location: str) -> None:
        """Open the run and read its tables of neurons and layers."""
        self.run = Run.open(location)
        self.location = self.run.folder.location
        self.layout = self.run.layout
        self._manifest = Manifest.read(self.run.folder)
        for name in ("neurons", "layers"):
            self._manifest.verify(f"{name}.parquet")
        self.neurons: pa.Table = tables.read_table(self.run.folder, "neurons")
        self.layers: pa.Table = tables.read_table(self.run.folder, "layers")
        self.metadata = tables.table_metadata(self.neurons)
        self._manifest.require(self.metadata)
        if self.metadata["fingerprint"] != self.run.fingerprint:
            raise UserError(
                f"{self.location}/{TABLES} was made from another run (fingerprint"
                f" {self.metadata['fingerprint']}, the run's is {self.run.fingerprint}): run"
                f" jobs/reduce.py run={self.location} again."
            )

    @property
    def name(self) -> str:
        """The model's name."""
        return self.run.about.model_name

    @property
    def data(self) -> str:
        """The data's name."""
        return self.run.about.data_name

    @property
    def tokens(self) -> int:
        """Tokens behind the tables."""
        return int(self.metadata["tokens"])

    @property
    def num_sequences(self) -> int:
        """Sequences behind the tables."""
        return self.tokens // self.layout.num_positions

    @property
    def model_layers(self) -> int:
        """Layers of the whole model, recorded or not."""
        return self.run.about.num_layers

    @property
    def num_layers(self) -> int:
        """The first layers, which were reduced."""
        return len(self.layers)

    @property
    def bitmap_layers(self) -> int:
        """Those of them with bitmaps, whose n-grams were counted."""
        return min(self.num_layers, self.layout.num_bitmaps)

    @property
    def has_positions(self) -> bool:
        """Whether the model has positional embeddings."""
        return self.run.about.has_positions

    @property
    def depth(self) -> NDArray[np.float64]:
        """Each layer relative to the model's depth: 0 the first, 1 the last."""
        return np.arange(self.num_layers) / max(1, self.model_layers - 1)

    @property
    def bos_id(self) -> int:
        """The begin-of-sequence token, or what n-grams and contexts leave out in its place."""
        return self.run.about.bos_id

    @property
    def never(self) -> str:
        """The column of neurons never activated: never_open where closed gates write, else dead."""
        return "dead" if "dead" in self.neurons.column_names else "never_open"

    @property
    def ngrams(self) -> list[int]:
        """Lengths of n-grams counted."""
        return [int(n) for n in self.metadata["settings"]["ngrams"]]

    @property
    def shards(self) -> list[Shard]:
        """The shards behind the tables: all, or, in a partial run, those committed.

        Raises:
            UserError: shards were committed since the partial tables were made.
        """
        if self.metadata["complete"]:
            return list(self.layout.shards)
        committed = sorted(self.run.records())
        if len(committed) != self.metadata["shards"]:
            raise UserError(
                f"{self.location} has {len(committed)} shards, its partial tables were made of"
                f" {self.metadata['shards']}: run jobs/reduce.py run={self.location} again."
            )
        return [self.layout.shards[index] for index in committed]

    def setting(self, name: str, default: Any = None) -> Any:
        """Return one of the reduce settings that made the tables."""
        return self.metadata["settings"].get(name, default)

    def column(self, name: str) -> NDArray[Any] | None:
        """Return a column of layers.parquet as floats, NaN for null; None without any value."""
        if name not in self.layers.column_names or self.layers[name].null_count == len(self.layers):
            return None
        return self.layers[name].cast(pa.float64()).to_numpy(zero_copy_only=False)

    def has(self, name: str) -> bool:
        """Return whether a column of neurons.parquet is there and holds anything."""
        if name not in self.neurons.column_names:
            return False
        return bool(self.neurons[name].null_count < len(self.neurons))

    def meanings(self, name: str = "neurons") -> dict[str, str]:
        """Return one line on each column of a table; nothing where the run has none of this name.

        Tables made before columns said their meaning have empty lines.
        """
        file = self._file(name)
        fields = [] if file is None else file.schema_arrow
        return {
            field.name: (field.metadata or {}).get(tables.MEANING, b"").decode() for field in fields
        }

    def table(self, name: str) -> pa.Table | None:
        """Return a whole table; None where the run has none of this name."""
        file = self._file(name)
        return None if file is None else file.read()

    @cached_property
    def matches(self) -> pa.Table | None:
        """The table of this run's neurons and other runs', as reduce left it; None without one."""
        found = self.run.folder.read(MATCHES)
        return None if found is None else pq.read_table(io.BytesIO(found))

    def batches(self, name: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield a table in pieces, in order; nothing where the run has none of this name."""
        file = self._file(name)
        for index in range(0 if file is None else file.num_row_groups):
            yield file.read_row_group(index, columns=columns)

    def rows(
        self, name: str, layer: int, first: int, last: int, columns: list[str] | None = None
    ) -> pa.Table | None:
        """Return a table's rows of a layer's neurons from `first` to below `last`.

        Only the groups that they are in are read. The table has the columns layer and neuron, and
        so have `columns`; None: all of them.
        """
        file = self._file(name)
        if file is None:
            return None
        names = file.schema_arrow.names
        keys = (names.index("layer"), names.index("neuron"))
        groups = []
        for index in range(file.num_row_groups):
            group = file.metadata.row_group(index)
            spans = [group.column(key).statistics for key in keys]
            if any(span is None or not span.has_min_max for span in spans):
                groups.append(index)
            elif spans[0].min <= layer <= spans[0].max:
                one_layer = spans[0].min == spans[0].max
                if not one_layer or (spans[1].min < last and spans[1].max >= first):
                    groups.append(index)
        found = file.read_row_groups(groups, columns) if groups else file.schema_arrow.empty_table()
        here = pc.and_(pc.equal(found["layer"], layer), pc.greater_equal(found["neuron"], first))
        return found.filter(pc.and_(here, pc.less(found["neuron"], last)))

    def verify_tables(self) -> None:
        """Compare every table with what was written, and look at the positions' metadata.

        Raises:
            UserError: one is not what was written.
        """
        for name in self._manifest.objects or ():
            if name.endswith(".parquet"):
                self._file(name.removesuffix(".parquet"))
        _ = self.domain_sequences

    def _file(self, name: str) -> Any:
        if name not in self._files:
            self._manifest.verify(f"{name}.parquet")
            self._files[name] = tables.open_table(self.run.folder, name)
        return self._files[name]

    @cached_property
    def _files(self) -> dict[str, Any]:
        return {}

    @cached_property
    def _positions(self) -> Any:
        store = self.run.folder.zarr_store(
            f"{TABLES}/{POSITIONS}", read_only=True, on_read=self._manifest.verifier(POSITIONS)
        )
        try:
            return zarr.open_group(store, mode="r", use_consolidated=False)
        except FileNotFoundError:
            raise UserError(
                f"{self.location}/{TABLES}/{POSITIONS} is missing: run"
                f" jobs/reduce.py run={self.location} again."
            ) from None

    def position_counts(self, layer: int, neurons: slice) -> Counts:
        """Return activations by position, int64 [position, neuron]."""
        return np.asarray(self._positions["counts"][layer, :, neurons])

    def position_counts_by_domain(self, layer: int, neurons: slice) -> Counts:
        """Return activations by domain and position, int64 [domain, position, neuron]."""
        return np.asarray(self._positions["counts_by_domain"][:, layer, :, neurons])

    def shard_counts(self, layer: int, neurons: slice) -> NDArray[np.uint32]:
        """Return the activations of each shard, uint32 [shard, neuron], shards as in `shards`."""
        return np.asarray(self._positions["counts_by_shard"][:, layer, neurons])

    @cached_property
    def domain_sequences(self) -> dict[str, int]:
        """Sequences of each domain behind the tables."""
        attributes = self._positions["counts_by_domain"].attrs
        return dict(zip(attributes["domains"], attributes["sequences"], strict=True))

    @cached_property
    def token_ids(self) -> NDArray[np.integer[Any]]:
        """Token ids [sequence, position] of the shards behind the tables, in the bits' order."""
        ids = self.run.corpus().tokens
        return np.concatenate([ids[shard.sequences] for shard in self.shards])

    @cached_property
    def sequence_domains(self) -> NDArray[np.int64]:
        """The domain's index of each sequence of token_ids."""
        indices = [self.layout.domains.index(shard.domain) for shard in self.shards]
        return np.repeat(indices, [shard.num_sequences for shard in self.shards])

    def bits(self, layer: int, neurons: slice) -> UInt8:
        """Return bitmaps, uint8 [neuron, sequence, byte], sequences as in token_ids.

        What is read is compared with the checksum of its chunk, or, where all of an object is read,
        with that of its commit.

        Raises:
            UserError: the run keeps none for this layer, or they are damaged.
        """
        if layer >= self.layout.num_bitmaps:
            raise UserError(
                f"layer {layer} of {self.location} has no bitmaps: they are kept for the first"
                f" {self.layout.num_bitmaps} layers (collect.bitmaps)."
            )
        return self.run.read_bits(layer, neurons, self.shards, self._committed)

    @cached_property
    def _committed(self) -> dict[str, tuple[int, str]] | None:
        """Size and checksum of the objects that are read whole; None where parts are read."""
        if not self.layout.reads_whole_objects:
            return None
        records = self.run.records().values()
        return {key: written for record in records for key, written in record.objects.items()}

    def activated(self, layer: int, neuron: int) -> NDArray[np.bool_]:
        """Return the tokens on which a neuron was activated, bool [sequence, position].

        Raises:
            UserError: the run keeps no bitmaps for this layer.
        """
        bitmap = self.bits(layer, slice(neuron, neuron + 1))[0]
        return bits.unpack(bitmap, self.layout.num_positions)

    def curve(self, layer: int, neuron: int) -> NDArray[np.float64]:
        """Return a neuron's activation frequency at each position, float64 [position]."""
        counts = self.position_counts(layer, slice(neuron, neuron + 1))[:, 0]
        return counts / self.num_sequences


def matches_of(runs: Sequence[ReducedRun], number: int, other: int) -> pa.Table | None:
    """Return what is known of one run's neurons in another, a row a neuron, sorted.

    Args:
        runs: the runs that may have the table.
        number: the run whose neurons the rows are.
        other: the run that their matches are of.
    """
    names = [run.run.fingerprint for run in runs]
    for run in runs:
        if run.matches is not None:
            is_pair = pc.and_(
                pc.equal(run.matches["run"], names[number]),
                pc.equal(run.matches["other"], names[other]),
            )
            found = run.matches.filter(is_pair)
            if len(found):
                return found
    return None


def labels(runs: Sequence[ReducedRun]) -> list[str]:
    """Name runs so that no two share a name: the model, else its data too, else its folders."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.name} ({run.data})" for run in runs]
    if len(set(names)) < len(names):
        folders = [run.location.rstrip("/").rsplit("/", 1)[-1] for run in runs]
        names = [f"{run.name} ({folder})" for run, folder in zip(runs, folders, strict=True)]
    if len(set(names)) < len(names):
        places = [run.location.rstrip("/").split("/")[-2:] for run in runs]
        names = [f"{run.name} ({'/'.join(place)})" for run, place in zip(runs, places, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name} #{index + 1}" for index, name in enumerate(names)]
    return names
