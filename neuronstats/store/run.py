"""The format on disk (docs/format.md): created once, written by shards, committed by records.

RUN/run.yaml                                   settings, versions, identity and its fingerprint
RUN/activations.zarr/tokens                    [sequence, position] ids
RUN/activations.zarr/domain, row               [sequence]
RUN/activations.zarr/bitmaps/LLL               [neuron, shard, sequence, byte]
RUN/activations.zarr/position_counts/LLL       [shard, position, neuron]
RUN/activations.zarr/records/SSSSS.json        one shard's commit
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import yaml
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from neuronstats import bits
from neuronstats.corpus.corpus import Corpus
from neuronstats.errors import SettingsError, UserError
from neuronstats.hashing import checksum
from neuronstats.store.folder import RunFolder, told
from neuronstats.store.layout import OBJECT_BYTES, RUN_FILE, ZARR, Layout, Record, Shard

FORMAT = 1

UInt8 = NDArray[np.uint8]


class Run:
    """An existing run, read and written by its shards."""

    def __init__(self, folder: RunFolder, info: Mapping[str, Any]) -> None:
        self.folder = folder
        self.info = info
        raw = dict(info["layout"])
        raw["domains"] = tuple(raw["domains"])
        raw["shards"] = tuple(Shard(**shard) for shard in raw["shards"])
        self.layout = Layout(**raw)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the numbers."""
        return str(self.info["fingerprint"])

    @property
    def left_out_id(self) -> int:
        """The token that n-grams and contexts leave out.

        It is the begin-of-sequence token; where there is none, the one between documents; -1 where
        there is no such token either.
        """
        model = self.info["model"]
        found = [model["bos_token_id"], model.get("separator_id"), -1]
        return int(next(token for token in found if token is not None))

    @classmethod
    def open(cls, location: str) -> "Run":
        """Open a run folder.

        Raises:
            SettingsError: there is no run.
            UserError: it has another format.
        """
        folder = RunFolder(location)
        info = read_info(folder)
        if info is None:
            raise SettingsError(
                f"{folder.location} holds no run ({RUN_FILE} is missing): expected a folder that"
                " jobs/collect.py wrote; check run=."
            )
        return cls(folder, info)

    @classmethod
    def create(
        cls, folder: RunFolder, corpus: Corpus, layout: Layout, info: Mapping[str, Any]
    ) -> "Run":
        """Lay down all metadata and the tokens; run.yaml is written last and makes the run exist.

        Raises:
            UserError: nothing can be written, or run.yaml was lost from a run with shards.
        """
        if folder.sizes(f"{ZARR}/records"):
            raise UserError(
                f"{folder.location} holds committed shards, but its {RUN_FILE} is gone: put it"
                " back, or give another run folder (run=)."
            )
        folder.clear(f"{ZARR}/")  # the remains of a creation that was cut off: there is no run.yaml
        with told("write", f"{folder.location}/{ZARR}"):
            store = folder.zarr_store(ZARR, read_only=False)
            root = zarr.create_group(store, attributes={"format": FORMAT})
            _array(
                root, "tokens", corpus.tokens.shape, corpus.tokens.dtype, ("sequence", "position")
            )
            root["tokens"][:] = corpus.tokens
            columns: dict[str, NDArray[Any]] = {"domain": corpus.domain, "row": corpus.row}
            for name, values in columns.items():
                _array(root, name, values.shape, values.dtype, ("sequence",))
                root[name][:] = values
            root["domain"].attrs["domains"] = list(corpus.domains)
            _create_layers(root, layout)
        full = {"format": FORMAT, **info, "layout": json.loads(json.dumps(asdict(layout)))}
        if not folder.create(RUN_FILE, yaml.safe_dump(full, sort_keys=False).encode()):
            raise UserError(
                f"{folder.location}/{RUN_FILE} appeared meanwhile: is another job on it?"
            )
        return cls(folder, full)

    def zarr(self, *, writable: bool = False, on_write: Any = None) -> Any:
        """Return the Zarr group activations.zarr."""
        store = self.folder.zarr_store(ZARR, read_only=not writable, on_write=on_write)
        try:
            return zarr.open_group(store, mode="r+" if writable else "r", use_consolidated=False)
        except FileNotFoundError:
            raise UserError(
                f"{self.folder.location}/{ZARR} is missing: the run cannot be read without it."
            ) from None

    def corpus(self) -> Corpus:
        """Read the tokens, checked against the fingerprint they were written with.

        Raises:
            UserError: the stored tokens are not those of the run.
        """
        root = self.zarr()
        with _damage(
            f"{self.folder.location}/{ZARR}/tokens", "the run cannot be mended; collect anew"
        ):
            corpus = Corpus(
                tokens=root["tokens"][:],
                domain=root["domain"][:],
                domains=self.layout.domains,
                row=root["row"][:],
            )
            if corpus.fingerprint != self.info["identity"]["data.tokens"]:
                raise ValueError("its content has changed")
        return corpus

    def records(self) -> dict[int, Record]:
        """Return the committed shards' records by index.

        Raises:
            UserError: a record is unreadable or of another run.
        """
        keys = [key for key in self.folder.sizes(f"{ZARR}/records") if key.endswith(".json")]
        records = {}
        for key in sorted(keys):
            try:
                record = Record.loads(self.folder.read(key) or b"")
                known = record.shard == self.layout.shards[record.shard.index]
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise UserError(
                    f"{self.folder.location}/{key} is damaged ({error}). Delete it: collect then"
                    " computes its shard again."
                ) from error
            if record.fingerprint != self.fingerprint or not known:
                raise UserError(
                    f"{self.folder.location}/{key} belongs to another run (fingerprint"
                    f" {record.fingerprint}, expected {self.fingerprint}). Delete it."
                )
            records[record.shard.index] = record
        return records

    def damaged(self, records: Iterable[Record], *, contents: bool = True) -> dict[int, str]:
        """Find committed shards whose objects are not what was committed.

        Args:
            records: the shards to look at.
            contents: read every byte and compare checksums; otherwise existence and size only.

        Returns:
            The first thing wrong with each damaged shard, by index.
        """
        sizes = self.folder.sizes(ZARR)
        damage: dict[int, str] = {}
        for record in records:
            for key, (size, digest) in record.objects.items():
                path = f"{ZARR}/{key}"
                found = sizes.get(path)
                if found is None:
                    damage[record.shard.index] = f"{path} is missing"
                elif found != size:
                    damage[record.shard.index] = f"{path} has {found} bytes, committed were {size}"
                elif contents and checksum(self.folder.read(path) or b"") != digest:
                    damage[record.shard.index] = f"{path} has changed since it was committed"
                else:
                    continue
                break
        return damage

    def forget(self, shard: Shard) -> None:
        """Delete a shard's record, so that it is computed again."""
        self.folder.remove(f"{ZARR}/{Record.key(shard.index)}")

    def array(self, root: Any, kind: str, layer: int) -> Any:
        """Return a layer's array of a kind.

        Raises:
            UserError: its metadata cannot be read.
        """
        name = f"{kind}/{layer:03d}"
        with _damage(f"{self.folder.location}/{ZARR}/{name}", "its metadata must be put back"):
            return root[name]

    def read_bits(self, layer: int, neurons: slice, shards: Sequence[Shard]) -> UInt8:
        """Read bitmaps.

        Returns:
            uint8 [neuron, sequence, byte], the shards' sequences one after another.
        """
        array = self.array(self.zarr(), "bitmaps", layer)
        width = bits.packed_bytes(self.layout.num_positions)
        first, last = neurons.indices(self.layout.num_neurons)[:2]
        out = np.empty((last - first, sum(s.num_sequences for s in shards), width), np.uint8)
        start = 0
        for shard in shards:
            end = start + shard.num_sequences
            with _damage(f"layer {layer} of {shard}", REPAIR):
                out[:, start:end] = array[neurons, shard.index, : shard.num_sequences]
            start = end
        return out

    def read_position_counts(
        self, layer: int, neurons: slice, shards: Sequence[Shard]
    ) -> Iterator[tuple[Shard, NDArray[np.int64]]]:
        """Yield each shard's int64 [position, neuron] counts of one layer."""
        array = self.array(self.zarr(), "position_counts", layer)
        for shard in shards:
            with _damage(f"position counts of layer {layer} of {shard}", REPAIR):
                counts = array[shard.index, :, neurons]
            yield shard, counts.astype(np.int64)


