"""What a run will take, as sums of named terms, before anything starts.

Every number is arithmetic on the model's and the corpus's sizes; the constants at the top are
measured (docs/log.md). A test holds the host memory against the measured peak.
"""

from dataclasses import dataclass

import numpy as np

from neuronstats import bits
from neuronstats.bits.quantities import AMOUNTS, CASES, ROWS
from neuronstats.cluster.nodes import Node
from neuronstats.collect import transfer
from neuronstats.machine import PROCESS_BYTES, Term, allocator
from neuronstats.model.shape import Shape
from neuronstats.store.layout import OBJECT_BYTES
from neuronstats.units import size

CUDA_HOST_BYTES = 2 << 30  # what CUDA's libraries add to it (assumed, not measured)
CUDA_DEVICE_BYTES = 1 << 30  # context and libraries' workspace (assumed, not measured)
COMPRESSED = 0.4  # of raw bits: zstd level 1 at 5 % activity
SUMS_COMPRESSED = 0.6  # of raw sums
SUM_ROWS = len(CASES[True] + AMOUNTS)
SUM_COPIES = 64  # bytes a value that torch's operations take, ROWS tokens at a time
SCORE_BYTES = 14  # of an attention score where it is held: with its copies (measured)
ATTENTION = 7  # times the residual stream's width that attention takes at once
WRITE_AHEAD = 2  # layers that may wait to be written, the one at work included


@dataclass(frozen=True)
class CorpusSize:
    """How much text there is."""

    sequences_by_domain: tuple[int, ...]
    positions: int

    @property
    def sequences(self) -> int:
        """Sequences in all."""
        return sum(self.sequences_by_domain)

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return self.sequences * self.positions

    @property
    def token_bytes(self) -> int:
        """Bytes of the token ids, at the two that OPT's vocabulary takes."""
        return 2 * self.tokens


