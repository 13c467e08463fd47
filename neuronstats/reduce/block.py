"""A block of neurons of one layer over all shards: read, verified, handed to the sections."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from neuronstats import bits
from neuronstats.bits import quantities
from neuronstats.corpus.token_texts import TokenTexts
from neuronstats.errors import UserError
from neuronstats.machine import PROCESS_BYTES, Term, allocator, peak_host_bytes
from neuronstats.model.settings import ModelSettings
from neuronstats.model.shape import Shape
from neuronstats.model.source import tokenizer_folder
from neuronstats.reduce.counts import corrupt, sequences_by_domain
from neuronstats.reduce.ngram_cache import NgramStore
from neuronstats.reduce.rows import block_tables
from neuronstats.reduce.weights import ModelWeights, embedding_terms, update_terms
from neuronstats.stats import ngram_counts
from neuronstats.stats.curves import CURVE_BLOCK
from neuronstats.stats.settings import ReduceSettings
from neuronstats.stats.view import BlockView, Section, Statistic, Weights
from neuronstats.store.bitmaps import BitmapReader
from neuronstats.store.layout import ZARR, Layout, Record, Shard
from neuronstats.store.run import Run

PART_BYTES = 96 << 20  # bits and position counts that a worker holds at a time
BLOCK_BYTES = 4 * PART_BYTES  # of a whole task: in smaller ones two workers merged a sixth less
BLOCKS_LEFT = 8  # for each worker, before blocks have fewer parts, so that workers end together
CURVE_COPIES = 24  # arrays like the curves' that typing them takes (measured)

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """A task of the merge: some neurons of one layer, over all shards."""

    layer: int
    first: int
    last: int

    def __str__(self) -> str:
        return f"layer {self.layer}, neurons {self.first}-{self.last - 1}"

    def parts(self, width: int) -> Iterator["Block"]:
        """Yield its parts, of so many neurons."""
        for first in range(self.first, self.last, width):
            yield replace(self, first=first, last=min(first + width, self.last))


@dataclass(frozen=True)
class BlockResult:
    """What a block adds to the tables."""

    tables: dict[str, pa.Table]
    """Rows by the table's name, neurons among them."""
    sections: list[Section]
    """What each section adds to the layer; their columns and tables are in `tables`."""
    peak_bytes: int
    """Memory that the worker has held at most so far."""

    def with_next(self, other: "BlockResult") -> "BlockResult":
        """Return this with what the next neurons of the layer add."""
        return BlockResult(
            tables={
                name: pa.concat_tables([rows, other.tables[name]])
                for name, rows in self.tables.items()
            },
            sections=[a.with_next(b) for a, b in zip(self.sections, other.sections, strict=True)],
            peak_bytes=max(self.peak_bytes, other.peak_bytes),
        )


def part_neurons(layout: Layout, num_tokens: int) -> int:
    """Return the neurons of a part of a block: whole chunks, their bits and counts in memory."""
    chunk = layout.neurons_per_chunk
    fit = PART_BYTES // _neuron_bytes(layout, num_tokens) // chunk * chunk
    return min(max(chunk, fit), layout.num_neurons)


