"""A real Ray cluster of two nodes on this machine: the same tables; a lost worker costs little."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import models
from helpers.reduced import check_tables
from helpers.serial import collect_job, quiet, save_tokens, serial

from neuronstats.cluster.nodes import Node, Workers, place
from neuronstats.cluster.settings import RaySettings
from neuronstats.errors import SettingsError
from neuronstats.machine import Machine

ROOT = Path(__file__).parents[2]
SHARDS = 24


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_checkpoint):
    folder = tmp_path_factory.mktemp("cluster")
    tokens = models.random_tokens(SHARDS * 16, 64, seed=3)
    return tiny_checkpoint("pre"), save_tokens(folder / "tokens.npy", tokens)


@pytest.fixture(scope="module")
def local_run(inputs, tmp_path_factory):
    from neuronstats.collect.job import collect
    from neuronstats.reduce.job import reduce
    from neuronstats.reduce.settings import ReduceJob

    run = tmp_path_factory.mktemp("local") / "run"
    with pytest.MonkeyPatch.context() as patch, serial(patch):
        assert collect(collect_job(run, *inputs, collect__shard_sequences=16), quiet()) == 0
        assert reduce(ReduceJob(run=str(run)), quiet()) == 0
    return run


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes of one core each, in a process of their own; yields the address."""
    script = (
        "import time\n"
        "from ray.cluster_utils import Cluster\n"
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1})\n"
        "cluster.add_node(num_cpus=1)\n"
        "print('address', cluster.address, flush=True)\n"
        "time.sleep(3600)\n"
    )
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    log = (tmp_path_factory.mktemp("nodes") / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environment,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("address"):
            break
    else:
        pytest.fail(f"the cluster did not start, see {log.name}")
    yield line.split()[1]
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    log.close()


def start(job, address, *settings):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / f"{job}.py"), f"ray.address={address}", *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
    )


def logs(run):
    return "".join(path.read_text() for path in (run / "logs").glob("*.log"))


def test_two_nodes_and_a_lost_worker_give_the_same_tables(cluster, inputs, local_run, tmp_path):
    run = tmp_path / "run"
    model, tokens = inputs
    job = start(
        "collect",
        cluster,
        "model=local",
        f"model.path={model}",
        "data=tokens",
        f"data.path={tokens}",
        f"run={run}",
        "collect.shard_sequences=16",
        "ray.workers=2",
    )
    killed = None
    while job.poll() is None and killed is None:
        time.sleep(0.005)
        started = re.findall(r"(\d+) INFO .*: start", logs(run)) if run.exists() else []
        if len(set(started)) == 2 or len(started) > SHARDS // 3:
            killed = int(started[-1])
            os.kill(killed, signal.SIGKILL)
    out, err = job.communicate(timeout=240)
    assert job.returncode == 0, (out, err)
    assert killed is not None
    assert err == ""
    text = logs(run)
    committed = [int(n) for n in re.findall(r"shard (\d+) .*: committed", text)]
    assert set(committed) == set(range(SHARDS))  # none lost
    started = re.findall(r"INFO .*: shard (\d+) .*: start", text)
    # The one in hand is done once more, and the one before, if it was still being written.
    assert SHARDS <= len(started) <= SHARDS + 2
    assert len(committed) <= SHARDS + 1
    job = start("reduce", cluster, f"run={run}", "ray.workers=2")
    out, err = job.communicate(timeout=240)
    assert job.returncode == 0, (out, err)
    check_tables(run, local_run)


def test_more_than_the_cluster_has(cluster, inputs, tmp_path):
    job = start(
        "collect",
        cluster,
        "model=local",
        f"model.path={inputs[0]}",
        "data=tokens",
        f"data.path={inputs[1]}",
        f"run={tmp_path / 'run'}",
        "ray.workers=3",
    )
    _, err = job.communicate(timeout=120)
    assert job.returncode == 2
    assert "ray.workers=3" in err
    assert "2 cores and 0 GPUs on 2 machine(s)" in err
    assert not (tmp_path / "run").exists()


GB = 1 << 30


def per_core(settings, machine):
    return place(settings, [Node.of(machine)], memory=GB, per_core=True)


@pytest.mark.parametrize(
    ("cores", "gpus", "settings", "expected"),
    [
        (16, 0, {}, Workers(1, 0, 16)),
        (16, 1, {}, Workers(1, 1, 16)),
        (16, 4, {}, Workers(4, 1, 4)),
        (16, 4, {"workers": 2}, Workers(2, 1, 4)),
        (16, 4, {"gpus_per_worker": 0}, Workers(1, 0, 16)),
        (2, 0, {"workers": 2}, Workers(2, 0, 1)),
        (8, 0, {"workers": 2, "cpus_per_worker": 3}, Workers(2, 0, 3)),
    ],
)
def test_auto_workers(cores, gpus, settings, expected):
    machine = Machine(cores=cores, host_bytes=GB, gpus=gpus, gpu_bytes=GB)
    assert place(RaySettings(**settings), [Node.of(machine)]) == expected


@pytest.mark.parametrize(
    ("cores", "gpus", "settings", "expected"),
    [
        (2, 0, {}, Workers(2, 0, 1)),
        (16, 2, {}, Workers(9, 0, 1)),  # 9.0 GB may be used
        (16, 0, {"workers": 3}, Workers(3, 0, 1)),
        (16, 0, {"cpus_per_worker": 8}, Workers(2, 0, 8)),
    ],
)
def test_auto_workers_of_one_core_each_as_far_as_memory_goes(cores, gpus, settings, expected):
    machine = Machine(cores=cores, host_bytes=10 * GB, gpus=gpus, gpu_bytes=GB)
    assert per_core(RaySettings(**settings), machine) == expected


def test_too_little_memory_is_refused():
    machine = Machine(cores=16, host_bytes=GB, gpus=0, gpu_bytes=0)
    with pytest.raises(SettingsError, match=r"1 cores, 0 GPUs and 1\.07 GB of memory each do not"):
        per_core(RaySettings(), machine)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"gpus_per_worker": 1}, "0 GPUs"),
        ({"workers": 5}, "ray.workers=5"),
        ({"cpus_per_worker": 5}, "enough for 0"),
    ],
)
def test_what_is_not_there_is_refused(settings, says):
    machine = Machine(cores=4, host_bytes=GB, gpus=0, gpu_bytes=0)
    with pytest.raises(SettingsError, match=re.escape(says)):
        place(RaySettings(**settings), [Node.of(machine)])


@pytest.mark.parametrize("settings", [{"workers": 0}, {"workers": "many"}, {"gpus_per_worker": -1}])
def test_numbers_that_are_none(settings):
    with pytest.raises(SettingsError, match=r"expected auto.* or a number"):
        RaySettings(**settings)
