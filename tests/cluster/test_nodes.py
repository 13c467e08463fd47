"""Machines with addresses of their own: README's commands, and what breaks on some of them."""

import re
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import machines, models
from helpers.serial import collect_job, quiet, save_tokens, serial

from neuronstats.errors import DONE, FAILED, GONE, WRONG_SETTINGS

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv" / "bin"
SEQUENCES = 2560
LENGTH = "collect.shard_sequences=4"  # 640 shards: all machines start before they are done
SHELL = f"export PATH={BIN}:$PATH PYTHONPATH={ROOT} RAY_AUTH_MODE=token; cd {ROOT}; "
TABLES = ("neurons", "ngrams", "triggers", "domains", "layers")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # of minutes on a machine at rest
    pytest.mark.skipif(bool(machines.why_not()), reason=f"NO CLUSTER TEST: {machines.why_not()}"),
]


def readme():
    """README's four commands for a cluster, without their comments."""
    _, _, rest = (ROOT / "README.md").read_text().partition("## A cluster")
    return [line.split("  #")[0] for line in rest.split("```")[1].strip().splitlines()]


def say(machine, line):
    done = machine.run(SHELL + line)
    assert done.returncode == 0, (line, done)
    return done.stdout


def start_head(machine):
    token, head, _, _ = readme()
    say(machine, token)
    say(machine, head)


def join(machine, head):
    token = say(head, "cat ~/.ray/auth_token")
    line = readme()[2].replace("HEAD", head.ip)
    say(machine, f"mkdir -p ~/.ray; echo -n {token} > ~/.ray/auth_token; {line}")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    network = machines.Network(tmp_path_factory.mktemp("network"))
    yield network
    network.remove()


@pytest.fixture(scope="module")
def inputs(network, tiny_checkpoint):
    shutil.copytree(tiny_checkpoint("pre"), network.shared / "model")
    tokens = models.random_tokens(SEQUENCES, 64, seed=3)
    return network.shared / "model", save_tokens(network.shared / "tokens.npy", tokens)


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    """The same run, collected and reduced in this process."""
    from neuronstats.collect.job import collect
    from neuronstats.reduce.job import reduce
    from neuronstats.reduce.settings import ReduceJob

    run = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patch, serial(patch):
        assert collect(collect_job(run, *inputs, collect__shard_sequences=4), quiet()) == DONE
        assert reduce(ReduceJob(run=str(run)), quiet()) == DONE
    return run


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
    start_head(head)
    for machine in (second, third, fourth):
        join(machine, head)
    return head, second, third, fourth


def collect(machine, head, *, run="/mnt/run", model="/mnt/model", more=LENGTH):
    """Start README's last command with these inputs."""
    line = readme()[3].replace("HEAD", head.ip)
    line = line.replace("model=opt-66b data=paper", f"model=local model.path={model} data=tokens")
    line = line.replace("run=s3://bucket/opt-66b", f"run={run} data.path=/mnt/tokens.npy {more}")
    return machine.start(SHELL + line)


def log(run):
    return "".join(path.read_text() for path in (run / "logs").glob("*.log"))


def wait_for(job, met, seconds=400):
    deadline = time.monotonic() + seconds
    while not met():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def check_stores(one, other):
    ours, theirs = one / "activations.zarr", other / "activations.zarr"
    names = {path.relative_to(ours) for path in ours.rglob("*") if path.is_file()}
    assert names == {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()}
    assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in names)


def test_one_code_everywhere_and_what_is_broken_is_left_out(network, cluster, alone):
    head, second, _, _ = cluster
    run = network.shared / "run"
    job = collect(head, head)
    wait_for(job, lambda: log(run).count("committed") > 40)
    second.unplug()  # its shard is done again by another
    out, err = job.communicate(timeout=400)
    assert job.returncode == DONE, (out, err)
    assert "workers" in out
    assert "m1 (10.77.0.1) 1" in out
    assert "left out: m4 (10.77.0.4): it cannot start a worker" in out
    assert "zarr" in out
    assert "memory lower" not in out
    assert "STALE" not in log(run)
    assert list((run / "logs").glob("m3-*"))  # m3 worked, by the driver's code
    check_stores(alone, run)
    job = head.start(SHELL + f"python jobs/reduce.py run=/mnt/run ray.address={head.ip}:6379")
    out, err = job.communicate(timeout=400)
    assert job.returncode == DONE, (out, err)
    for name in TABLES:
        mine, theirs = (pq.read_table(r / "tables" / f"{name}.parquet") for r in (run, alone))
        assert mine.equals(theirs), name


