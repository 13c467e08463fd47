"""What a run folder holds, by name, and how its arrays are laid out."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from neuronstats import bits
from neuronstats.corpus.corpus import Corpus

TABLES = "tables"
PARTIAL = "tables.partial"  # written here, then put in the place of the old ones in one step
POSITIONS = "positions.zarr"
MANIFEST = "manifest.json"  # of the tables: written last

MATCHES = "matches.parquet"  # of this run's neurons and other runs', where it was asked for

LOCK = "run.lock"

LOGS = "logs"

TOKENS = "tokens"  # of domains that are done, until the run is laid down

NGRAMS = "ngrams"

ZARR = "activations.zarr"
RUN_FILE = "run.yaml"
OBJECT_BYTES = 64 << 20  # one object of a bitmap before compression, at most
CHUNK_BYTES = 1 << 20  # one chunk inside it: what reading a single neuron costs
SIZES = ("num_layers", "num_bitmaps", "num_neurons", "num_positions", "shard_sequences")


@dataclass(frozen=True)
class Shard:
    """The unit of work, retry and storage: a range of sequences of one domain, all layers."""

    index: int
    domain: str
    first_sequence: int
    num_sequences: int

    def __str__(self) -> str:
        last = self.first_sequence + self.num_sequences - 1
        return f"shard {self.index} ({self.domain}, sequences {self.first_sequence}-{last})"

    @property
    def sequences(self) -> slice:
        """The shard's rows of every array with a sequence axis."""
        return slice(self.first_sequence, self.first_sequence + self.num_sequences)


@dataclass(frozen=True)
class Layout:
    """All that fixes the shapes of the arrays."""

    num_layers: int  # layers recorded, from the first
    num_bitmaps: int  # first layers whose bitmaps are kept
    num_neurons: int
    num_positions: int
    shard_sequences: int
    domains: tuple[str, ...]
    shards: tuple[Shard, ...]
    sums: tuple[str, ...] = ()  # quantities summed beside the bits, of bits.sums; none for OPT
    sum_tokens: tuple[int, ...] = ()  # token ids whose values are summed one by one

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> "Layout":
        """Build a layout from run.yaml's.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        values = dict(raw)
        values["domains"] = tuple(values["domains"])
        values["shards"] = tuple(Shard(**shard) for shard in values["shards"])
        values |= {name: tuple(values.get(name, ())) for name in ("sums", "sum_tokens")}
        layout = cls(**values)
        for name in SIZES:
            if type(values[name]) is not int or values[name] < (name != "num_bitmaps"):
                raise ValueError(f"{name} is {values[name]!r:.100}")
        for index, shard in enumerate(layout.shards):
            place = [shard.index, shard.first_sequence, shard.num_sequences]
            whole = all(type(number) is int and number >= 0 for number in place)
            if not whole or shard.index != index or shard.domain not in layout.domains:
                raise ValueError(f"its shard {index} is {shard!r:.200}")
            if not 0 < shard.num_sequences <= layout.shard_sequences:
                raise ValueError(f"its shard {index} has {shard.num_sequences} sequences")
        return layout

    @property
    def num_sequences(self) -> int:
        """Sequences of all shards."""
        return sum(shard.num_sequences for shard in self.shards)

    @property
    def row_bytes(self) -> int:
        """Bytes of one neuron's bitmap in one full shard."""
        return self.shard_sequences * bits.packed_bytes(self.num_positions)

    @property
    def count_dtype(self) -> np.dtype[Any]:
        """The smallest unsigned type that holds a shard's count at one position."""
        return np.dtype(np.min_scalar_type(self.shard_sequences))

    @property
    def neurons_per_count_object(self) -> int:
        """Neurons whose position counts are stored together."""
        return max(1, min(self.num_neurons, OBJECT_BYTES // 4 // self.num_positions))

    @property
    def neurons_per_chunk(self) -> int:
        """Neurons read together at least."""
        return max(1, min(self.num_neurons, CHUNK_BYTES // self.row_bytes))

    @property
    def neurons_per_object(self) -> int:
        """Neurons of one stored object: a whole number of chunks."""
        chunk = self.neurons_per_chunk
        return chunk * max(
            1, min(-(-self.num_neurons // chunk), OBJECT_BYTES // self.row_bytes // chunk)
        )

    @property
    def reads_whole_objects(self) -> bool:
        """Whether a bitmap's object is one chunk, so that reading any neuron reads all of it."""
        return self.neurons_per_object == self.neurons_per_chunk


def make_shards(corpus: Corpus, shard_sequences: int) -> tuple[Shard, ...]:
    """Cut a corpus, grouped by domain, into shards that never mix domains.

    The result depends on the corpus and the length alone, never on the machine.
    """
    shards: list[Shard] = []
    start = 0
    for index, domain in enumerate(corpus.domains):
        end = start + int(np.count_nonzero(corpus.domain == index))
        for first in range(start, end, shard_sequences):
            count = min(shard_sequences, end - first)
            shards.append(Shard(len(shards), domain, first, count))
        start = end
    return tuple(shards)


@dataclass(frozen=True)
class Record:
    """One shard's commit: every object it wrote, and what its bits add up to."""

    shard: Shard
    fingerprint: str
    objects: dict[str, tuple[int, str]]  # key below activations.zarr -> bytes, xxh3-128
    activations: list[int]  # per layer

    @staticmethod
    def key(index: int) -> str:
        """Return the record's key below activations.zarr."""
        return f"records/{index:05d}.json"

    def dumps(self) -> bytes:
        """Serialise; equal shards give equal bytes."""
        objects = {key: list(value) for key, value in sorted(self.objects.items())}
        return json.dumps({**asdict(self), "objects": objects}, indent=1).encode()

    @classmethod
    def loads(cls, data: bytes) -> "Record":
        """Parse what dumps wrote."""
        raw = json.loads(data)
        objects = {key: (int(size), str(digest)) for key, (size, digest) in raw["objects"].items()}
        return cls(Shard(**raw["shard"]), raw["fingerprint"], objects, raw["activations"])
