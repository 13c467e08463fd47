"""The format on disk (docs/format.md): a run, opened for reading and writing.

RUN/run.yaml                                   settings, versions, identity and its fingerprint
RUN/activations.zarr/tokens                    [sequence, position] ids
RUN/activations.zarr/domain, row               [sequence]
RUN/activations.zarr/bitmaps/LLL               [neuron, shard, sequence, byte]
RUN/activations.zarr/position_counts/LLL       [shard, position, neuron]
RUN/activations.zarr/sums/LLL                  [shard, quantity, neuron], not of OPT
RUN/activations.zarr/token_sums/LLL            [shard, token, neuron], not of OPT
RUN/activations.zarr/records/SSSSS.json        one shard's commit
"""

import copy
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import yaml
import zarr
from numpy.typing import NDArray

from neuronstats.corpus.corpus import Corpus
from neuronstats.errors import SettingsError, UserError
from neuronstats.hashing import checksum
from neuronstats.store.bitmaps import BitmapReader
from neuronstats.store.faults import LAID_DOWN, REPAIR, damage
from neuronstats.store.folder import RunFolder
from neuronstats.store.info import RunInfo
from neuronstats.store.layout import RUN_FILE, ZARR, Layout, Record, Shard

FORMAT = 1
# What run.yaml must hold, and below it what every job reads of it.
REQUIRED = {"fingerprint": (), "identity": ("data.tokens",), "layout": ()}

# What reading a damaged record leads to.
DAMAGED_JSON = (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)

UInt8 = NDArray[np.uint8]
READERS, PAGE = 16, 256  # an object store answers many at a time as fast as one

Key = TypeVar("Key")
Answer = TypeVar("Answer")


def in_pages(call: Callable[[Key], Answer], keys: Iterable[Key]) -> Iterator[tuple[Key, Answer]]:
    """Call a function for each key, several at a time; yield both in their order.

    At most PAGE answers are held.
    """
    left = iter(keys)
    with ThreadPoolExecutor(READERS, thread_name_prefix="reader") as pool:
        while page := list(itertools.islice(left, PAGE)):
            yield from zip(page, pool.map(call, page), strict=True)


