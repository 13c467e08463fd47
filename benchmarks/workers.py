"""Two workers of one thread against one, in turn: collect and reduce on the embedded model.

For a machine at rest with two cores or more; a run should take a minute.
"""

import re
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from benchmarks.rounds import Findings, Rounds, Value
from neuronstats.errors import UserError

JOBS = Path(__file__).parent.parent / "jobs"
COLLECT_GOAL, REDUCE_GOAL = 1.85, 1.7  # times as fast
OUTSIDE_GOAL = 8.0  # seconds of a collect job that are no sweep
STAMP = re.compile(r"^([\d-]+ [\d:,]+) .*shard \d+ .*: (start|committed)", re.MULTILINE)


def scaling(rounds: Rounds, scratch: Path, max_tokens: int) -> Findings:
    """Run both jobs with one worker and with two, in turn, as often as there are rounds.

    Args:
        rounds: how often.
        scratch: for the runs.
        max_tokens: of the embedded text.

    Raises:
        UserError: a job fails.
    """
    sweeps: dict[int, list[float]] = {1: [], 2: []}
    reductions: dict[int, list[float]] = {1: [], 2: []}
    outside = []
    for number in range(rounds.rounds):
        for workers in (1, 2):
            run = scratch / f"workers-{number}-{workers}"
            text = f"data.max_tokens={max_tokens}"
            whole = _run("collect", workers, f"run={run}", text, "collect.shard_sequences=32")
            sweeps[workers].append(_sweep_seconds(run))
            outside.append(whole - sweeps[workers][-1])
            reductions[workers].append(_run("reduce", workers, f"run={run}"))
        rounds.report(f"round {number + 1} of {rounds.rounds}")
    values = []
    for job, seconds, goal in (
        ("collect", sweeps, COLLECT_GOAL),
        ("reduce", reductions, REDUCE_GOAL),
    ):
        ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
        times = "; ".join(f"{n}: {', '.join(f'{s:.1f}' for s in seconds[n])} s" for n in (1, 2))
        name = f"two workers / one, {job}"
        values.append(Value(name, statistics.median(ratios), "", least=goal, note=times))
    values.append(Value("outside the sweep", min(outside), "s", most=OUTSIDE_GOAL))
    return Findings(
        values=values,
        facts=[("run", f"opt-mini over {max_tokens} tokens of the embedded text, one thread each")],
    )


def _run(job: str, workers: int, *settings: str) -> float:
    """Run a job; return its seconds."""
    start = time.monotonic()
    command = [sys.executable, str(JOBS / f"{job}.py"), *settings]
    own = [f"ray.workers={workers}", "ray.cpus_per_worker=1"]
    done = subprocess.run([*command, *own], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{job}.py failed: {done.stdout.strip()} {done.stderr.strip()}")
    return time.monotonic() - start


def _sweep_seconds(run: Path) -> float:
    """Return the seconds between the first shard's start and the last one's commit."""
    text = "".join(path.read_text() for path in (run / "logs").glob("*.log"))
    times = [datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f") for at, _ in STAMP.findall(text)]
    return (max(times) - min(times)).total_seconds()
