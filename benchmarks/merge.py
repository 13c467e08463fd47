"""A run of random weights merged by the reduction's worker, against plain counting."""

import dataclasses
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.reduction import LENGTHS, by_counter, by_unique, plain_covers, zipf_tokens
from benchmarks.rounds import Contestant, Findings, Rounds, Value
from benchmarks.settings import Sizes
from benchmarks.start import UNITS
from benchmarks.subject import BOS, VOCABULARY, collect_run, opt_config, write_random
from neuronstats import bits
from neuronstats.cluster.settings import RaySettings
from neuronstats.console import Console
from neuronstats.errors import UserError
from neuronstats.reduce.block import Block, part_neurons
from neuronstats.reduce.counts import LayerCounts, create_positions
from neuronstats.reduce.job import reduce
from neuronstats.reduce.ngram_cache import NgramStore
from neuronstats.reduce.settings import ReduceJob
from neuronstats.reduce.worker import ReduceWorker
from neuronstats.stats.ngram_ids import build_ngram_ids
from neuronstats.stats.sections import SECTIONS
from neuronstats.stats.settings import ReduceSettings
from neuronstats.store.bitmaps import BitmapReader, decode
from neuronstats.store.run import Run

HIDDEN, HEADS, POSITIONS = 64, 4, 512
ACTIVE = (0.0, 0.0, 1e-4, 1e-3, 1e-2, 0.1)  # of neurons, in turn: share of tokens; 0: dead
SAMPLE = 4 * len(ACTIVE)  # neurons that are counted in the plain way
READ_BLOCKS = 4
CORE_MINUTES = 36864 * 32  # neurons of opt-66b's first half


def merging(rounds: Rounds, sizes: Sizes, scratch: Path) -> Findings:
    """Merge the run's first layer; count SAMPLE of its neurons plainly; read and decode some.

    Raises:
        UserError: the run cannot be made.
    """
    run = random_run(scratch, sizes.merge_layers, sizes.merge_neurons, sizes.merge_tokens)
    tokens = run.corpus().tokens
    layout, shards = run.layout, run.layout.shards
    sample = run.read_bits(0, slice(0, SAMPLE), shards)
    corpus = build_ngram_ids(tokens, BOS, LENGTHS)
    planned = _reduced(run)
    rows = pq.read_table(f"{run.folder.location}/tables/neurons.parquet")
    found = [rows[f"cover_{n}"].to_pylist()[:SAMPLE] for n in LENGTHS]
    activations = sum(rows["activations"].to_pylist()[: layout.num_neurons])
    blocks = list(Block(0, 0, layout.num_neurons).parts(part_neurons(layout, tokens.size)))
    merge, merge_all = _workers(run, blocks)
    frames = _Frames(run, blocks[:READ_BLOCKS])
    plain = int(bits.count(sample).sum())
    contestants = [
        Contestant("merged", activations, merge),
        Contestant("merged, with vocabulary", activations, merge_all),
        Contestant("np.unique", plain, lambda: plain_covers(sample, corpus, by_unique)),
        Contestant("Counter", plain, lambda: plain_covers(sample, corpus, by_counter)),
        Contestant("read", frames.num_bytes, frames.read),
        Contestant("zstd alone", frames.num_bytes, frames.decode),
    ]
    timings = rounds.measure(contestants, "units")
    note = "reading, checks, positions, rows; one core"
    goals = [("merged", "np.unique", 6.0, note), ("merged", "Counter", 20.0, note)]
    goals.append(("read", "zstd alone", 1 / 1.3, "checks and counts included"))
    ratios = [
        rounds.ratio(f"{ours} / {theirs}", timings[ours], timings[theirs], goal=goal, note=note)
        for ours, theirs, goal, note in goals
    ]
    wide = rounds.ratio(
        "merged, with vocabulary / merged", timings["merged, with vocabulary"], timings["merged"]
    )
    seconds = activations / timings["merged"].rate / layout.num_neurons
    differ = np.array(plain_covers(sample, corpus, by_unique)) != np.array(found)
    share = activations / (layout.num_neurons * tokens.size)
    return Findings(
        timings=list(timings.values()),
        ratios=[*ratios, wide],
        values=[Value("peak memory / plan", planned, "", least=0.8, most=1.0)],
        mismatches={"covers, reduced run": int(differ.sum())},
        facts=[
            ("run", f"{layout.num_neurons} neurons, {len(shards)} shards, random weights"),
            ("tokens", f"{tokens.size:.2e}, by Zipf's law; activated on {share:.2%}"),
            ("a neuron", f"{1000 * seconds:.2f} ms"),
            (
                "opt-66b's first half, by arithmetic",
                f"{CORE_MINUTES * seconds / 60:.0f} core-minutes at as many tokens",
            ),
        ],
    )


