"""Workers by machine: several GPUs a machine, unequal machines, machines that are too small."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from neuronstats.cluster.inspection import NodeReport, code_hash, differences, versions
from neuronstats.cluster.nodes import Node, place
from neuronstats.cluster.settings import RaySettings
from neuronstats.cluster.start import this_node
from neuronstats.cluster.words import advice, summary
from neuronstats.collect.choose import choose
from neuronstats.collect.plan import CorpusSize, Work, make_plan
from neuronstats.errors import SettingsError, UserError
from neuronstats.machine import Machine
from neuronstats.model.shape import Shape

GB = 10**9
SHAPE = Shape(
    num_layers=12, hidden=768, neurons=3072, heads=12, vocabulary=50272, embedding=768,
    positions=2048, layer_weights=7_090_000, front_weights=2052 * 768,
)  # fmt: skip
WORK = Work(
    shape=SHAPE,
    corpus=CorpusSize((4000,), 2048),
    num_layers=12,
    num_bitmaps=6,
    shard_sequences=1,
    batch_sequences=1,
    dtype_bytes=4,
    stored_bytes=2,
    on_gpu=False,
)


def node(name, *, cpus=8, gpus=0, memory=64 * GB, gpu_memory=80 * GB):
    return Node(name, cpus, gpus, memory, gpu_memory if gpus else 0, id=name)


def counts(workers):
    return [count for _, count in workers.by_node]


def chosen(nodes, work=WORK, free_disk=None, **settings):
    settings = RaySettings(**settings)
    return choose(work, settings, nodes, free_disk, shard_sequences=None, batch_sequences=None)


def test_one_worker_a_machine_without_gpus_with_the_cores_of_the_smallest():
    workers = place(RaySettings(), [node("a", cpus=8), node("b", cpus=4), node("head", cpus=0)])
    assert (workers.count, workers.cpus, counts(workers)) == (2, 4, [1, 1, 0])


def test_each_gpu_of_each_machine():
    workers = place(RaySettings(), [node("a", cpus=64, gpus=8), node("b", cpus=8)])
    assert (workers.count, workers.cpus, counts(workers)) == (8, 8, [8, 0])


def test_asked_for_workers_go_to_each_machine_in_turn():
    workers = place(RaySettings(workers=3, cpus_per_worker=2), [node("a"), node("b")])
    assert counts(workers) == [2, 1]
    assert str(workers) == "3: a 2, b 1"


def test_workers_of_a_reduction_go_where_the_memory_is():
    """64 cores with 32 GB and 8 cores with 256 GB: not 42 workers on the first."""
    nodes = [node("a", cpus=64, memory=32 * GB), node("b", cpus=8, memory=256 * GB)]
    workers = place(RaySettings(), nodes, memory=GB, per_core=True)
    assert counts(workers) == [32, 8]


def test_machines_each_with_room_for_one_worker_are_not_refused():
    """Three machines with 1.5 times a worker's need each; counted as one they lack memory."""
    alone, _ = chosen([node("a")])
    nodes = [node(name, memory=int(1.5 * alone.host_bytes)) for name in "abc"]
    plan, workers = chosen(nodes, workers=3)
    assert counts(workers) == [1, 1, 1]
    assert plan.work.shard_sequences == alone.work.shard_sequences


def test_all_workers_of_a_machine_are_counted():
    """Eight GPUs and the host memory of four workers: four work, or eight are refused."""
    work = replace(WORK, on_gpu=True, dtype_bytes=2)
    one, _ = chosen([node("a", gpus=1)], work)
    least = make_plan(replace(one.work, shard_sequences=one.work.batch_sequences)).host_bytes
    nodes = [node("a", cpus=64, gpus=8, memory=4 * least)]
    plan, workers = chosen(nodes, work)
    assert workers.count * plan.host_bytes <= nodes[0].memory
    assert plan.work.workers == workers.count == 4
    with pytest.raises(SettingsError, match=r"host memory: .* needed, .* may be used"):
        chosen(nodes, work, workers=8)


def test_a_machine_that_is_too_small_is_named_or_not_used():
    nodes = [node("a"), node("small", memory=GB // 10)]
    _, workers = chosen(nodes)
    assert counts(workers) == [1, 0]
    with pytest.raises(SettingsError, match="host memory on small with 1 workers"):
        chosen(nodes, workers=2)


def report(**changes):
    machine = Machine(cores=2, host_bytes=GB, gpus=0, gpu_bytes=0)
    plain = {"machine": machine, "code": code_hash(), "versions": versions(), "no_cuda": "",
             "niceness": 0}  # fmt: skip
    return NodeReport(**{**plain, **changes})


def test_what_differs_is_named():
    assert differences(report()) == ""
    assert "its files differ" in differences(report(code="other"))
    theirs = {**versions(), "torch": "1.0", "zarr": "missing"}
    words = differences(report(versions=theirs))
    assert f"torch 1.0 instead of {versions()['torch']}" in words
    assert "zarr missing instead of" in words
    assert differences(report(no_cuda="torch has no CUDA")) == "torch has no CUDA"


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA here")
def test_gpus_that_torch_cannot_use_are_told_before_anything_starts():
    machine = Machine(cores=2, host_bytes=GB, gpus=8, gpu_bytes=GB)
    with pytest.raises(UserError, match=r"8 GPU\(s\), but torch .* is built without CUDA"):
        this_node(RaySettings(), machine)
    assert this_node(RaySettings(gpus_per_worker=0), machine).gpus == 8


def test_a_worker_has_the_usual_priority_where_it_may():
    """A raylet that was started without RAY_worker_niceness=0 gives its workers niceness 15."""
    script = "import os; os.nice(15); from neuronstats.cluster.inspection import lowest_niceness"
    script += "; print(lowest_niceness(), os.nice(0))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    told, is_now = map(int, done.stdout.split())
    assert told == is_now
    if os.geteuid() == 0 and os.nice(0) == 0:
        assert is_now == 0


RAISED = (
    "The actor died because of an error raised in its creation task, \x1b[36mray::_Worker"
    ".__init__()\x1b[39m (pid=1343, ip=10.77.0.4)\n"
    "    import zarr.codecs\n           ^^^^^^^^^^\n"
    "ModuleNotFoundError: No module named 'zarr.codecs'"
)
KILLED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: _Worker\n"
    "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes"
    " include: (1) the process was killed by the OOM killer"
)
OUT_OF_MEMORY = "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low"


@pytest.mark.parametrize(
    ("text", "says", "memory"),
    [
        (RAISED, "ModuleNotFoundError: No module named 'zarr.codecs'", False),
        (KILLED, "The actor died unexpectedly before finishing this task.", True),
        (OUT_OF_MEMORY, OUT_OF_MEMORY, True),
        ("RpcError: token", "RpcError: token", False),
    ],
)
def test_ray_in_one_line_and_memory_only_where_it_may_be_the_reason(text, says, memory):
    assert summary(text).startswith(says)
    assert not summary(text).endswith(".")  # it stands inside sentences
    assert "\x1b" not in summary(text)
    assert ("memory" in advice(text).lower()) == memory