class Run:
    """An existing run, read and written by its shards."""

    def __init__(self, folder: RunFolder, info: Mapping[str, Any]) -> None:
        self.folder = folder
        self.info = info
        self._seen: set[tuple[str, int]] = set()
        try:
            self.layout = Layout.read(info["layout"])
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged_info(folder, f"layout: {error}") from error

    @property
    def about(self) -> RunInfo:
        """What made it, by name."""
        return RunInfo(self.info, f"{self.folder.location}/{RUN_FILE}")

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the numbers."""
        return str(self.info["fingerprint"])

    @property
    def laid_down(self) -> dict[str, list[Any]]:
        """Size and checksum of what was laid down at first; empty in the oldest runs."""
        return dict(self.info.get("objects", {}))

    @classmethod
    def open(cls, location: str, *, patient: bool = False) -> "Run":
        """Open a run folder.

        Args:
            location: a path, or a URL of an object store.
            patient: wait for an object store that does not answer: another process has used it.

        Raises:
            SettingsError: there is no run.
            UserError: it has another format.
        """
        folder = RunFolder(location, patient=patient)
        info = read_info(folder)
        if info is None:
            raise SettingsError(
                f"{folder.location} holds no run ({RUN_FILE} is missing): expected a folder that"
                " jobs/collect.py wrote; check run=."
            )
        return cls(folder, info)

    def zarr(self, *, writable: bool = False, on_write: Any = None) -> Any:
        """Return the Zarr group activations.zarr."""
        store = self.folder.zarr_store(ZARR, read_only=not writable, on_write=on_write)
        with damage(f"{self.folder.location}/{ZARR}/zarr.json", LAID_DOWN):
            return zarr.open_group(store, mode="r+" if writable else "r", use_consolidated=False)

    def corpus(self) -> Corpus:
        """Read the tokens, checked against the fingerprint they were written with.

        Raises:
            UserError: the stored tokens are not those of the run.
        """
        root = self.zarr()
        with damage(f"{self.folder.location}/{ZARR}/tokens", LAID_DOWN):
            corpus = Corpus(
                tokens=root["tokens"][:],
                domain=root["domain"][:],
                domains=self.layout.domains,
                row=root["row"][:],
            )
            if corpus.fingerprint != self.about.tokens_fingerprint:
                raise ValueError("its content has changed")
        return corpus

    def record_keys(self) -> list[str]:
        """Return the keys of the records there are, damaged ones included."""
        return sorted(k for k in self.folder.sizes(f"{ZARR}/records") if k.endswith(".json"))

    def records(self, damaged: dict[str, str] | None = None) -> dict[int, Record]:
        """Return the committed shards' records by index.

        Args:
            damaged: is told what is wrong with a record, by its key, instead of an error.

        Raises:
            UserError: a record is unreadable or of another run.
        """
        records = {}
        for key, data in in_pages(self.folder.read, self.record_keys()):
            try:
                record = Record.loads(data or b"")
                known = record.shard == self.layout.shards[record.shard.index]
                whole = len(record.activations) == self.layout.num_layers
                whole = whole and key.endswith(Record.key(record.shard.index))
                wrong = "" if whole else "is damaged"
                if record.fingerprint != self.fingerprint or not known:
                    wrong = (
                        f"belongs to another run (fingerprint {record.fingerprint}, expected"
                        f" {self.fingerprint})"
                    )
            except DAMAGED_JSON as error:
                wrong = f"is damaged ({type(error).__name__}: {error})"
            if not wrong:
                records[record.shard.index] = record
            elif damaged is not None:
                damaged[key] = wrong
            else:
                raise UserError(f"{self.folder.location}/{key} {wrong}; {REPAIR}.")
        return records

    def damaged_layout(self, *, contents: bool = True) -> dict[str, str]:
        """Find what was laid down at first and is not as it was.

        Args:
            contents: read every byte and compare checksums; otherwise existence and size only.

        Returns:
            What is wrong, by the object's key below activations.zarr.
        """
        sizes = self.folder.sizes(ZARR)
        damage = {}
        for key, (size, digest) in self.laid_down.items():
            wrong = self._difference(sizes, f"{ZARR}/{key}", (size, digest), contents=contents)
            if wrong:
                damage[key] = wrong
        if not self.laid_down:  # of before checksums were kept: what can be seen without them
            names = ["tokens", "domain", "row"]
            names += [f"bitmaps/{layer:03d}" for layer in range(self.layout.num_bitmaps)]
            names += [f"position_counts/{layer:03d}" for layer in range(self.layout.num_layers)]
            for name in names:
                try:
                    self.zarr()[name].shape  # noqa: B018 - reads its metadata
                except Exception as error:  # noqa: BLE001 - whatever a damaged file leads to
                    damage[f"{name}/zarr.json"] = f"cannot be read ({type(error).__name__})"
        return damage

    def damaged(self, records: Iterable[Record], *, contents: bool = True) -> dict[int, str]:
        """Find committed shards whose objects are not what was committed.

        Args:
            records: the shards to look at.
            contents: read every byte and compare checksums; otherwise existence and size only.

        Returns:
            The first thing wrong with each damaged shard, by index.
        """
        sizes = self.folder.sizes(ZARR)

        def first_wrong(record: Record) -> str | None:
            for key, written in record.objects.items():
                path = f"{ZARR}/{key}"
                wrong = self._difference(sizes, path, written, contents=contents)
                if wrong:
                    return f"{path} {wrong}"
            return None

        looked_at = in_pages(first_wrong, records)
        return {record.shard.index: wrong for record, wrong in looked_at if wrong}

    def _difference(
        self, sizes: Mapping[str, int], path: str, written: tuple[int, str], *, contents: bool
    ) -> str | None:
        """Return how an object differs from what was committed; None where it does not."""
        if path not in sizes:
            return "is missing"
        if sizes[path] != written[0]:
            return f"has {sizes[path]} bytes, committed were {written[0]}"
        if contents and self.folder.checksum(path) != written:
            return "has changed since it was committed"
        return None

    def forget(self, shard: Shard) -> None:
        """Delete a shard's record, so that it is computed again."""
        self.folder.remove(f"{ZARR}/{Record.key(shard.index)}")

    def array(self, root: Any, kind: str, layer: int) -> Any:
        """Return a layer's array of a kind.

        Raises:
            UserError: its metadata cannot be read.
        """
        name = f"{kind}/{layer:03d}"
        with damage(f"the metadata of {self.folder.location}/{ZARR}/{name}", LAID_DOWN):
            return root[name]

    def require(self, kind: str, layer: int) -> None:
        """Read a layer's array's metadata, which says what the layout says, once.

        Raises:
            UserError: it does not.
        """
        if (kind, layer) not in self._seen:
            array, layout = self.array(self.zarr(), kind, layer), self.layout
            with damage(f"the metadata of {self.folder.location}/{ZARR}/{array.path}", LAID_DOWN):
                chunk = (layout.neurons_per_chunk, 1), (1, layout.num_positions)
                if array.chunks[:2] != chunk[kind != "bitmaps"]:
                    raise ValueError(f"chunks of {array.chunks}")
            self._seen.add((kind, layer))

    def read_bits(
        self,
        layer: int,
        neurons: slice,
        shards: Sequence[Shard],
        committed: Mapping[str, tuple[int, str]] | None = None,
    ) -> UInt8:
        """Read bitmaps.

        Args:
            layer: one with bitmaps.
            neurons: of it.
            shards: whose they are.
            committed: what objects that are read whole must be, see `BitmapReader`.

        Returns:
            uint8 [neuron, sequence, byte], the shards' sequences one after another.
        """
        self.require("bitmaps", layer)
        return BitmapReader(self.folder, self.layout, committed).read(layer, neurons, shards)

    def read_position_counts(
        self, layer: int, neurons: slice, shards: Sequence[Shard]
    ) -> Iterator[tuple[Shard, NDArray[np.int64]]]:
        """Yield each shard's int64 [position, neuron] counts of one layer."""
        array = self.array(self.zarr(), "position_counts", layer)
        for shard in shards:
            with damage(f"position counts of layer {layer} of {shard}", REPAIR):
                counts = array[shard.index, :, neurons]
            yield shard, counts.astype(np.int64)

    def read_sums(
        self, kind: str, layer: int, neurons: slice, shards: Sequence[Shard]
    ) -> Iterator[tuple[Shard, NDArray[np.int64]]]:
        """Yield each shard's int64 [quantity or token, neuron] of a layer's sums or token_sums."""
        array = self.array(self.zarr(), kind, layer)
        for shard in shards:
            with damage(f"{kind} of layer {layer} of {shard}", REPAIR):
                found = array[shard.index, :, neurons]
            yield shard, found