def random_run(scratch: Path, layers: int, neurons: int, num_tokens: int) -> Run:
    """Collect a model of random weights over tokens by Zipf's law, all bitmaps; return the run.

    Raises:
        UserError: the job was interrupted.
    """
    config = opt_config(layers, HIDDEN, HEADS, VOCABULARY, neurons=neurons)
    write_random(scratch / "model", config, ACTIVE, torch.float32)
    tokens = zipf_tokens(max(1, num_tokens // POSITIONS), POSITIONS)
    return Run.open(str(collect_run(scratch, tokens, layers, Console(io.StringIO()))))


def _reduced(run: Run) -> float:
    """Reduce the run with one worker; return the worker's peak memory, as a share of its plan."""
    told = io.StringIO()
    job = ReduceJob(run=run.folder.location, ray=RaySettings(workers=1))
    if reduce(job, Console(told)):
        raise UserError("the reduction was interrupted")
    words = " ".join(told.getvalue().split())
    found = re.search(r"peak memory ([\d.]+) (\w+) of ([\d.]+) (\w+) planned", words)
    assert found is not None, words
    peak, planned = (float(found[i]) * UNITS[found[i + 1]] for i in (1, 3))
    return peak / planned


def _workers(run: Run, blocks: list[Block]) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return what merges the first layer: by the paper's sections, and with the vocabulary's."""
    shards = list(run.layout.shards)
    NgramStore(run, shards).prepare(LENGTHS)
    create_positions(run, shards, run.layout.num_layers, blocks[0].last, {})
    calls = []
    for vocabulary in (False, True):
        settings = dataclasses.replace(ReduceSettings(), vocabulary=vocabulary)
        args = (run.folder.location, shards, settings, run.about.model, SECTIONS)
        worker = ReduceWorker(*args)

        def merge(worker: ReduceWorker = worker) -> None:
            worker(LayerCounts(0))
            for block in blocks:
                worker(block)

        calls.append(merge)
    return calls[0], calls[1]


class _Frames:
    """The stored chunks of some blocks: read by `BitmapReader`, or decoded from memory alone."""

    def __init__(self, run: Run, blocks: list[Block]) -> None:
        self._run, self._blocks = run, blocks
        self._reader = BitmapReader(run.folder, run.layout)
        layout = run.layout
        row = bits.packed_bytes(layout.num_positions)
        width = max(block.last - block.first for block in blocks)
        self._space = np.zeros((width, layout.num_sequences, row), np.uint8)
        self._chunk = np.zeros((layout.neurons_per_chunk, layout.shard_sequences, row), np.uint8)
        self._frames = [
            frame
            for block in blocks
            for shard in layout.shards
            for _, frame in self._reader.frames(block.layer, block.first, block.last, shard)
        ]
        self.num_bytes = len(blocks) * width * layout.num_sequences * row

    def read(self) -> None:
        """Read, check and count."""
        for block in self._blocks:
            neurons = slice(block.first, block.last)
            self._reader.read(
                block.layer,
                neurons,
                self._run.layout.shards,
                out=self._space[: block.last - block.first],
                on_part=lambda _index, _first, part: bits.count(part),
            )

    def decode(self) -> None:
        """Decompress alone."""
        for frame in self._frames:
            if frame is not None:
                decode(frame, self._chunk)
