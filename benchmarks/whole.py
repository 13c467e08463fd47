"""The whole job as commands against the script that one would write instead."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.commands import ROOT, run
from benchmarks.rounds import Contestant, Findings, Rounds
from benchmarks.settings import Sizes
from benchmarks.subject import SHAPES, Tokens, opt_config, random_tokens, write_random
from neuronstats.collect.inspect import inspect, read_text
from neuronstats.collect.settings import CollectJob
from neuronstats.corpus.settings import DataSettings
from neuronstats.model.settings import ModelSettings
from neuronstats.model.source import locate
from neuronstats.units import size

SCRIPT = ROOT / "benchmarks/by_hand.py"
POSITIONS = 512


def whole(rounds: Rounds, sizes: Sizes, scratch: Path) -> Findings:
    """Run both on the embedded model and text, and on random weights in the shape of opt-125m.

    Args:
        rounds: how often.
        sizes: tokens of both.
        scratch: an empty folder.

    Raises:
        UserError: a command fails.
    """
    findings = Findings(facts=[("script", f"{len(SCRIPT.read_text().splitlines())} lines")])
    layers, hidden, heads, vocabulary = SHAPES["opt-125m"]
    config = opt_config(sizes.layers or layers, hidden, heads, vocabulary)
    write_random(scratch / "random", config, [sizes.active], torch.float32)
    sequences = max(1, sizes.whole_random_tokens // POSITIONS)
    np.save(scratch / "random.npy", random_tokens(sequences, POSITIONS, vocabulary))
    np.save(scratch / "mini.npy", _sample(sizes.whole_tokens))
    mini = locate(ModelSettings(name="opt-mini", path="embedded:opt-mini"))
    subjects = {"opt-mini": (mini, "mini"), "opt-125m's shape": (scratch / "random", "random")}
    for name, (model, tokens) in subjects.items():
        _compare(findings, rounds, name, model, scratch / f"{tokens}.npy", scratch / tokens)
    return findings


def _sample(max_tokens: int) -> Tokens:
    """Return the embedded text's token ids [sequence, position]."""
    data = DataSettings(name="sample", kind="sample", max_tokens=max_tokens)
    job = CollectJob(model=ModelSettings(name="opt-mini", path="embedded:opt-mini"), data=data)
    return read_text(inspect(job, lambda _: None)).tokens


def _compare(
    findings: Findings, rounds: Rounds, name: str, model: Path, tokens: Path, place: Path
) -> None:
    """Add one subject's ratio, memory, disk, and what differs."""
    out, peaks = place.with_suffix(".npz"), dict[str, int]()
    folder = f"run={place}-run"
    ours = [
        [str(ROOT / "jobs/collect.py"), "model=local", f"model.path={model}", "model.dtype=float32",
         "data=tokens", f"data.path={tokens}", folder],
        [str(ROOT / "jobs/reduce.py"), folder, "reduce.vocabulary=false"],  # the script has none
    ]  # fmt: skip
    theirs = [[str(SCRIPT), str(model), str(tokens), str(out)]]

    def command(which: str, commands: list[list[str]]) -> None:
        shutil.rmtree(f"{place}-run", ignore_errors=True)
        peaks[which] = max(peaks.get(which, 0), *(run(*each).all_bytes for each in commands))

    num_tokens = int(np.load(tokens, mmap_mode="r").size)
    contestants = [
        Contestant(f"by hand, {name}", num_tokens, lambda: command("by hand", theirs)),
        Contestant(f"collect and reduce, {name}", num_tokens, lambda: command("ours", ours)),
    ]
    cold = dataclasses.replace(rounds, warmups=0)  # each command starts anew
    hand, job = cold.measure(contestants, "tokens").values()
    ratio = rounds.ratio(f"collect and reduce / by hand, {name}", job, hand)
    findings.ratios.append(dataclasses.replace(ratio, cpu=None))
    findings.timings += [hand, job]
    findings.mismatches[f"by hand, {name}"] = differences(Path(f"{place}-run"), out)
    written = sum(p.stat().st_size for p in Path(f"{place}-run").rglob("*") if p.is_file())
    findings.facts += [
        (f"{name}", f"{num_tokens} tokens"),
        (f"memory of all processes, {name}", ", ".join(f"{k} {size(v)}" for k, v in peaks.items())),
        (f"disk, {name}", f"ours {size(written)}, by hand {size(out.stat().st_size)}: no bits"),
    ]


def differences(run: Path, by_hand: Path) -> int:
    """Count the neurons of which the script says something else."""
    rows, found = pq.read_table(run / "tables/neurons.parquet"), np.load(by_hand)
    wrong = rows["activations"].to_numpy() != found["activations"].ravel()
    wrong |= ~np.isclose(rows["position_mi"].to_numpy(), found["position_mi"].ravel(), atol=1e-12)
    covered = found["covers"].transpose(0, 2, 1).reshape(-1, found["covers"].shape[1])
    for column, n in enumerate((1, 2, 3)):
        own = rows[f"cover_{n}"].to_numpy(zero_copy_only=False)[: len(covered)]
        wrong[: len(covered)] |= own != covered[:, column]
    return int(wrong.sum())
