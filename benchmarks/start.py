"""`python jobs/collect.py` on the embedded model, as a user starts it: how soon, and how large."""

import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.rounds import Findings, Rounds, Value
from neuronstats.errors import UserError

JOB = Path(__file__).parent.parent / "jobs" / "collect.py"
POLL_SECONDS = 0.02
START_GOAL = 9.0  # seconds to the first token
PEAK_GOALS = (0.8, 1.0)  # of what was planned
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def starting(rounds: Rounds, scratch: Path, max_tokens: int) -> Findings:
    """Run the job over the embedded text as often as there are rounds, each time into a new folder.

    Raises:
        UserError: the job fails.
    """
    starts, shares = [], []
    for number in range(rounds.rounds):
        seconds, share = _run(scratch / f"start-{number}", max_tokens)
        starts.append(seconds)
        shares.append(share)
        rounds.report(f"round {number + 1} of {rounds.rounds}")
    least, most = PEAK_GOALS
    times = ", ".join(f"{seconds:.1f}" for seconds in starts)
    return Findings(
        values=[
            Value("start to first token", min(starts), "s", most=START_GOAL, note=f"of {times} s"),
            Value("peak memory / plan", max(shares), "", least=least, most=most),
        ],
        facts=[("run", f"opt-mini over {max_tokens} tokens of the embedded text")],
    )


def _run(run: Path, max_tokens: int) -> tuple[float, float]:
    """Return seconds until a worker starts on the first shard, and the peak's share of the plan."""
    start = time.monotonic()
    settings = [f"run={run}", f"data.max_tokens={max_tokens}"]
    process = subprocess.Popen(
        [sys.executable, str(JOB), *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while process.poll() is None and ": start" not in _log(run):
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - start
        said, _ = process.communicate()
    finally:
        process.kill()
        process.wait()
    planned = re.search(r"host memory, each worker +([\d.]+) (\w+)", said)
    peaks = re.findall(r"peak_bytes=(\d+)", _log(run))
    if process.returncode or planned is None or not peaks:
        raise UserError(f"{JOB.name} failed: {said.strip()}")
    return seconds, max(map(int, peaks)) / (float(planned[1]) * UNITS[planned[2]])


def _log(run: Path) -> str:
    return "".join(path.read_text() for path in (run / "logs").glob("*.log"))
