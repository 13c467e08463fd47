"""The merge of a whole synthetic run, block by block as a reduce worker does it, on one core."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.reduction import (
    BOS,
    DETECTORS,
    GROUP,
    LENGTHS,
    POSITIONS,
    Covers,
    baseline,
    by_counter,
    by_unique,
    mixed_bits,
    peak_of,
    zipf_tokens,
)
from benchmarks.rounds import Findings, Rounds, Timing
from benchmarks.store import create_run
from neuronstats import bits
from neuronstats.machine import peak_host_bytes
from neuronstats.model.settings import ModelSettings
from neuronstats.reduce import block as blocks
from neuronstats.reduce.block import Block, BlockResult, BlockWorker
from neuronstats.reduce.ngram_cache import NgramStore
from neuronstats.stats.ngram_ids import projected_bytes
from neuronstats.stats.settings import ReduceSettings
from neuronstats.store.commit import ShardWriter
from neuronstats.store.run import Run
from neuronstats.units import short, size

POOL = 160  # different neurons; others are theirs with the shards in another order
SAMPLE = GROUP  # neurons of a layer that the plain ways count
SHARD_SEQUENCES = 512
PEAK_GOAL = 2 << 30


@dataclass(frozen=True)
class Work:
    """The run's size."""

    num_layers: int
    num_neurons: int
    num_tokens: int


def merging(rounds: Rounds, work: Work, model: Path, scratch: Path) -> Findings:
    """Merge a layer after the other, and after each count some of its neurons in plain ways.

    Args:
        rounds: only to tell of progress; each layer after the first is a round.
        work: the run's size.
        model: a folder whose tokenizer writes n-grams.
        scratch: folder for the run.
    """
    run = write_run(scratch / "merge", work)
    shards = run.layout.shards
    settings = ReduceSettings(ngrams=LENGTHS)
    started = time.perf_counter()
    NgramStore(run, shards).prepare(LENGTHS)
    numbering = time.perf_counter() - started
    num_tokens = run.layout.num_sequences * POSITIONS
    todo = blocks.cut_blocks(run.layout, work.num_layers, num_tokens)
    blocks.create_positions(run, shards, todo, {})
    worker = BlockWorker(
        run.folder.location, shards, settings, ModelSettings(name="bench", path=str(model))
    )
    ids = NgramStore(run, shards).read(LENGTHS)
    ways: dict[str, Callable[[NDArray[np.uint32]], list[int]]] = {
        "np.unique": by_unique,
        "Counter": by_counter,
    }
    clock: dict[str, list[tuple[float, float]]] = {name: [] for name in ("merged", *ways)}
    counted: dict[str, list[int]] = {name: [] for name in clock}
    findings, peak = Findings(), 0
    for layer in range(work.num_layers):
        own = [block for block in todo if block.layer == layer]
        results, own_peak = peak_of(partial(_merge, worker, own), clock["merged"])
        peak = max(peak, own_peak or peak_host_bytes())
        counted["merged"].append(sum(int(result.activations.sum()) for result in results))
        bitmap = run.read_bits(layer, slice(0, SAMPLE), shards)
        found: Covers = [
            results[0].tables["neurons"][f"cover_{n}"].to_pylist()[:SAMPLE] for n in LENGTHS
        ]
        for name, way in ways.items():
            plain, _ = peak_of(partial(baseline, bitmap, ids, way), clock[name])
            counted[name].append(int(bits.count(bitmap).sum()))
            differ = int((np.array(plain) != np.array(found)).sum())
            findings.mismatches[f"covers, {name}"] = (
                findings.mismatches.get(f"covers, {name}", 0) + differ
            )
        rounds.tell(f"layer {layer + 1} of {work.num_layers}")
    ours, *theirs = (_timing(name, clock[name], counted[name]) for name in clock)
    findings.timings = [ours, *theirs]
    for other in theirs:
        note = "reading, checks, positions and texts included"
        findings.ratios.append(rounds.ratio(f"merged / {other.name}", ours, other, note=note))
    terms = blocks.memory_terms(
        run.layout,
        shards,
        todo[0].last,
        settings,
        projected_bytes(run.layout.num_sequences, POSITIONS, LENGTHS)["n-gram ids"],
    )
    planned = sum(term.bytes for term in terms)
    cells = work.num_layers * work.num_neurons * num_tokens
    findings.facts = [
        ("run", f"{work.num_layers} layers of {work.num_neurons} neurons, {cells:.2e} bits"),
        ("activated", f"{sum(counted['merged']) / cells:.2%}"),
        ("merged by one core", f"{short(ours.rate)} activations/s"),
        ("n-grams", ", ".join(f"{len(ids[n].occurrences):.3g} for n={n}" for n in LENGTHS)),
        ("numbering them, once", f"{numbering:.1f} s"),
        ("memory of the task", f"{size(peak)} of {size(planned)} planned; goal {size(PEAK_GOAL)}"),
    ]
    return findings


def _merge(worker: BlockWorker, work: Sequence[Block]) -> list[BlockResult]:
    return [worker(block) for block in work]


def write_run(folder: Path, work: Work) -> Run:
    """Write a run of Zipf's tokens and neurons of the mix, with all commits."""
    tokens = zipf_tokens(max(1, work.num_tokens // POSITIONS), POSITIONS)
    model = {"bos_token_id": BOS}
    run = create_run(folder, tokens, work.num_layers, work.num_neurons, SHARD_SEQUENCES, model)
    layout = run.layout
    pool = mixed_bits(tokens, min(POOL, work.num_neurons))
    edges = [0, *(shard.sequences.stop for shard in layout.shards)]
    pieces = [pool[:, first:last] for first, last in pairwise(edges)]
    num_groups = len(pool) // GROUP
    num_whole = sum(shard.num_sequences == SHARD_SEQUENCES for shard in layout.shards)
    for shard in layout.shards:
        writer = ShardWriter(run, shard)
        for layer in range(work.num_layers):
            bitmap = np.empty((work.num_neurons, *pieces[shard.index].shape[1:]), np.uint8)
            for neuron in range(work.num_neurons):
                turn, kind = divmod(neuron, GROUP)  # any GROUP neurons in a row are of the mix
                row = kind + GROUP * ((turn + layer) % num_groups)
                source = shard.index
                if source < num_whole and kind < GROUP - DETECTORS:  # these keep to their tokens
                    source = (source + turn) % num_whole
                bitmap[neuron] = pieces[source][row]
            rows = torch.from_numpy(bitmap.transpose(1, 2, 0).copy())
            writer.write_layer(layer, bitmap, bits.position_counts(rows, POSITIONS))
        writer.commit()
    return run


def _timing(name: str, clock: list[tuple[float, float]], work: list[int]) -> Timing:
    """Put rounds of different work on the scale of their mean; the first one warms up."""
    mean = sum(work[1:]) / max(1, len(work) - 1)
    scaled = [
        (wall * mean / max(1, own), cpu * mean / max(1, own))
        for (wall, cpu), own in zip(clock[1:], work[1:], strict=True)
    ]
    walls, cpus = zip(*scaled, strict=True)
    return Timing(name, "activations", int(mean), walls, cpus)
