"""The reduce job: bitmaps and counts of all shards -> tables, a (layer, neuron block) a task."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from neuronstats import bits, layerstats, positions, tables
from neuronstats.checkpoint import Dtype, ModelSettings
from neuronstats.cluster import Pool, connect
from neuronstats.config import INTERRUPTED, ReduceJob, ReduceSettings
from neuronstats.console import Console, duration, short
from neuronstats.errors import UserError
from neuronstats.folder import told
from neuronstats.layerstats import BlockResult
from neuronstats.ngram_ids import NgramIds, build_ngram_ids
from neuronstats.ngrams import NgramCounts, NgramRows, count_ngrams
from neuronstats.position_types import MIN_POSITIONS, OTHER, TYPES, classify
from neuronstats.store import REPAIR, Run, Shard
from neuronstats.suppress import SuppressionWorker
from neuronstats.vocabulary import Texts

BLOCK_BYTES = 96 << 20  # bits and position counts that a task holds at a time

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """The unit of the merge: some neurons of one layer, over all shards."""

    layer: int
    first: int
    last: int

    def __str__(self) -> str:
        return f"layer {self.layer}, neurons {self.first}-{self.last - 1}"


def blocks(run: Run, num_tokens: int) -> list[Block]:
    """Cut the run's layers into blocks whose bits fit the memory of a task."""
    layout = run.layout
    per_neuron = -(-num_tokens // 8) + 16 * layout.num_positions * (1 + len(layout.domains))
    chunk = layout.neurons_per_chunk
    step = max(chunk, BLOCK_BYTES // per_neuron // chunk * chunk)
    return [
        Block(layer, first, min(first + step, layout.num_neurons))
        for layer in range(layout.num_layers)
        for first in range(0, layout.num_neurons, step)
    ]


class BlockWorker:
    """Does the blocks of one run; the corpus's n-grams are numbered once.

    Args:
        location: the run.
        shards: those that count.
        settings: lengths and thresholds.
        bos_id: the begin-of-sequence token.
        model: whose tokenizer writes n-grams as text.
    """

    def __init__(
        self,
        location: str,
        shards: Sequence[Shard],
        settings: ReduceSettings,
        bos_id: int,
        model: ModelSettings,
    ) -> None:
        self._run = Run.open(location)
        self._shards, self._settings = shards, settings
        self._num_sequences = sum(shard.num_sequences for shard in shards)
        self._ids: dict[int, NgramIds] = {}
        if self._run.layout.num_bitmaps:
            corpus = self._run.corpus()
            tokens = np.concatenate([corpus.tokens[shard.sequences] for shard in shards])
            self._ids = build_ngram_ids(tokens, bos_id, settings.ngrams)
        self._texts = Texts(model)
        store = self._run.folder.zarr_store(f"{tables.PARTIAL}/{tables.POSITIONS}", read_only=False)
        self._positions = zarr.open_group(store, mode="r+", use_consolidated=False)

    def __call__(self, block: Block) -> BlockResult:
        """Merge one block over all shards."""
        layout = self._run.layout
        neurons = slice(block.first, block.last)
        by_domain, by_shard = self._merge_counts(block)
        counts = by_domain.sum(axis=0)  # [position, neuron]
        with told("write", f"{self._run.folder.location}/{tables.PARTIAL}"):
            self._positions["counts"][block.layer, :, neurons] = counts
            self._positions["counts_by_domain"][:, block.layer, :, neurons] = by_domain
        found: dict[int, NgramCounts] = {}
        if block.layer < layout.num_bitmaps:
            bitmap = self._run.read_bits(block.layer, neurons, self._shards)
            self._check_bits(block, bitmap, by_shard)
            found = count_ngrams(bitmap, self._ids, self._settings)
        return BlockResult(
            neurons=self._neuron_rows(block, counts, found),
            domains=self._domain_rows(block, by_domain),
            ngrams=self._ngram_rows(block, {n: c.detected for n, c in found.items()}),
            triggers=self._ngram_rows(block, {n: c.triggers for n, c in found.items()}),
            loose={n: int(c.detector_loose.sum()) for n, c in found.items()},
            activations=by_shard.sum(axis=1),
            never=(np.cumsum(by_shard[spread(self._shards)], axis=0) == 0).sum(axis=1),
        )

    def _merge_counts(self, block: Block) -> tuple[Counts, Counts]:
        """Add up position counts: int64 [domain, position, neuron], and int64 [shard, neuron]."""
        layout, width = self._run.layout, block.last - block.first
        by_domain = np.zeros((len(layout.domains), layout.num_positions, width), np.int64)
        by_shard = np.zeros((len(self._shards), width), np.int64)
        neurons = slice(block.first, block.last)
        merged = self._run.read_position_counts(block.layer, neurons, self._shards)
        for index, (shard, counts) in enumerate(merged):
            if counts.max(initial=0) > shard.num_sequences:
                raise _changed(f"position counts of layer {block.layer} of {shard}")
            by_domain[layout.domains.index(shard.domain)] += counts
            by_shard[index] = counts.sum(axis=0)
        return by_domain, by_shard

    def _check_bits(self, block: Block, bitmap: NDArray[np.uint8], by_shard: Counts) -> None:
        """Hold the bits of each neuron and shard against the position counts, written apart."""
        start = 0
        for index, shard in enumerate(self._shards):
            end = start + shard.num_sequences
            if not np.array_equal(bits.count(bitmap[:, start:end]), by_shard[index]):
                raise _changed(f"bitmap of layer {block.layer} of {shard}")
            start = end

    def _neuron_rows(
        self, block: Block, counts: Counts, found: Mapping[int, NgramCounts]
    ) -> pa.Table:
        num_positions, width = counts.shape
        num_tokens = self._num_sequences * num_positions
        activations = counts.sum(axis=0)
        information = positions.mutual_information(counts, self._num_sequences)
        positional = information > self._settings.positional_mi
        kinds, strong = np.full(width, OTHER, np.int8), np.zeros(width, bool)
        if num_positions > MIN_POSITIONS:  # a shorter curve has no shape to speak of
            typed = classify(counts[:, positional], self._num_sequences, self._settings)
            kinds[positional], strong[positional] = typed
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
        columns |= {
            "suppresses": pa.nulls(width, pa.bool_()),
            "trigger_projection": pa.nulls(width, pa.float64()),
            "position_mi": information,
            "position_mi_corrected": positions.corrected_information(
                information, num_positions, self._num_sequences
            ),
            "position_type": tables.masked(np.array(TYPES, object)[kinds], positional, pa.string()),
            "position_strong": tables.masked(strong, positional, pa.bool_()),
        }
        return pa.table(columns, schema=tables.neuron_schema(self._settings.ngrams))

    def _domain_rows(self, block: Block, by_domain: Counts) -> pa.Table:
        """A row per neuron and domain, by neuron, then in the domains' order."""
        num_domains, num_positions, width = by_domain.shape
        sequences = _sequences_by_domain(self._run, self._shards)
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


def _changed(what: str) -> UserError:
    return UserError(f"the {what} is not what was committed: {REPAIR}.")


def _tokens_seen(run: Run, shards: Sequence[Shard]) -> list[int]:
    lengths = [shards[index].num_sequences * run.layout.num_positions for index in spread(shards)]
    return np.cumsum(lengths).tolist()


def _sequences_by_domain(run: Run, shards: Sequence[Shard]) -> dict[str, int]:
    sequences = dict.fromkeys(run.layout.domains, 0)
    for shard in shards:
        sequences[shard.domain] += shard.num_sequences
    return sequences


def committed_shards(run: Run, *, partial: bool) -> tuple[list[Shard], Counts]:
    """Return the shards that count and their records' activations, int64 [shard, layer].

    Raises:
        UserError: shards are missing and partial is False, or objects are missing or cut off.
    """
    records = run.records()
    missing = len(run.layout.shards) - len(records)
    if missing and (not partial or not records):
        share = 100 * missing / len(run.layout.shards)
        raise UserError(
            f"{run.folder.location} is not finished: {missing} of {len(run.layout.shards)} shards"
            f" ({share:.0f} %) are missing. Run collect again to the end"
            + ("." if not records else ", or reduce with partial=true, which marks the tables.")
        )
    damage = run.damaged(records.values(), contents=False)
    if damage:
        index, reason = next(iter(sorted(damage.items())))
        raise UserError(f"{run.layout.shards[index]}: {reason}; {REPAIR}.")
    shards = [run.layout.shards[index] for index in sorted(records)]
    activations = np.array([records[shard.index].activations for shard in shards], np.int64)
    return shards, activations


def reduce(settings: ReduceJob, console: Console) -> int:
    """Do the job; return its exit code."""
    start = time.monotonic()
    run = Run.open(settings.run)
    shards, activations = committed_shards(run, partial=settings.partial)
    model = ModelSettings(**{**run.info["settings"]["model"], "dtype": Dtype.auto})
    num_tokens = sum(shard.num_sequences for shard in shards) * run.layout.num_positions
    work = blocks(run, num_tokens)
    complete = len(shards) == len(run.layout.shards)
    metadata = {
        "fingerprint": run.fingerprint,
        "settings": dataclasses.asdict(settings.reduce),
        "tokens": num_tokens,
        "shards": len(shards),
        "complete": complete,
    }
    with run.folder.lock():
        files = tables.TableFiles(run.folder, metadata)
        with told("write", f"{run.folder.location}/{tables.PARTIAL}"):
            _create_positions(run, shards, metadata)
        args = (
            run.folder.location,
            shards,
            settings.reduce,
            run.info["model"]["bos_token_id"],
            model,
        )
        merged = layerstats.Merge(run.layout, settings.reduce.ngrams, num_tokens)
        with connect(settings.ray, tell=console.say) as pool:
            if not _run_blocks(pool, args, work, files, merged, console):
                console.say(
                    "stopped; the old tables are as they were. The same command starts again."
                )
                return INTERRUPTED
            _check_records(merged.activations, activations, shards)
            tasks = merged.layer_tokens()
            judge = (model, run.info["identity"]["model.weights"], settings.reduce.centred)
            for task, found in pool.run(SuppressionWorker, judge, tasks):
                merged.add_suppression(task.layer, found)
            if len(merged.suppression()) < sum(len(task.detected) for task in tasks):
                return INTERRUPTED
        neurons = merged.neurons()
        files.append("neurons", neurons)
        files.append("layers", merged.layers(neurons))
        files.append("suppression", merged.suppression())
        files.append("dead_curve", merged.dead_curve(_tokens_seen(run, shards)))
        files.finish()
    marked = "" if complete else f" of {len(shards)} of {len(run.layout.shards)} shards (partial)"
    console.say(
        f"reduced: {short(num_tokens)} tokens{marked}, {layerstats.summary(neurons)},"
        f" {duration(time.monotonic() - start)}: {run.folder.location}/{tables.TABLES}"
    )
    return 0


def _run_blocks(
    pool: Pool,
    args: tuple[Any, ...],
    work: list[Block],
    files: tables.TableFiles,
    merged: layerstats.Merge,
    console: Console,
) -> bool:
    """Do all blocks; rows go to the files in the blocks' order. Return whether all were done."""
    total = sum(block.last - block.first for block in work)
    with console.progress("reduce", total, "neurons") as advance:
        done = 0
        for block, result in _in_order(pool.run(BlockWorker, args, work), work):
            files.append("domains", result.domains)
            files.append("ngrams", result.ngrams)
            files.append("triggers", result.triggers)
            merged.add(block.layer, result)
            done += 1
            advance(block.last - block.first, f"{done}/{len(work)} blocks")
    return done == len(work)


def _in_order(
    results: Iterator[tuple[Block, BlockResult]], work: list[Block]
) -> Iterator[tuple[Block, BlockResult]]:
    waiting: dict[Block, BlockResult] = {}
    following = 0
    for block, result in results:
        waiting[block] = result
        while following < len(work) and work[following] in waiting:
            yield work[following], waiting.pop(work[following])
            following += 1


def _create_positions(run: Run, shards: Sequence[Shard], metadata: Mapping[str, Any]) -> None:
    layout = run.layout
    store = run.folder.zarr_store(f"{tables.PARTIAL}/{tables.POSITIONS}", read_only=False)
    root = zarr.create_group(store, overwrite=True, attributes=dict(metadata))
    shape = (layout.num_layers, layout.num_positions, layout.num_neurons)
    step = blocks(run, sum(shard.num_sequences for shard in shards) * layout.num_positions)[0].last
    chunks = (1, layout.num_positions, min(step, layout.num_neurons))
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
    sequences = _sequences_by_domain(run, shards)
    by_domain.attrs["domains"] = list(sequences)
    by_domain.attrs["sequences"] = list(sequences.values())


def _check_records(found: Counts, recorded: Counts, shards: Sequence[Shard]) -> None:
    """Hold the merged activations, int64 [shard, layer], against the records'."""
    wrong = np.argwhere(found != recorded)
    if len(wrong):
        shard, layer = wrong[0]
        raise _changed(f"position counts of layer {layer} of {shards[shard]}")