@dataclass(frozen=True)
class Work:
    """What is to be done, with every choice made."""

    shape: Shape
    corpus: CorpusSize
    num_layers: int
    num_bitmaps: int
    shard_sequences: int
    batch_sequences: int
    dtype_bytes: int
    stored_bytes: int
    """Bytes of one weight in the checkpoint."""
    on_gpu: bool
    workers: int = 1
    resident: bool = True
    hidden_on_device: bool = True
    table_on_device: bool = False
    """Keep the token embeddings on the GPU."""
    shards_left: int | None = None
    """Shards that the run still lacks; None: there is no run yet."""
    sum_tokens: int | None = None
    """Tokens whose values are summed by themselves; None: no sums are taken."""

    @property
    def num_shards(self) -> int:
        """Shards of all domains."""
        return sum(-(-n // self.shard_sequences) for n in self.corpus.sequences_by_domain)

    @property
    def flop_per_token(self) -> int:
        """Floating-point operations: matrices, and attention under its mask."""
        shape = self.shape
        layer = 2 * shape.layer_weights + 2 * self.corpus.positions * shape.hidden
        last = 2 * shape.hidden * shape.neurons  # fc2 of the last layer is left out
        return self.num_layers * layer - last

    @property
    def shard_tokens(self) -> int:
        """Tokens of a full shard, filled up to whole batches."""
        batches = -(-self.shard_sequences // self.batch_sequences)
        return batches * self.batch_sequences * self.corpus.positions

    @property
    def packed_layer(self) -> int:
        """Bytes of one layer's bits of a full shard."""
        width = bits.packed_bytes(self.corpus.positions)
        return self.shard_sequences * width * self.shape.neurons

    @property
    def counts(self) -> int:
        """Bytes of one layer's position counts, as written."""
        values = self.corpus.positions * self.shape.neurons
        return values * np.min_scalar_type(self.shard_sequences).itemsize

    @property
    def wide_counts(self) -> int:
        """Bytes of one layer's position counts as they are made, in int32."""
        return 4 * self.corpus.positions * self.shape.neurons

    @property
    def sums(self) -> int:
        """Bytes of one layer's sums."""
        rows = 0 if self.sum_tokens is None else self.sum_tokens + SUM_ROWS
        return 8 * rows * self.shape.neurons

    def sum_terms(self) -> list[Term]:
        """Sums while they are taken, wait, are compressed, and what taking them needs."""
        if not self.sums:
            return []
        rows = self.batch_sequences * self.corpus.positions
        copies = 1 if self.dtype_bytes == 4 else 3  # in float32
        summing = 4 * copies * rows * self.shape.neurons
        return [Term("sums", (WRITE_AHEAD + 3) * self.sums), Term("summing", summing)]

    def weight_terms(self) -> list[Term]:
        """Weights in the memory where they are used."""
        kept = self.num_layers if self.resident else min(2, self.num_layers)
        layer = self.shape.layer_weights * self.dtype_bytes
        name = f"weights ({kept} of {self.num_layers} layers)"
        front = self.shape.front_weights * self.dtype_bytes
        return [Term(name, kept * layer), Term("position embeddings and norms", front)]

    @property
    def table(self) -> int:
        """Numbers of the token embeddings."""
        return self.shape.vocabulary * self.shape.embedding

    @property
    def hidden(self) -> int:
        """Bytes of the shard's residual stream."""
        return self.shard_tokens * self.shape.hidden * self.dtype_bytes

    def batch_terms(self) -> list[Term]:
        """One batch inside a layer, where it is widest: in the attention or in the FFN.

        An FFN holds the residual stream, its own input, fc1's output, what the activation takes
        (a ReLU nothing: it is done in place), and fc2's output; a gated one the activation, the
        other projection and their product. Where sums are taken, the gate is held as well.
        """
        tokens, shape = self.batch_sequences * self.corpus.positions, self.shape
        inner = 1 + shape.activation.copies
        if shape.activation.gated:
            inner = max(inner, 3) + bool(self.sums)
        ffn = 3 * shape.hidden + inner * shape.neurons
        attention = ATTENTION * shape.hidden * self.dtype_bytes
        attention += SCORE_BYTES * shape.score_heads * self.corpus.positions
        widest = max(ffn * self.dtype_bytes, attention)
        return [Term("one batch's activations", tokens * widest)]

    def bit_terms(self) -> list[Term]:
        """Bits of the layer at work: as made, and neuron by neuron."""
        return [Term("bits of a layer", 2 * self.packed_layer)]

    def writer_terms(self) -> list[Term]:
        """Layers' bits and counts while they wait, are compressed, and written."""
        bitmap, counts = self.packed_layer if self.num_bitmaps else 0, self.counts
        compressed = min(2 * OBJECT_BYTES, bitmap + counts)  # an object in parts, and joined
        made = 0 if self.on_gpu else self.wide_counts
        return [
            Term("bits to be written", WRITE_AHEAD * bitmap),
            Term("position counts", made + (WRITE_AHEAD + 1) * counts),
            Term("compression", compressed),
        ]

    def gpu_terms(self) -> tuple[list[Term], list[Term]]:
        """What copies beside the computation take more: on the host, and on the GPU."""
        bitmap, counts = self.packed_layer if self.num_bitmaps else 0, self.counts
        # One layer's on the way and one's in hand beside those that wait, and what pinning adds.
        held = WRITE_AHEAD + 2
        planned = WRITE_AHEAD * bitmap + (WRITE_AHEAD + 1) * counts
        pinned = held * sum(map(transfer.pinned_bytes, (bitmap, counts))) - planned
        host = [
            Term("CUDA", CUDA_HOST_BYTES),
            Term("weights in pinned memory", 2 * transfer.PIECE_BYTES),
            Term("bits and counts in pinned memory", pinned),
        ]
        device = [
            Term("CUDA", CUDA_DEVICE_BYTES),
            Term("bits and counts on their way", bitmap + self.wide_counts + 2 * counts),
        ]
        if self.table_on_device:
            device.append(Term("token embeddings", self.table * self.dtype_bytes))
        if self.sums:
            copies = SUM_COPIES * ROWS * self.shape.neurons
            rows = 3 * 4 * self.batch_sequences * self.corpus.positions * self.shape.neurons
            device.append(Term("sums, taken and on their way", 3 * self.sums + copies + rows))
            host.append(Term("sums in pinned memory", held * transfer.pinned_bytes(self.sums)))
        if self.hidden_on_device:
            return host, [*device, Term("hidden states", self.hidden)]
        batch = self.batch_sequences * self.corpus.positions * self.shape.hidden * self.dtype_bytes
        host.append(Term("hidden states", transfer.pinned_bytes(self.hidden)))
        return host, [*device, Term("hidden states, near", transfer.BATCHES_ON_DEVICE * batch)]

    def read_terms(self) -> list[Term]:
        """Pages of the checkpoint that are mapped while read."""
        layer = self.shape.layer_weights * self.stored_bytes
        seen = min(self.shape.vocabulary, self.corpus.tokens)
        embeddings = seen * self.shape.embedding * self.stored_bytes
        if self.table_on_device:
            embeddings = self.table * self.stored_bytes  # mapped while it is sent
        return [
            Term("a layer being read", layer),
            Term("token embeddings", embeddings),
            Term("tokens", 2 * self.corpus.token_bytes),  # and a copy while they are checked
        ]


@dataclass(frozen=True)
class Plan:
    """What the work takes, per worker where not said otherwise."""

    work: Work
    host: tuple[Term, ...]
    device: tuple[Term, ...]
    """Empty without a GPU."""
    disk: tuple[Term, ...]
    """Of the whole run."""

    @property
    def host_bytes(self) -> int:
        """Host memory of one worker."""
        return sum(term.bytes for term in self.host)

    @property
    def device_bytes(self) -> int:
        """GPU memory of one worker."""
        return sum(term.bytes for term in self.device)

    @property
    def disk_bytes(self) -> int:
        """Disk of the whole run, as expected."""
        return sum(term.bytes for term in self.disk)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights read in the whole run."""
        times = self.work.workers if self.work.resident else self.work.num_shards
        return times * self.work.num_layers * self.work.shape.layer_weights * self.work.stored_bytes

    @property
    def flop(self) -> int:
        """Floating-point operations of the whole run."""
        return self.work.corpus.tokens * self.work.flop_per_token

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the whole model's weights in the checkpoint, norms of all layers excepted."""
        shape = self.work.shape
        embeddings = shape.vocabulary * shape.embedding + shape.front_weights
        return (shape.num_layers * shape.layer_weights + embeddings) * self.work.stored_bytes

    def seconds(self, flops: float) -> float:
        """Return the least time of the whole run, where each worker reaches so many FLOP/s."""
        return self.flop / (self.work.workers * flops)

    def shard_seconds(self, flops: float) -> float:
        """Return the least time of a full shard on a worker of so many FLOP/s."""
        return self.work.shard_tokens * self.work.flop_per_token / flops

    def misfits(self, node: Node, count: int, free_disk: int | None) -> list[str]:
        """Return what does not fit a machine with so many workers, one sentence each."""
        needs = [
            ("host memory", self.host_bytes * count, node.memory, self.host),
            ("disk", self.disk_bytes, free_disk, self.disk),
        ]
        if self.work.on_gpu:
            needs.append(("GPU memory", self.device_bytes, node.gpu_memory, self.device))
        misfits = []
        for name, need, have, terms in needs:
            if have is not None and need > have:
                largest = max(terms, key=lambda term: term.bytes)
                misfits.append(
                    f"{name}: {size(need)} needed, {size(have)} may be used; the largest part is"
                    f" {largest.name}, {size(largest.bytes)}"
                )
        return misfits


def make_plan(work: Work) -> Plan:
    """Add up what a piece of work takes."""
    near = [*work.weight_terms(), *work.batch_terms(), *work.bit_terms()]
    host = [Term("process", PROCESS_BYTES), *work.read_terms(), *work.writer_terms()]
    host += work.sum_terms()
    device: list[Term] = []
    if work.on_gpu:
        beside, on_gpu = work.gpu_terms()
        host, device = [*host, *beside], [*near, *on_gpu]
    else:
        host += [*near, Term("hidden states", work.hidden)]
    left = work.num_shards if work.shards_left is None else work.shards_left
    slots = left * work.packed_layer
    counts = work.corpus.positions * work.shape.neurons * work.num_layers * left
    disk = [
        Term(
            f"bitmaps ({size(work.num_bitmaps * slots)} raw)",
            int(COMPRESSED * work.num_bitmaps * slots),
        ),
        Term("position counts", counts * (1 if work.shard_sequences < 256 else 2)),
        Term("tokens", work.corpus.token_bytes if work.shards_left is None else 0),
    ]
    if work.sums:
        disk.append(Term("sums", int(SUMS_COMPRESSED * work.sums * work.num_layers * left)))
    return Plan(work, (*host, allocator(host)), tuple(device), tuple(disk))
