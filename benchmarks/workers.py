"""Two workers of one thread against one, in turn: collect, reduce, and bare forward passes.

For a machine at rest with two cores or more; a run should take a minute.
"""

import json
import re
import statistics
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from benchmarks.commands import ROOT, timed
from benchmarks.merge import random_run
from benchmarks.rounds import Findings, Rounds, Value
from benchmarks.settings import Sizes

COLLECT_GOAL, REDUCE_GOAL = 1.85, 1.7  # times as fast
OUTSIDE_GOAL = 8.0  # seconds of a collect job that are no sweep
STAMP = re.compile(r"^([\d-]+ [\d:,]+) .*shard \d+ .*: (start|committed)", re.MULTILINE)
BARE_SECONDS = 10.0
BARE = """
import json, sys, time, torch
from neuronstats.model.source import EMBEDDED
from transformers import AutoModel

torch.set_num_threads(1)
model = AutoModel.from_pretrained(EMBEDDED / "opt-mini", dtype=torch.float32).eval()
tokens = torch.randint(4, 900, (4, 512))
with torch.inference_mode():
    model(tokens)
    start, passes = time.monotonic(), 0
    while time.monotonic() < start + float(sys.argv[1]):
        model(tokens)
        passes += 1
print(json.dumps(passes * tokens.numel() / (time.monotonic() - start)))
"""


def scaling(rounds: Rounds, sizes: Sizes, scratch: Path) -> Findings:
    """Do each with one worker and with two, in turn, as often as there are rounds.

    Args:
        rounds: how often.
        sizes: tokens of the embedded text, to be collected; and of the random run, to be reduced.
        scratch: an empty folder, for the runs.

    Raises:
        UserError: a job fails.
    """
    to_reduce = random_run(
        scratch / "random", sizes.workers_layers, sizes.merge_neurons, sizes.merge_tokens
    )
    seconds: dict[str, dict[int, list[float]]] = {
        name: {1: [], 2: []} for name in ("collect", "reduce", "bare forward")
    }
    outside: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds.rounds):
        for workers in (1, 2):
            place = scratch / f"collect-{number}-{workers}"
            text = f"data.max_tokens={sizes.workers_tokens}"
            whole = _run("collect", workers, f"run={place}", text, "collect.shard_sequences=32")
            seconds["collect"][workers].append(_sweep_seconds(place))
            outside[workers].append(whole - seconds["collect"][workers][-1])
            place = Path(to_reduce.folder.location)
            seconds["reduce"][workers].append(_run("reduce", workers, f"run={place}"))
            seconds["bare forward"][workers].append(sizes.workers_tokens / _bare_rate(workers))
        rounds.report(f"round {number + 1} of {rounds.rounds}")
    values = []
    for name, goal in (("collect", COLLECT_GOAL), ("reduce", REDUCE_GOAL), ("bare forward", None)):
        one, two = seconds[name][1], seconds[name][2]
        ratio = statistics.median(a / b for a, b in zip(one, two, strict=True))
        note = _by_workers(seconds[name])
        values.append(Value(f"two workers / one, {name}", ratio, "", least=goal, note=note))
    median, note = statistics.median(outside[1] + outside[2]), _by_workers(outside)
    values.append(Value("outside the sweep", median, "s", most=OUTSIDE_GOAL, note=note))
    layout = to_reduce.layout
    reduced = f"{layout.num_layers} layers of {layout.num_neurons} neurons, random weights"
    return Findings(
        values=values,
        facts=[
            ("collected", f"opt-mini over {sizes.workers_tokens} tokens, one thread each"),
            ("reduced", f"{reduced}, {layout.num_sequences * layout.num_positions:.2e} tokens"),
            (
                "bare forward",
                "processes side by side, without Ray or anything of ours: the machine",
            ),
        ],
    )


def _by_workers(seconds: dict[int, list[float]]) -> str:
    return "; ".join(f"{n}: {', '.join(f'{s:.1f}' for s in of)} s" for n, of in seconds.items())


def _run(job: str, workers: int, *settings: str) -> float:
    """Run a job; return its seconds."""
    own = [f"ray.workers={workers}", "ray.cpus_per_worker=1"]
    return timed(ROOT / "jobs" / f"{job}.py", *settings, *own)


def _sweep_seconds(run: Path) -> float:
    """Return the seconds between the first shard's start and the last one's commit."""
    text = "".join(path.read_text() for path in (run / "logs").glob("*.log"))
    times = [datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f") for at, _ in STAMP.findall(text)]
    return (max(times) - min(times)).total_seconds()


def _bare_rate(processes: int) -> float:
    """Return the tokens a second of bare forward passes in so many processes of one thread."""
    command = [sys.executable, "-c", BARE, str(BARE_SECONDS)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    started = [subprocess.Popen(command, **options) for _ in range(processes)]  # type: ignore[call-overload]
    return sum(json.loads(process.communicate()[0]) for process in started)
