"""A whole run of random weights reduced by the reduce job, against plain counting."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.reduction import LENGTHS, by_unique, plain_covers, zipf_tokens
from benchmarks.rounds import Contestant, Findings, Rounds
from benchmarks.settings import Sizes
from benchmarks.subject import BOS, VOCABULARY, collect_run, opt_config, write_random
from neuronstats import bits
from neuronstats.cluster.settings import RaySettings
from neuronstats.console import Console
from neuronstats.errors import UserError
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.stats.ngram_ids import build_ngram_ids
from neuronstats.store.run import Run

HIDDEN, HEADS, POSITIONS = 64, 4, 512
ACTIVE = (0.0, 0.0, 1e-4, 1e-3, 1e-2, 0.1)  # of neurons, in turn: share of tokens; 0: dead
SAMPLE = 4 * len(ACTIVE)  # neurons that are counted in the plain way


def merging(rounds: Rounds, sizes: Sizes, scratch: Path) -> Findings:
    """Reduce the run with one worker; count SAMPLE neurons of its first layer by np.unique.

    Args:
        rounds: how often.
        sizes: of the run.
        scratch: an empty folder.

    Raises:
        UserError: the reduction was interrupted.
    """
    num_layers, num_neurons = sizes.merge_layers, sizes.merge_neurons
    config = opt_config(num_layers, HIDDEN, HEADS, VOCABULARY, neurons=num_neurons)
    write_random(scratch / "model", config, ACTIVE, torch.float32)
    tokens = zipf_tokens(max(1, sizes.merge_tokens // POSITIONS), POSITIONS)
    silent = Console(io.StringIO())
    location = collect_run(scratch, tokens, num_layers, silent)
    run = Run.open(str(location))
    sample = run.read_bits(0, slice(0, SAMPLE), run.layout.shards)
    corpus = build_ngram_ids(tokens, BOS, LENGTHS)
    job = ReduceJob(run=str(location), ray=RaySettings(workers=1))

    def reduced() -> None:
        if reduce(job, silent):
            raise UserError("the reduction was interrupted")

    reduced()
    rows = pq.read_table(location / "tables/neurons.parquet")
    found = [rows[f"cover_{n}"].to_pylist()[:SAMPLE] for n in LENGTHS]
    activations = sum(rows["activations"].to_pylist())
    timings = rounds.measure(
        [
            Contestant("reduced", activations, reduced),
            Contestant(
                "np.unique",
                int(bits.count(sample).sum()),
                lambda: plain_covers(sample, corpus, by_unique),
            ),
        ],
        "activations",
    )
    ours, theirs = timings["reduced"], timings["np.unique"]
    note = "the whole job with one worker: its start, reading, checks, positions, tables"
    ratio = rounds.ratio("reduced / np.unique", ours, theirs, note=note)
    differ = np.array(plain_covers(sample, corpus, by_unique)) != np.array(found)
    share = activations / (num_layers * num_neurons * tokens.size)
    return Findings(
        timings=[ours, theirs],
        ratios=[dataclasses.replace(ratio, cpu=None)],  # the worker is another process
        mismatches={"covers, reduced run": int(differ.sum())},
        facts=[
            ("run", f"{num_layers} layers of {num_neurons} neurons, random weights"),
            ("tokens", f"{tokens.size:.2e}, by Zipf's law; activated on {share:.2%}"),
        ],
    )
