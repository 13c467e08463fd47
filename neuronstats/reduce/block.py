"""A block of neurons of one layer over all shards: the unit of the merge, and its worker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from neuronstats import bits
from neuronstats.corpus.token_texts import TokenTexts
from neuronstats.errors import UserError
from neuronstats.machine import PROCESS_BYTES, Term, allocator, peak_host_bytes
from neuronstats.model.settings import ModelSettings
from neuronstats.model.source import tokenizer_folder
from neuronstats.reduce.gather import BlockResult
from neuronstats.reduce.ngram_cache import NgramStore
from neuronstats.stats import ngrams, positions
from neuronstats.stats.curves import (
    MIN_POSITIONS,
    NEURON_BLOCK,
    OSCILLATORY,
    OTHER,
    TYPES,
    classify,
)
from neuronstats.stats.ngrams import NgramCounts, NgramRows, count_ngrams
from neuronstats.stats.position_coverage import consistency, coverage
from neuronstats.stats.settings import ReduceSettings
from neuronstats.store import tables
from neuronstats.store.faults import storage_errors
from neuronstats.store.layout import PARTIAL, POSITIONS, Layout, Shard
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
) -> tuple[Term, ...]:
    """Bound the memory of a worker, by what it is for.

    Args:
        layout: the run's.
        shards: those that count.
        num_neurons: of the largest block.
        settings: lengths and thresholds.
        ngram_bytes: of the n-gram ids.
    """
    num_sequences = sum(shard.num_sequences for shard in shards)
    longest = max(shard.num_sequences for shard in shards)
    row = bits.packed_bytes(layout.num_positions)
    curves = 8 * layout.num_positions  # bytes of one neuron's curve
    terms = [
        Term("process", PROCESS_BYTES),
        Term("position counts", (2 * len(layout.domains) + 4) * curves * num_neurons),
        Term("curves while typed", CURVE_COPIES * curves * min(num_neurons, NEURON_BLOCK)),
    ]
    if layout.num_bitmaps:
        terms.append(Term("bits", num_neurons * (num_sequences + longest) * row))
        terms.append(Term("n-gram ids", ngram_bytes))
        counting = ngrams.projected_bytes(
            num_neurons, num_sequences, layout.num_positions, settings
        )
        terms.append(Term("counting n-grams", sum(counting.values())))
    return (*terms, allocator(terms))


def create_positions(
    run: Run, shards: Sequence[Shard], work: Sequence[Block], metadata: Mapping[str, Any]
) -> None:
    """Lay down positions.zarr beside the old tables, for the workers to fill.

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
    """

    def __init__(
        self, location: str, shards: Sequence[Shard], settings: ReduceSettings, model: ModelSettings
    ) -> None:
        self._run = Run.open(location, patient=True)
        self._shards, self._settings = shards, settings
        self._num_sequences = sum(shard.num_sequences for shard in shards)
        self._ids = {}
        if self._run.layout.num_bitmaps:
            self._ids = NgramStore(self._run, shards).read(settings.ngrams)
        self._texts = TokenTexts(tokenizer_folder(model))
        store = self._run.folder.zarr_store(f"{PARTIAL}/{POSITIONS}", read_only=False)
        self._positions = zarr.open_group(store, mode="r+", use_consolidated=False)

    def __call__(self, block: Block) -> BlockResult:
        """Merge one block over all shards."""
        layout = self._run.layout
        neurons = slice(block.first, block.last)
        by_domain, by_shard = self._merge_counts(block)
        counts = by_domain.sum(axis=0)  # [position, neuron]
        with storage_errors("write", f"{self._run.folder.location}/{PARTIAL}"):
            self._positions["counts"][block.layer, :, neurons] = counts
            self._positions["counts_by_domain"][:, block.layer, :, neurons] = by_domain
        found: dict[int, NgramCounts] = {}
        if block.layer < layout.num_bitmaps:
            bitmap = self._run.read_bits(block.layer, neurons, self._shards)
            self._check_bits(block, bitmap, by_shard)
            found = count_ngrams(bitmap, self._ids, self._settings)
        curves = self._judge_curves(counts, by_domain)
        return BlockResult(
            neurons=self._neuron_rows(block, counts, curves, found),
            domains=self._domain_rows(block, by_domain),
            ngrams=self._ngram_rows(block, {n: c.detected for n, c in found.items()}),
            triggers=self._ngram_rows(block, {n: c.triggers for n, c in found.items()}),
            loose={n: int(c.detector_loose.sum()) for n, c in found.items()},
            few={n: self._resting_on_few(c) for n, c in found.items()},
            activations=by_shard.sum(axis=1),
            never=(np.cumsum(by_shard[spread(self._shards)], axis=0) == 0).sum(axis=1),
            indicated=curves.indicated,
            peak_bytes=peak_host_bytes(),
        )

    def _resting_on_few(self, found: NgramCounts) -> int:
        """Count the detectors whose detected n-grams occur fewer than `few_occurrences` times."""
        occurrences = np.bincount(
            found.detected.neuron, found.detected.occurrences, len(found.detector)
        )
        few = occurrences < self._settings.few_occurrences
        return int(np.count_nonzero(found.detector & few))

    def _merge_counts(self, block: Block) -> tuple[Counts, Counts]:
        """Add up position counts: int64 [domain, position, neuron], and int64 [shard, neuron]."""
        layout, width = self._run.layout, block.last - block.first
        by_domain = np.zeros((len(layout.domains), layout.num_positions, width), np.int64)
        by_shard = np.zeros((len(self._shards), width), np.int64)
        neurons = slice(block.first, block.last)
        merged = self._run.read_position_counts(block.layer, neurons, self._shards)
        for index, (shard, counts) in enumerate(merged):
            if counts.max(initial=0) > shard.num_sequences:
                raise changed(f"position counts of layer {block.layer} of {shard}")
            by_domain[layout.domains.index(shard.domain)] += counts
            by_shard[index] = counts.sum(axis=0)
        return by_domain, by_shard

    def _check_bits(self, block: Block, bitmap: NDArray[np.uint8], by_shard: Counts) -> None:
        """Hold the bits of each neuron and shard against the position counts, written apart."""
        start = 0
        for index, shard in enumerate(self._shards):
            end = start + shard.num_sequences
            if not np.array_equal(bits.count(bitmap[:, start:end]), by_shard[index]):
                raise changed(f"bitmap of layer {block.layer} of {shard}")
            start = end

    def _judge_curves(self, counts: Counts, by_domain: Counts) -> "_Curves":
        """Say what counts [position, neuron] and [domain, position, neuron] tell of position."""
        settings, sequences = self._settings, self._num_sequences
        num_positions, width = counts.shape
        information = positions.mutual_information(counts, sequences)
        positional = information > settings.positional_mi
        kinds, strong = np.full(width, OTHER, np.int8), np.zeros(width, bool)
        consistent = np.full(width, np.nan)
        indicated = np.zeros(num_positions, np.int64)
        if num_positions > MIN_POSITIONS and positional.any():  # a shorter curve has no shape
            own = counts[:, positional]
            kinds[positional], strong[positional] = classify(own, sequences, settings)
            by_name = sequences_by_domain(self._run, self._shards)
            consistent[positional] = consistency(
                by_domain[:, :, positional],
                np.array([by_name[domain] for domain in self._run.layout.domains]),
                kinds[positional],
                settings,
            )
            waves = positional & strong & (kinds == OSCILLATORY)
            indicated = coverage(counts, sequences, waves, settings).by_position
        return _Curves(information, positional, kinds, strong, consistent, indicated)

    def _neuron_rows(
        self, block: Block, counts: Counts, curves: "_Curves", found: Mapping[int, NgramCounts]
    ) -> pa.Table:
        num_positions, width = counts.shape
        num_tokens = self._num_sequences * num_positions
        activations = counts.sum(axis=0)
        columns: dict[str, Any] = {
            **_key(block, np.arange(width)),
            "tokens": np.full(width, num_tokens, np.int64),
            "activations": activations,
            "frequency": activations / num_tokens,
            "dead": activations == 0,
        }
        for n in self._settings.ngrams:
            present = n in found
            cover = found[n].cover if present else np.zeros(width, np.int32)
            detector = found[n].detector if present else np.zeros(width, bool)
            columns[f"cover_{n}"] = tables.masked(cover, present, pa.int32())
            columns[f"detector_{n}"] = tables.masked(detector, present, pa.bool_())
        types = np.array(TYPES, object)[curves.kinds]
        consistent = curves.consistent
        columns |= {
            "suppresses": pa.nulls(width, pa.bool_()),
            "trigger_projection": pa.nulls(width, pa.float64()),
            "position_mi": curves.information,
            "position_mi_corrected": positions.corrected_information(
                curves.information, num_positions, self._num_sequences
            ),
            "position_type": tables.masked(types, curves.positional, pa.string()),
            "position_strong": tables.masked(curves.strong, curves.positional, pa.bool_()),
            "position_consistency": tables.masked(consistent, ~np.isnan(consistent), pa.float64()),
        }
        return pa.table(columns, schema=tables.neuron_schema(self._settings.ngrams))

    def _domain_rows(self, block: Block, by_domain: Counts) -> pa.Table:
        """A row per neuron and domain, by neuron, then in the domains' order."""
        num_domains, num_positions, width = by_domain.shape
        sequences = sequences_by_domain(self._run, self._shards)
        tokens = np.array([sequences[d] * num_positions for d in self._run.layout.domains])
        activations = by_domain.sum(axis=1)  # [domain, neuron]
        information = [
            positions.mutual_information(by_domain[i], max(1, sequences[domain]))
            for i, domain in enumerate(self._run.layout.domains)
        ]
        columns = {
            **_key(block, np.repeat(np.arange(width), num_domains)),
            "domain": pa.array(list(self._run.layout.domains) * width),
            "tokens": np.tile(tokens, width),
            "activations": activations.T.ravel(),
            "frequency": (activations / np.maximum(tokens, 1)[:, None]).T.ravel(),
            "position_mi": np.stack(information).T.ravel(),
        }
        return pa.table(columns, schema=tables.DOMAIN)

    def _ngram_rows(self, block: Block, found: Mapping[int, NgramRows]) -> pa.Table:
        """Rows of all lengths: by neuron, n, falling activations, token ids."""
        parts = []
        for n, rows in sorted(found.items()):
            token_ids = rows.token_ids
            offsets = np.arange(len(token_ids) + 1, dtype=np.int32) * n
            columns = {
                **_key(block, rows.neuron),
                "n": np.full(len(token_ids), n, np.int32),
                "token_ids": pa.ListArray.from_arrays(offsets, token_ids.astype(np.int32).ravel()),
                "text": pa.array([self._texts(ids) for ids in token_ids.tolist()], pa.string()),
                "occurrences": rows.occurrences,
                "activations": rows.activations,
                "rate": rows.rate,
                "share": rows.share,
            }
            parts.append(pa.table(columns, schema=tables.NGRAM))
        if not parts:
            return tables.NGRAM.empty_table()
        whole = pa.concat_tables(parts)
        order = np.lexsort((whole["n"].to_numpy(), whole["neuron"].to_numpy()))  # stable
        return whole.take(order)


