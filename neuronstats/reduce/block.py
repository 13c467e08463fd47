"""A block of neurons of one layer over all shards: read, verified, handed to the sections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from neuronstats import bits
from neuronstats.bits import sums
from neuronstats.corpus.token_texts import TokenTexts
from neuronstats.errors import UserError
from neuronstats.machine import PROCESS_BYTES, Term, allocator, peak_host_bytes
from neuronstats.model.settings import ModelSettings
from neuronstats.model.shape import Shape
from neuronstats.model.source import tokenizer_folder
from neuronstats.reduce.ngram_cache import NgramStore
from neuronstats.reduce.rows import block_tables
from neuronstats.reduce.weights import ModelWeights, embedding_terms, update_terms
from neuronstats.stats import ngram_counts
from neuronstats.stats.curves import CURVE_BLOCK
from neuronstats.stats.sections import SECTIONS
from neuronstats.stats.settings import ReduceSettings
from neuronstats.stats.view import BlockView, Section, Statistic, Weights
from neuronstats.store.faults import storage_errors
from neuronstats.store.layout import PARTIAL, POSITIONS, ZARR, Layout, Shard
from neuronstats.store.run import REPAIR, Run

BLOCK_BYTES = 96 << 20  # bits and position counts that a task holds at a time
CURVE_COPIES = 24  # arrays like the curves' that typing them takes (measured)

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """The unit of the merge: some neurons of one layer, over all shards."""

    layer: int
    first: int
    last: int

    def __str__(self) -> str:
        return f"layer {self.layer}, neurons {self.first}-{self.last - 1}"


@dataclass(frozen=True)
class BlockResult:
    """What a block adds to the tables."""

    tables: dict[str, pa.Table]
    """Rows by the table's name, neurons among them."""
    sections: list[Section]
    """What each section adds to the layer; their columns and tables are in `tables`."""
    activations: Counts
    """Of each shard, for the layer's sum to be compared with the shard's record."""
    peak_bytes: int
    """Memory that the worker has held at most so far."""