def read_info(folder: RunFolder) -> dict[str, Any] | None:
    """Return run.yaml's content, or None where there is no run.

    Raises:
        UserError: it is no run.yaml of this format.
    """
    data = folder.read(RUN_FILE)
    if data is None:
        return None
    try:
        info = copy.deepcopy(_parse(data))
        version = info["format"]
    except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged_info(folder, str(error).split("\n")[0]) from error
    if version != FORMAT:
        raise UserError(
            f"{folder.location} has format {version}; this version of neuronstats reads {FORMAT}."
        )
    known = info.pop("checksum", None)
    if known not in (None, info_checksum(info)):
        raise _damaged_info(folder, "it is not what was written")
    for key, below in REQUIRED.items():
        lost = [f"{key}.{name}" for name in below if name not in (info.get(key) or ())]
        if key not in info or lost:
            raise _damaged_info(folder, f"{lost[0] if lost else key} is gone")
    return dict(info)


@functools.lru_cache(maxsize=1)
def _parse(data: bytes) -> Any:
    """Parse YAML: a second for a thousand shards, and jobs look at run.yaml more than once."""
    return yaml.safe_load(data)


def info_checksum(info: Mapping[str, Any]) -> str:
    """Return the hash of all of run.yaml but the hash itself."""
    return checksum(json.dumps(info, sort_keys=True).encode())


def _damaged_info(folder: RunFolder, reason: str) -> UserError:
    return UserError(f"{folder.location}/{RUN_FILE} is damaged ({reason}): put it back.")