@dataclass(frozen=True)
class _Curves:
    """What a block's curves tell of position."""

    information: NDArray[np.float64]
    """[neuron], nats"""
    positional: NDArray[np.bool_]
    """[neuron]"""
    kinds: NDArray[np.int8]
    """[neuron]: index into TYPES; says nothing where not positional."""
    strong: NDArray[np.bool_]
    """[neuron]"""
    consistent: NDArray[np.float64]
    """[neuron]: share of the domains in which the type holds; NaN where not positional."""
    indicated: Counts
    """[position]: strong oscillatory neurons that indicate it."""


def _key(block: Block, neurons: NDArray[np.integer[Any]]) -> dict[str, Any]:
    return {
        "layer": np.full(len(neurons), block.layer, np.int32),
        "neuron": (neurons + block.first).astype(np.int32),
    }


def spread(shards: Sequence[Shard]) -> list[int]:
    """Order shards so that every domain is spread evenly, as more of the same data would be."""
    of_domain: dict[str, list[int]] = {}
    for index, shard in enumerate(shards):
        of_domain.setdefault(shard.domain, []).append(index)
    place = {i: (k + 0.5) / len(own) for own in of_domain.values() for k, i in enumerate(own)}
    return sorted(place, key=lambda index: (place[index], index))


def changed(what: str) -> UserError:
    """Say that something stored is not what was committed, and the way out."""
    return UserError(f"the {what} is not what was committed: {REPAIR}.")


def sequences_by_domain(run: Run, shards: Sequence[Shard]) -> dict[str, int]:
    """Count the shards' sequences of each of the run's domains."""
    sequences = dict.fromkeys(run.layout.domains, 0)
    for shard in shards:
        sequences[shard.domain] += shard.num_sequences
    return sequences