def cut_blocks(layout: Layout, num_layers: int, num_tokens: int) -> list[Block]:
    """Cut the first layers into blocks whose bits and counts fit the memory of a task."""
    per_neuron = -(-num_tokens // 8) + 16 * layout.num_positions * (1 + len(layout.domains))
    chunk = layout.neurons_per_chunk
    step = max(chunk, BLOCK_BYTES // per_neuron // chunk * chunk)
    return [
        Block(layer, first, min(first + step, layout.num_neurons))
        for layer in range(num_layers)
        for first in range(0, layout.num_neurons, step)
    ]


def memory_terms(
    layout: Layout,
    shards: Sequence[Shard],
    num_neurons: int,
    settings: ReduceSettings,
    ngram_bytes: int,
    shape: Shape,
) -> tuple[Term, ...]:
    """Bound the memory of a worker, by what it is for.

    Args:
        layout: the run's.
        shards: those that count.
        num_neurons: of the largest block.
        settings: lengths and thresholds.
        ngram_bytes: of the n-gram ids.
        shape: the model's.
    """
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


def create_positions(
    run: Run, shards: Sequence[Shard], work: Sequence[Block], metadata: Mapping[str, Any]
) -> None:
    """Create positions.zarr beside the old tables, for the workers to fill.

    Args:
        run: the run.
        shards: those that count.
        work: all blocks, in order.
        metadata: becomes the group's attributes.
    """
    layout = run.layout
    store = run.folder.zarr_store(f"{PARTIAL}/{POSITIONS}", read_only=False)
    root = zarr.create_group(store, overwrite=True, attributes=dict(metadata))
    shape = (work[-1].layer + 1, layout.num_positions, layout.num_neurons)
    chunks = (1, layout.num_positions, work[0].last)
    codec = ZstdCodec(level=1, checksum=True)
    names = ("layer", "position", "neuron")
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


class BlockWorker:
    """Does the blocks of one run.

    Args:
        location: the run.
        shards: those that count; their n-grams are numbered already.
        settings: lengths and thresholds.
        model: whose tokenizer writes n-grams as text.
        sections: the statistics, in the order of their columns.
    """

    def __init__(
        self,
        location: str,
        shards: Sequence[Shard],
        settings: ReduceSettings,
        model: ModelSettings,
        sections: Sequence[Statistic] = SECTIONS,
    ) -> None:
        self._run = Run.open(location, patient=True)
        self._shards, self._settings, self._sections = shards, settings, sections
        self._records = self._run.records()
        self._activation = Shape.read(self._run.about.sizes).activation
        self._ids = {}
        if self._run.layout.num_bitmaps:
            self._ids = NgramStore(self._run, shards).read(settings.ngrams)
        self._model, self._texts = model, TokenTexts(tokenizer_folder(model))
        store = self._run.folder.zarr_store(f"{PARTIAL}/{POSITIONS}", read_only=False)
        self._positions = zarr.open_group(store, mode="r+", use_consolidated=False)

    def __call__(self, block: Block) -> BlockResult:
        """Merge one block over all shards."""
        self._verify(block)
        view = self._view(block)
        neurons = slice(block.first, block.last)
        with storage_errors("write", f"{self._run.folder.location}/{PARTIAL}"):
            self._positions["counts"][block.layer, :, neurons] = view.position_counts
            self._positions["counts_by_domain"][:, block.layer, :, neurons] = view.counts
        found = [section(view, self._settings) for section in self._sections]
        return BlockResult(
            tables=block_tables(view, found),
            sections=[replace(section, columns={}, tables={}) for section in found],
            activations=view.shard_counts.sum(axis=1),
            peak_bytes=peak_host_bytes(),
        )

    def _verify(self, block: Block) -> None:
        """Compare a part of the layer's objects with their commits; its blocks compare them all."""
        committed = [
            (shard, key, written)
            for shard in self._shards
            for key, written in self._records[shard.index].objects.items()
            if int(key.split("/")[1]) == block.layer
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
        layout = self._run.layout
        by_domain, by_shard = self._merge_counts(block)
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
            read_weights=lambda: Weights(
                self._weights.embedding,
                self._weights.updates(block.layer, slice(block.first, block.last)),
            ),
            first_position=self._run.about.first_position,
            activation=self._activation,
            read_sums=(lambda: self._merge_sums(block, by_domain)) if layout.sums else None,
        )

    @cached_property
    def _weights(self) -> ModelWeights:
        """The model's weights, if a section asks for them.

        Raises:
            UserError: they are not to be had.
        """
        try:
            return ModelWeights(self._model, self._run.about.weights_fingerprint)
        except UserError as error:
            raise type(error)(
                f"{error} reduce.vocabulary=false leaves out what is told from the weights of all"
                " neurons."
            ) from error

    def _merge_counts(self, block: Block) -> tuple[Counts, Counts]:
        """Add up position counts: int64 [domain, position, neuron], and int64 [shard, neuron]."""
        layout, width = self._run.layout, block.last - block.first
        by_domain = np.zeros((len(layout.domains), layout.num_positions, width), np.int64)
        by_shard = np.zeros((len(self._shards), width), np.int64)
        neurons = slice(block.first, block.last)
        merged = self._run.read_position_counts(block.layer, neurons, self._shards)
        for index, (shard, counts) in enumerate(merged):
            if counts.max(initial=0) > shard.num_sequences:
                raise corrupt(f"position counts of layer {block.layer} of {shard}")
            by_domain[layout.domains.index(shard.domain)] += counts
            by_shard[index] = counts.sum(axis=0)
        return by_domain, by_shard

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
            sums.merge(merged[domain], part)
        is_open = [row for row, name in enumerate(layout.sums) if name.startswith("open")]
        first = sums.first_position(layout.num_positions)
        if (merged[:, is_open].sum(axis=1) != by_domain[:, first:].sum(axis=1)).any():
            raise corrupt(f"sums of layer {block.layer}")
        return merged

    def _read_tokens(self) -> NDArray[np.integer[Any]]:
        """Read the token ids [sequence, position] of the shards that count."""
        tokens = self._run.corpus().tokens
        return np.concatenate([tokens[shard.sequences] for shard in self._shards])

    def _read_bits(self, block: Block, by_shard: Counts) -> NDArray[np.uint8]:
        """Read bits, compared for each neuron and shard with the position counts, written apart."""
        bitmap = self._run.read_bits(block.layer, slice(block.first, block.last), self._shards)
        start = 0
        for index, shard in enumerate(self._shards):
            end = start + shard.num_sequences
            if not np.array_equal(bits.count(bitmap[:, start:end]), by_shard[index]):
                raise corrupt(f"bitmap of layer {block.layer} of {shard}")
            start = end
        return bitmap


def corrupt(what: str) -> UserError:
    """Build the error for stored bytes that differ from their commit."""
    return UserError(f"the {what} is not what was committed: {REPAIR}.")


def sequences_by_domain(run: Run, shards: Sequence[Shard]) -> dict[str, int]:
    """Count the shards' sequences of each of the run's domains."""
    sequences = dict.fromkeys(run.layout.domains, 0)
    for shard in shards:
        sequences[shard.domain] += shard.num_sequences
    return sequences
