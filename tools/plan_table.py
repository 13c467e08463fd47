"""Writes docs/plan.md: what every OPT model takes on four kinds of machines, by the plan itself."""

import functools
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # the sizes are in conf/model

import yaml

from neuronstats.cluster.nodes import Node
from neuronstats.cluster.settings import RaySettings
from neuronstats.collect.inspect import Inputs, inspect
from neuronstats.collect.plan import CorpusSize, Plan
from neuronstats.collect.prepare import make_choices
from neuronstats.collect.settings import CollectJob
from neuronstats.errors import SettingsError
from neuronstats.model.settings import ModelSettings
from neuronstats.units import duration, size

ROOT = Path(__file__).parents[1]
NAMES = ("125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b")
GB = 10**9
CORPUS = CorpusSize((1085,) * 9, 2048)  # 20M tokens of nine domains, as data=paper asks for
MACHINES = {  # name -> what is planned with, and FLOP per second of a worker (assumed)
    "24 GB GPU": (Node("", 16, 1, 58 * GB, 22 * GB), 0.7e14),
    "80 GB GPU": (Node("", 16, 1, 230 * GB, 76 * GB), 4e14),
    "8 x 80 GB": (Node("", 128, 8, 1800 * GB, 76 * GB), 4e14),
    "CPU": (Node("", 32, 0, 230 * GB), 1e12),
}
HEAD = """# What a run takes

Made by `python tools/plan_table.py` from the plan itself; a test holds it against arithmetic. 20M
tokens of nine domains in sequences of 2048, all layers, bitmaps of the first half: the size of
`data=paper`. The same for your machines, without weights or network:
`python jobs/collect.py model=opt-66b data=paper plan=true ray.flops=4e14`.

**Time is the least**: FLOP divided by what a worker is assumed to reach (a 24 GB GPU 70 TFLOP/s and
an 80 GB GPU 400 TFLOP/s in half precision; a CPU of 32 cores 1 TFLOP/s in float32). With small
models on a GPU, writing the bits takes longer (docs/performance.md). Weights are kept over all
shards, or read anew for each. Disk is what is expected after compression.

| model | to fetch | machine | time | a shard | weights | GPU memory | host, a worker | disk |
|---|---|---|---|---|---|---|---|---|
"""


@functools.cache
def inspected(name: str) -> Inputs:
    """Return what is known of a model, from the sizes in conf/model."""
    chosen = yaml.safe_load((ROOT / "conf" / "model" / f"opt-{name}.yaml").read_text())
    settings = CollectJob(
        model=ModelSettings(**chosen), ray=RaySettings(), plan=True, run="/nowhere/runs/opt"
    )
    return inspect(settings, lambda line: None)


def plan_of(name: str, node: Node) -> Plan:
    """Plan a model on a machine."""
    plan, _ = make_choices(inspected(name), [node], CORPUS, None)
    return plan


def row(name: str, machine: str) -> str:
    """Write one line of the table."""
    node, flops = MACHINES[machine]
    try:
        plan = plan_of(name, node)
    except SettingsError as error:
        return f"| {name} | | {machine} | {error} | | | | | |"
    cells = [
        name,
        size(plan.checkpoint_bytes),
        machine,
        duration(plan.seconds(flops)),
        duration(plan.shard_seconds(flops)),
        "kept" if plan.work.resident else f"read, {size(plan.weight_bytes)} in all",
        size(plan.device_bytes) if plan.device else "",
        size(plan.host_bytes),
        size(plan.disk_bytes),
    ]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """Write the whole page."""
    rows = [row(name, machine) for name in NAMES for machine in MACHINES]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "plan.md").write_text(table())
    sys.exit(0)
