"""Machines with addresses of their own: README's commands, a stale, a broken and a lost machine."""

import shutil
import time
from pathlib import Path

import pytest
from helpers import machines, models
from helpers.serial import collect_job, quiet, save_tokens, serial

from neuronstats.errors import DONE, GONE

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv" / "bin"
SHARDS = 40
STARTED = "export RAY_AUTH_MODE=token RAY_worker_niceness=0 PATH={bin}:$PATH; cd {root}; "
DRIVER = f"export PYTHONPATH={ROOT}; "  # the package of this tree, whatever is installed
OPTIONS = "--num-cpus=1 --disable-usage-stats --object-store-memory=100000000"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(machines.why_not()), reason=f"NO CLUSTER TEST: {machines.why_not()}"),
]


def shell(line):
    return STARTED.format(bin=BIN, root=ROOT) + line


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    network = machines.Network(tmp_path_factory.mktemp("network"))
    yield network
    network.remove()


@pytest.fixture(scope="module")
def cluster(network):
    """The head m1 and m2 as README says; m3 holds an older checkout, m4 lacks a library."""
    stale = network.shared / "stale"
    shutil.copytree(ROOT / "neuronstats", stale, ignore=shutil.ignore_patterns("__pycache__"))
    worker = stale / "collect" / "worker.py"
    worker.write_text(worker.read_text().replace('"%s: start"', '"%s: start STALE"'))
    import zarr

    head, second = network.machine(), network.machine()
    third = network.machine(f"mount --bind /mnt/stale {ROOT}/neuronstats")
    fourth = network.machine(f"mount -t tmpfs none {Path(zarr.__file__).parent}")
    done = head.run(shell("ray get-auth-token --generate"))
    assert done.returncode == 0, done
    done = head.run(shell(f"ray start --head --node-ip-address={head.ip} --port=6379 {OPTIONS}"))
    assert done.returncode == 0, done
    token = head.run("cat /tmp/home/.ray/auth_token").stdout
    for machine in (second, third, fourth):
        join = f"mkdir -p ~/.ray; echo -n {token} > ~/.ray/auth_token; "
        join += f"ray start --address={head.ip}:6379 --node-ip-address={machine.ip} {OPTIONS}"
        done = machine.run(shell(join))
        assert done.returncode == 0, done
    return head, second, third, fourth


@pytest.fixture(scope="module")
def inputs(network, tiny_checkpoint):
    shutil.copytree(tiny_checkpoint("pre"), network.shared / "model")
    tokens = models.random_tokens(SHARDS * 16, 64, seed=3)
    save_tokens(network.shared / "tokens.npy", tokens)
    settings = "model=local model.path=/mnt/model data=tokens data.path=/mnt/tokens.npy"
    return f"{settings} collect.shard_sequences=16 run=/mnt/run"


def log(network):
    return "".join(path.read_text() for path in (network.shared / "run" / "logs").glob("*.log"))


def test_one_code_everywhere_and_what_is_broken_is_left_out(
    network, cluster, inputs, tmp_path, monkeypatch
):
    head, second, _, _ = cluster
    job = head.start(shell(f"{DRIVER}python jobs/collect.py ray.address={head.ip}:6379 {inputs}"))
    deadline = time.monotonic() + 200
    while job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        if (network.shared / "run" / "logs").exists() and log(network).count("committed") > 8:
            second.unplug()  # its shard is done again by another
            break
    out, err = job.communicate(timeout=240)
    assert job.returncode == DONE, (out, err)
    assert "workers" in out
    assert "m1 (10.77.0.1) 1" in out
    assert "left out: m4 (10.77.0.4): it cannot start a worker" in out
    assert "zarr" in out
    assert "memory lower" not in out
    assert "STALE" not in log(network)
    assert list((network.shared / "run" / "logs").glob("m3-*"))  # m3 worked, by the driver's code
    from neuronstats.collect.job import collect

    alone = tmp_path / "alone"
    args = network.shared / "model", network.shared / "tokens.npy"
    with serial(monkeypatch):
        assert collect(collect_job(alone, *args, collect__shard_sequences=16), quiet()) == DONE
    ours, theirs = alone / "activations.zarr", network.shared / "run" / "activations.zarr"
    names = {path.relative_to(ours) for path in ours.rglob("*") if path.is_file()}
    assert names == {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()}
    assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in names)


def test_a_dead_head_is_told_within_a_minute(network, cluster, inputs):
    head, _, third, _ = cluster
    settings = inputs.replace("/mnt/run", "/mnt/gone").replace("=16", "=2")
    job = third.start(
        shell(f"{DRIVER}python jobs/collect.py ray.address={head.ip}:6379 {settings}")
    )
    deadline = time.monotonic() + 200
    logs = network.shared / "gone" / "logs"
    while job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        if logs.exists() and "committed" in "".join(p.read_text() for p in logs.glob("*.log")):
            break
    head.unplug()
    start = time.monotonic()
    out, err = job.communicate(timeout=120)
    assert job.returncode == GONE, (out, err)
    assert time.monotonic() - start < 60
    assert "the cluster's head is gone; what was committed stays; the same command goes on" in err
