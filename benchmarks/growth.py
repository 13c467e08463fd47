"""How time and the driver's memory grow with tokens and with neurons, for each job.

Processor time counts: of the job and of all that it starts. A neighbour on the machine disturbs it
less than the clock, and what starting takes is the same for all sizes.
"""

import shutil
from pathlib import Path

import numpy as np
import torch

from benchmarks.commands import ROOT, Ran, run
from benchmarks.reduction import zipf_tokens
from benchmarks.rounds import Findings, Rounds, Value
from benchmarks.settings import Sizes
from benchmarks.subject import opt_config, write_random

HIDDEN, HEADS, LAYERS, VOCABULARY, POSITIONS, NEURONS = 64, 4, 2, 50272, 256, 4096
ACTIVE = (0.0, 1e-3, 1e-2, 0.1)
TIMES = {"tokens": (1, 2, 4, 8), "neurons": (1, 2, 4)}
MOST = 1.05  # of an exponent
FLAT_SECONDS = 0.5  # what does not grow by so much from the first size to the last, does not grow
EXPONENTS = np.arange(0.01, 3, 0.01)
JOBS = ("collect", "reduce", "report")


def growth(rounds: Rounds, sizes: Sizes, scratch: Path) -> Findings:
    """Run the three jobs on ever more tokens, and on ever more neurons.

    Args:
        rounds: tells of each size; each is run once.
        sizes: tokens to begin with.
        scratch: an empty folder.

    Raises:
        UserError: a job fails.
    """
    findings = Findings()
    for what, times in TIMES.items():
        found: dict[str, list[Ran]] = {job: [] for job in JOBS}
        for factor in times:
            neurons = NEURONS * (factor if what == "neurons" else 1)
            tokens = sizes.growth_tokens * (factor if what == "tokens" else times[-1])
            for job, one in _jobs(scratch, neurons, tokens).items():
                found[job].append(one)
            rounds.report(f"{what} x{factor}")
        for job, ran in found.items():
            seconds = [one.cpu_seconds for one in ran]
            clock = ", ".join(f"{one.seconds:.1f}" for one in ran)
            note = ", ".join(f"{second:.1f}" for second in seconds) + f" s; by the clock {clock} s"
            name = f"exponent of {what}, {job}"
            findings.values.append(Value(name, exponent(seconds), "", most=MOST, note=note))
            memory = ran[-1].own_bytes / ran[0].own_bytes
            name = f"driver's memory at {what} x{times[-1]} / x1, {job}"
            findings.values.append(Value(name, memory, ""))
    findings.facts = [
        ("model", f"{LAYERS} layers of d={HIDDEN}, {NEURONS} neurons or more, random weights"),
        ("tokens", f"{sizes.growth_tokens} or more, by Zipf's law; each time twice as much"),
        ("exponent", "e of seconds of processor time = a + b x^e, by least squares"),
    ]
    return findings


def exponent(seconds: list[float]) -> float:
    """Return e of a + b x^e by least squares, of sizes that double each time; 0: no growth."""
    if seconds[-1] - seconds[0] < FLAT_SECONDS:
        return 0.0
    sizes = 2.0 ** np.arange(len(seconds))

    def distance(power: float) -> float:
        terms = np.column_stack([np.ones_like(sizes), sizes**power])
        fitted = terms @ np.linalg.lstsq(terms, seconds, rcond=None)[0]
        return float(np.square(fitted - seconds).sum())

    return float(min(EXPONENTS, key=distance))


def _jobs(scratch: Path, neurons: int, num_tokens: int) -> dict[str, Ran]:
    """Run the three jobs on fresh folders."""
    model, tokens = scratch / f"model-{neurons}", scratch / f"tokens-{num_tokens}.npy"
    if not model.exists():
        config = opt_config(LAYERS, HIDDEN, HEADS, VOCABULARY, neurons=neurons, positions=POSITIONS)
        write_random(model, config, ACTIVE, torch.float32)
    if not tokens.exists():
        np.save(tokens, zipf_tokens(num_tokens // POSITIONS, POSITIONS))
    place = scratch / "run"
    shutil.rmtree(place, ignore_errors=True)
    common = [f"run={place}", "ray.workers=1"]
    source = ["model=local", f"model.path={model}", "data=tokens", f"data.path={tokens}"]
    shard = "collect.shard_sequences=64"  # the same length, so that their number grows
    return {
        "collect": run(ROOT / "jobs/collect.py", *source, shard, "collect.bitmaps=all", *common),
        "reduce": run(ROOT / "jobs/reduce.py", *common),
        "report": run(ROOT / "jobs/report.py", f"runs=[{place}]"),
    }
