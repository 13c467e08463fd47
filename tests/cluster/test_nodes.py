"""Machines with addresses of their own: README's commands, and what breaks on some of them."""

import re
import shutil
import time
from pathlib import Path

import pytest
from helpers import machines
from helpers.readme import (
    LEFT_TOKEN,
    LENGTH,
    MODE,
    MODEL,
    PLACE,
    ROOT,
    SEQUENCES,
    SHARD_SEQUENCES,
    check_stores,
    collect,
    ended,
    join,
    joined,
    leave_token,
    logs,
    say,
    start_head,
    wait_for,
)
from helpers.reduced import check_tables

from neuronstats.errors import DONE, FAILED, GONE, WRONG_SETTINGS

SHARDS = SEQUENCES // SHARD_SEQUENCES
WORKERS = "-f '[r]ay::_Worker'"  # for pkill, and not this pkill's own shell

pytestmark = [
    pytest.mark.timeout(3600),  # two minutes on a machine at rest
    pytest.mark.skipif(bool(machines.why_not()), reason=f"NO CLUSTER TEST: {machines.why_not()}"),
]


@pytest.fixture(scope="module")
def cluster(network, inputs):
    """As README says: the head m1 with an older checkout, m2, and m3, which lacks a library."""
    stale = network.shared / "stale"
    shutil.copytree(ROOT / "neuronstats", stale, ignore=shutil.ignore_patterns("__pycache__"))
    worker = stale / "collect" / "worker.py"
    worker.write_text(worker.read_text().replace('"%s: start"', '"%s: start STALE"'))
    assert "STALE" in worker.read_text()
    import zarr

    head = network.machine(f"mount --bind /mnt/stale {ROOT}/neuronstats")
    second = network.machine()
    third = network.machine(f"mount -t tmpfs none {Path(zarr.__file__).parent}")
    start_head(head)
    leave_token(third)
    joined(join(second, head), join(third, head))
    return head, second, third


def committed(run, machine):
    return logs(run, machine.name).count(": committed")


def freeze(machine):
    machine.run(f"pkill -STOP {WORKERS}")


def freeze_at_work(job, run, *found):
    """Halt each machine's worker once it has committed a shard: some are left for what comes."""
    running = list(found)
    while running:
        wait_for(job, lambda: any(committed(run, machine) for machine in running))
        for machine in [machine for machine in running if committed(run, machine)]:
            freeze(machine)
            running.remove(machine)


def thaw(machine):
    machine.run(f"pkill -CONT {WORKERS}")


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


@pytest.mark.slow
def test_a_model_of_the_hub_is_fetched_once_by_each_machine(network, cluster):
    head, driver, _ = cluster
    script = f"export PYTHONPATH={ROOT}:{ROOT}/tests; echo $$ > /mnt/pid; exec python -c '{HUB}'"
    hub = driver.start(PLACE + script)
    wait_for(hub, (network.shared / "asked").exists)
    endpoint = f"http://{driver.ip}:8000"
    more = (LENGTH, "data.max_tokens=10000")
    job = collect(
        driver, head, *more, run="/mnt/hub", model="model=opt-125m", mode=MODE, HF_ENDPOINT=endpoint
    )
    ended(job, DONE)
    time.sleep(0.5)
    asked = (network.shared / "asked").read_text().splitlines()
    fetched = [line for line in asked if line.startswith("GET") and "model.safetensors" in line]
    assert len(fetched) == len(cluster), asked
    say(driver, "kill $(cat /mnt/pid)")
    hub.communicate(timeout=30)


@pytest.mark.slow
def test_a_machine_that_is_unplugged_costs_its_shards(network, cluster, alone):
    head, driver, _ = cluster
    fourth = network.machine()
    joined(join(fourth, head))
    run = network.shared / "unplugged"
    job = collect(driver, head, LENGTH, run="/mnt/unplugged")
    freeze_at_work(job, run, head, driver, fourth)
    fourth.unplug()
    thaw(head)
    thaw(driver)
    ended(job, DONE)
    check_stores(alone, run)


def test_folders_that_a_machine_does_not_see(cluster):
    head, driver, _ = cluster
    say(driver, "mkdir -p /tmp/private && cp -r /mnt/model /tmp/private/model")
    private = "model.path=/tmp/private/model"
    cases = [
        ("/tmp/private/run", MODEL, FAILED, "run folder /tmp/private/run does not exist"),
        ("/mnt/unseen", f"model=local {private}", WRONG_SETTINGS, private),
    ]
    for run, model, code, words in cases:  # together, one might leave the other no room on m1
        job = collect(driver, head, LENGTH, run=run, model=model)
        # Its own worker sees them, and might have done all before m1's has looked.
        say(driver, f"until pkill -STOP {WORKERS}; do sleep 0.05; done")
        _, err = ended(job, code)
        say(driver, f"while pkill -KILL {WORKERS}; do sleep 0.05; done")
        assert "on m1 (10.77.0.1): " in err
        assert words in err, err
        assert "Traceback" not in err


def test_what_happens_to_machines_in_one_run(network, cluster, alone):
    """One is bad, one stale, one joins and loses its raylet, the head is unplugged: same bytes."""
    head, driver, _ = cluster
    run = network.shared / "run"
    job = collect(driver, head, LENGTH, "ray.workers=max")
    freeze_at_work(job, run, head, driver)
    fourth = network.machine()
    joined(join(fourth, head))
    wait_for(job, lambda: committed(run, fourth))
    say(fourth, "kill -9 $(pgrep -x raylet)")
    before = committed(run, driver)
    thaw(driver)
    wait_for(job, lambda: committed(run, driver) > before + 2)
    freeze(driver)
    head.unplug()

    # Meanwhile a new cluster, on a machine that was part of another one.
    say(fourth, "ray stop --force")
    leave_token(fourth)
    start_head(fourth)
    assert say(fourth, "cat ~/.ray/auth_token") == LEFT_TOKEN
    refused = [collect(driver, fourth, LENGTH, mode=mode) for mode in ("", MODE)]
    for other, state in zip(refused, ("is not set", "is token"), strict=True):
        out, err = ended(other, FAILED)
        assert f"the token is missing or wrong. RAY_AUTH_MODE {state} here" in err, err

    out, err = ended(job, GONE)
    assert "the cluster's head is gone; what was committed stays; the same command goes on" in err
    assert all(f"{machine.name} ({machine.ip}) 1" in out for machine in (head, driver))
    assert "left out: m3 (10.77.0.3): it cannot start a worker" in out
    assert "zarr" in out
    assert "memory lower" not in out
    assert committed(run, head)
    assert "STALE" not in logs(run)

    say(driver, "ray stop --force")
    joined(join(driver, fourth))
    job = collect(driver, fourth, LENGTH, "ray.workers=max")
    out, err = ended(job, DONE)
    assert f"of {SHARDS} shards are committed already" in out
    check_stores(alone, run)
    job = driver.start(
        PLACE + MODE + f"python jobs/reduce.py run=/mnt/run ray.address={fourth.ip}:6379"
    )
    out, err = ended(job, DONE)
    assert re.search(r"^workers: \d+: m\d \S+ \d, m\d \S+ \d$", out, re.MULTILINE), out
    check_tables(alone, run)