def most_parts(layout: Layout, num_tokens: int) -> int:
    """Return the parts of a block, at most."""
    part = part_neurons(layout, num_tokens)
    fit = BLOCK_BYTES // (part * _neuron_bytes(layout, num_tokens))
    return min(max(1, fit), -(-layout.num_neurons // part))


def _neuron_bytes(layout: Layout, num_tokens: int) -> int:
    """Return the bytes of a neuron's bits and position counts."""
    return -(-num_tokens // 8) + 16 * layout.num_positions * (1 + len(layout.domains))


def cut_blocks(layout: Layout, num_layers: int, num_tokens: int, num_workers: int) -> list[Block]:
    """Cut the first layers into blocks of whole parts: of several, while much is left.

    What a part's rows are does not depend on its block.
    """
    part, most = part_neurons(layout, num_tokens), most_parts(layout, num_tokens)
    parts_of_layer = -(-layout.num_neurons // part)
    left = num_layers * parts_of_layer
    blocks = []
    for layer in range(num_layers):
        done = 0
        while done < parts_of_layer:
            fair = max(1, left // (BLOCKS_LEFT * num_workers))
            parts = min(most, fair, parts_of_layer - done)
            last = min((done + parts) * part, layout.num_neurons)
            blocks.append(Block(layer, done * part, last))
            done, left = done + parts, left - parts
    return blocks


def memory_terms(
    layout: Layout,
    shards: Sequence[Shard],
    num_neurons: int,
    settings: ReduceSettings,
    ngram_bytes: int,
    shape: Shape,
) -> tuple[Term, ...]:
    """Bound the memory of a worker that merges so many neurons at a time, by what it is for."""
    num_sequences = sum(shard.num_sequences for shard in shards)
    longest = max(shard.num_sequences for shard in shards)
    row = bits.packed_bytes(layout.num_positions)
    curves = 8 * layout.num_positions  # bytes of one neuron's curve
    terms = [
        Term("process", PROCESS_BYTES),
        Term("position counts", (2 * len(layout.domains) + 4) * curves * num_neurons),
        Term("curves while typed", CURVE_COPIES * curves * min(num_neurons, CURVE_BLOCK)),
    ]
    if layout.num_bitmaps:
        terms.append(Term("bits", num_neurons * (num_sequences + longest) * row))
        terms.append(Term("n-gram ids", ngram_bytes))
        counting = ngram_counts.projected_bytes(
            num_neurons, num_sequences, layout.num_positions, settings
        )
        terms.append(Term("counting n-grams", sum(counting.values())))
    if settings.vocabulary:
        terms += [*embedding_terms(shape), *update_terms(shape, num_neurons)]
    return (*terms, allocator(terms))


class BlockMerger:
    """Merges blocks whose layer's position counts are added up already.

    Args:
        run: the run.
        shards: those that count; their n-grams are numbered already.
        records: the shards' commits, by index.
        positions: the open group positions.zarr.
        settings: lengths and thresholds.
        model: whose tokenizer writes n-grams as text.
        sections: the statistics, in the order of their columns.
        read_weights: reads the model's weights.
    """

    def __init__(
        self,
        run: Run,
        shards: Sequence[Shard],
        records: Mapping[int, Record],
        positions: Any,
        settings: ReduceSettings,
        model: ModelSettings,
        sections: Sequence[Statistic],
        read_weights: Callable[[], ModelWeights],
    ) -> None:
        self._run, self._shards, self._records = run, shards, records
        self._positions, self._settings, self._sections = positions, settings, sections
        self._read_weights = read_weights
        self._activation = Shape.read(run.about.sizes).activation
        self._ids = {}
        if run.layout.num_bitmaps:
            self._ids = NgramStore(run, shards).read(settings.ngrams)
        self._texts = TokenTexts(tokenizer_folder(model))
        self._bitmaps = BitmapReader(run.folder, run.layout)
        self._space = np.zeros((0, 0, 0), np.uint8)
        self._num_sequences = sum(shard.num_sequences for shard in shards)
        num_tokens = self._num_sequences * run.layout.num_positions
        self._part_neurons = part_neurons(run.layout, num_tokens)

    def __call__(self, block: Block) -> BlockResult:
        """Merge one block over all shards, one part after the other."""
        self._verify(block)
        results = map(self._merge_part, block.parts(self._part_neurons))
        return functools.reduce(BlockResult.with_next, results)

    def _merge_part(self, block: Block) -> BlockResult:
        view = self._view(block)
        found = [section(view, self._settings) for section in self._sections]
        return BlockResult(
            tables=block_tables(view, found),
            sections=[replace(section, columns={}, tables={}) for section in found],
            peak_bytes=peak_host_bytes(),
        )

    def _verify(self, block: Block) -> None:
        """Compare a part of the layer's objects with their commits; its blocks compare them all.

        Position counts are compared where they are added up.
        """
        committed = [
            (shard, key, written)
            for shard in self._shards
            for key, written in self._records[shard.index].objects.items()
            if int(key.split("/")[1]) == block.layer and not key.startswith("position_counts/")
        ]
        first, last = (
            len(committed) * neuron // self._run.layout.num_neurons
            for neuron in (block.first, block.last)
        )
        for shard, key, written in committed[first:last]:
            if self._run.folder.checksum(f"{ZARR}/{key}") != written:
                raise corrupt(f"object {ZARR}/{key} of {shard}")

    def _view(self, block: Block) -> BlockView:
        """Read a block's position counts; its bits are read, and checked, when a section asks."""
        layout, positions = self._run.layout, self._positions
        neurons = slice(block.first, block.last)
        by_shard = positions["counts_by_shard"][:, block.layer, neurons].astype(np.int64)
        by_domain = positions["counts_by_domain"][:, block.layer, :, neurons]
        has_bits = block.layer < layout.num_bitmaps
        return BlockView(
            layer=block.layer,
            neurons=range(block.first, block.last),
            counts=by_domain,
            domains=layout.domains,
            sequences=np.array(list(sequences_by_domain(self._run, self._shards).values())),
            shard_counts=by_shard,
            shard_domains=tuple(shard.domain for shard in self._shards),
            read_tokens=self._read_tokens,
            read_bits=(lambda: self._read_bits(block, by_shard)) if has_bits else None,
            ngram_ids=self._ids if has_bits else {},
            text=self._texts,
            read_weights=lambda: self._weights_of(block),
            first_position=self._run.about.first_position,
            activation=self._activation,
            read_sums=(lambda: self._merge_sums(block, by_domain)) if layout.sums else None,
        )

    def _weights_of(self, block: Block) -> Weights:
        """Read what a block's neurons write.

        Raises:
            UserError: it is not to be had.
        """
        try:
            weights = self._read_weights()
        except UserError as error:
            raise type(error)(
                f"{error} reduce.vocabulary=false leaves out what is told from the weights of all"
                " neurons."
            ) from error
        updates = weights.updates(block.layer, slice(block.first, block.last))
        return Weights(weights.embedding, updates)

    def _merge_sums(self, block: Block, by_domain: Counts) -> Counts:
        """Add up sums, int64 [domain, quantity, neuron], compared with the position counts.

        Raises:
            UserError: they differ, or are too large to be added up.
        """
        layout, neurons = self._run.layout, slice(block.first, block.last)
        merged = np.zeros(
            (len(layout.domains), len(layout.sums), block.last - block.first), np.int64
        )
        for shard, part in self._run.read_sums("sums", block.layer, neurons, self._shards):
            domain = layout.domains.index(shard.domain)
            if (abs(merged[domain]).max(initial=0) + abs(part).max(initial=0)) >= 1 << 62:
                raise UserError(f"sums of {block} do not fit: reduce a run of less text.")
            quantities.merge(merged[domain], part)
        is_open = [row for row, name in enumerate(layout.sums) if name.startswith("open")]
        first = quantities.first_position(layout.num_positions)
        if (merged[:, is_open].sum(axis=1) != by_domain[:, first:].sum(axis=1)).any():
            raise corrupt(f"sums of layer {block.layer}")
        return merged

    def _read_tokens(self) -> NDArray[np.integer[Any]]:
        """Read the token ids [sequence, position] of the shards that count."""
        tokens = self._run.corpus().tokens
        return np.concatenate([tokens[shard.sequences] for shard in self._shards])

    def _read_bits(self, block: Block, by_shard: Counts) -> NDArray[np.uint8]:
        """Read bits, compared for each neuron and shard with the position counts, written apart.

        The array is used again for the next block.
        """

        def compare(index: int, first: int, part: NDArray[np.uint8]) -> None:
            counts = bits.count(part)
            if not np.array_equal(counts, by_shard[index, first : first + len(part)]):
                raise corrupt(f"bitmap of layer {block.layer} of {self._shards[index]}")

        self._run.require("bitmaps", block.layer)
        width = block.last - block.first
        if len(self._space) < width:  # the pages of new memory would cost a third of the reading
            row = bits.packed_bytes(self._run.layout.num_positions)
            self._space = np.empty((width, self._num_sequences, row), np.uint8)
        return self._bitmaps.read(
            block.layer,
            slice(block.first, block.last),
            self._shards,
            out=self._space[:width],
            on_part=compare,
        )