REPAIR = "collect again with repair=true computes it again"


class _damage:
    """Say which stored thing cannot be read, and the way out."""

    def __init__(self, what: str, cure: str) -> None:
        self._what, self._cure = what, cure

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            reason = str(error).split("\n")[0] or type(error).__name__
            raise UserError(f"{self._what} cannot be read ({reason}): {self._cure}.") from error


def read_info(folder: RunFolder) -> dict[str, Any] | None:
    """Return run.yaml's content, or None where there is no run.

    Raises:
        UserError: it is no run.yaml of this format.
    """
    data = folder.read(RUN_FILE)
    if data is None:
        return None
    try:
        info = yaml.safe_load(data)
        version = info["format"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{folder.location}/{RUN_FILE} is damaged ({reason}): put it back."
        ) from error
    if version != FORMAT:
        raise UserError(
            f"{folder.location} has format {version}; this version of neuronstats reads {FORMAT}."
        )
    lost = [key for key in ("fingerprint", "identity", "layout") if key not in info]
    if lost:
        raise UserError(
            f"{folder.location}/{RUN_FILE} is damaged ({lost[0]} is gone): put it back."
        )
    return dict(info)


def _array(
    root: Any, name: str, shape: tuple[int, ...], dtype: Any, names: tuple[str, ...], **layout: Any
) -> None:
    codec = ZstdCodec(level=1, checksum=True)
    root.create_array(
        name,
        shape=shape,
        dtype=dtype,
        dimension_names=names,
        compressors=codec,
        fill_value=0,
        **layout,
    )


def _create_layers(root: Any, layout: Layout) -> None:
    width = bits.packed_bytes(layout.num_positions)
    tail = (layout.shard_sequences, width)
    chunk, whole = layout.neurons_per_chunk, layout.neurons_per_object
    for layer in range(layout.num_bitmaps):
        _array(
            root,
            f"bitmaps/{layer:03d}",
            (layout.num_neurons, len(layout.shards), *tail),
            np.uint8,
            ("neuron", "shard", "sequence", "byte"),
            chunks=(chunk, 1, *tail),
            shards=(whole, 1, *tail) if whole > chunk else None,
        )
    for layer in range(layout.num_layers):
        block = max(1, min(layout.num_neurons, OBJECT_BYTES // 4 // layout.num_positions))
        _array(
            root,
            f"position_counts/{layer:03d}",
            (len(layout.shards), layout.num_positions, layout.num_neurons),
            layout.count_dtype,
            ("shard", "position", "neuron"),
            chunks=(1, layout.num_positions, block),
        )