HUB = """
import time
from helpers.hub import Hub
with Hub(("0.0.0.0", 8000)) as hub:
    hub.add("facebook/opt-125m", "/mnt/model")
    while True:
        time.sleep(0.2)
        asked = [" ".join(map(str, request)) for request in list(hub.requests)]
        open("/mnt/asked", "w").write("\\n".join(asked))
"""


def test_a_model_of_the_hub_is_fetched_once_by_each_machine(network, cluster):
    head = cluster[0]
    alive = [head, *cluster[2:]]
    script = f"export PYTHONPATH={ROOT}:{ROOT}/tests; echo $$ > /mnt/pid; exec python -c '{HUB}'"
    hub = head.start(SHELL + script)
    wait_for(hub, (network.shared / "asked").exists)
    more = f"{LENGTH} data.max_tokens=10000"
    line = (
        readme()[3].replace("HEAD", head.ip).replace("opt-66b data=paper", "opt-125m data=tokens")
    )
    line = line.replace("run=s3://bucket/opt-66b", f"run=/mnt/hub data.path=/mnt/tokens.npy {more}")
    job = head.start(SHELL + line, HF_ENDPOINT=f"http://{head.ip}:8000")
    out, err = job.communicate(timeout=400)
    assert job.returncode == DONE, (out, err)
    time.sleep(0.5)
    asked = (network.shared / "asked").read_text().splitlines()
    fetched = [line for line in asked if line.startswith("GET") and "model.safetensors" in line]
    assert len(fetched) == len(alive), asked
    say(head, "kill $(cat /mnt/pid)")
    hub.communicate(timeout=30)


def test_folders_that_a_machine_does_not_see(network, inputs, cluster):
    head = cluster[0]
    say(head, "mkdir -p /tmp/private && cp -r /mnt/model /tmp/private/model")
    for run, model, code, words in [
        ("/tmp/private/run", "/mnt/model", FAILED, "run folder /tmp/private/run does not exist"),
        ("/mnt/unseen", "/tmp/private/model", WRONG_SETTINGS, "model.path=/tmp/private/model"),
    ]:
        job = collect(head, head, run=run, model=model, more="collect.shard_sequences=1")
        out, err = job.communicate(timeout=300)
        assert job.returncode == code, (out, err)
        assert re.search(r"on m[23] \(10\.77\.0\.[23]\): ", err), err
        assert words in err, err
        assert "Traceback" not in err


def test_a_machine_that_joins_works_and_a_killed_raylet_costs_its_shards(network, cluster, alone):
    head, _, third, _ = cluster
    run = network.shared / "grown"
    job = collect(head, head, run="/mnt/grown", more=f"{LENGTH} ray.workers=max")
    wait_for(job, lambda: "committed" in log(run))
    before = network.machines[:]
    for machine in before:  # so that there is work left
        machine.run("pkill -STOP -f '[r]ay::_Worker'")
    fifth = network.machine()
    join(fifth, head)
    wait_for(job, lambda: list((run / "logs").glob("m5-*")))
    for machine in before:
        machine.run("pkill -CONT -f '[r]ay::_Worker'")
    say(third, "kill -9 $(pgrep -x raylet)")
    out, err = job.communicate(timeout=400)
    assert job.returncode == DONE, (out, err)
    check_stores(alone, run)


def test_a_dead_head_is_told_within_a_minute_and_the_same_command_goes_on(network, cluster, alone):
    head, fifth = cluster[0], network.machine()
    join(fifth, head)
    run = network.shared / "gone"
    job = collect(fifth, head, run="/mnt/gone")
    wait_for(job, lambda: "committed" in log(run))
    head.unplug()
    start = time.monotonic()
    out, err = job.communicate(timeout=120)
    assert job.returncode == GONE, (out, err)
    assert time.monotonic() - start < 60
    assert "the cluster's head is gone; what was committed stays; the same command goes on" in err
    say(fifth, "ray stop --force")
    new = network.machine()
    start_head(new)
    join(fifth, new)
    job = collect(fifth, new, run="/mnt/gone")
    out, err = job.communicate(timeout=400)
    assert job.returncode == DONE, (out, err)
    assert "are committed already" in out
    check_stores(alone, run)
