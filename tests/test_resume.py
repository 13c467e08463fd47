"""The real job, on real Ray, killed and run again: the same store and tables, no shard twice."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import models
from helpers.reduced import check_tables
from helpers.run_job import run_job
from helpers.serial import quiet, save_tokens, serial

from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob

ROOT = Path(__file__).parent.parent
SHARDS = 60


def command(job, *settings):
    return [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *settings]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_checkpoint):
    folder = tmp_path_factory.mktemp("resume")
    tokens = models.random_tokens(SHARDS * 16, 64, seed=3)
    domains = ["a"] * (SHARDS * 8) + ["b"] * (SHARDS * 8)
    save_tokens(folder / "tokens.npy", tokens, domains)
    return [
        "model=local",
        f"model.path={tiny_checkpoint('pre')}",
        "data=tokens",
        f"data.path={folder / 'tokens.npy'}",
        "collect.shard_sequences=16",
        "collect.bitmaps=all",
    ]


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = subprocess.run(
        command("collect", *inputs, f"run={run}"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "collected: 61.4k tokens in 60 shards" in done.stdout
    (run.parent / "reduced.txt").write_text(reduce_run(run, "ray.workers=1"))
    return run


@pytest.fixture(scope="module")
def reduced(undisturbed):
    """What the reduction of the undisturbed run, by one worker, has said."""
    return (undisturbed.parent / "reduced.txt").read_text()


def reduce_run(run, *settings):
    done = subprocess.run(
        command("reduce", f"run={run}", *settings), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def again_here(inputs, run):
    """Run collect's command once more, in this process without Ray; what it said.

    No record that was there is written again.
    """
    records = run / "activations.zarr" / "records"
    before = {path: path.stat().st_mtime_ns for path in records.glob("*.json")}
    with pytest.MonkeyPatch.context() as patch, serial(patch):
        code, out, err = run_job("collect", *inputs, f"run={run}")
    assert (code, err) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    return out


def store_bytes(run):
    """Every object of the store except strays of interrupted writes, which are no objects."""
    folder = run / "activations.zarr"
    files = [p for p in folder.rglob("*") if p.is_file() and "#" not in p.name]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def assert_same_run(run, other):
    assert store_bytes(run) == store_bytes(other)
    check_tables(run, other)


def commits(run):
    """Shards by the number of times that a worker says to have committed them."""
    text = "".join(p.read_text() for p in sorted((run / "logs").glob("*.log")))
    found = re.findall(r"shard (\d+) .*: committed", text)
    return {int(i): found.count(i) for i in set(found)}


def kill_at_random(inputs, run, generator):
    """Start the job, and SIGKILL it at a random moment of its work; return its records then."""
    process = subprocess.Popen(
        command("collect", *inputs, f"run={run}"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    records = run / "activations.zarr" / "records"
    target = len(list(records.glob("*.json"))) + generator.randint(0, 1)
    deadline = time.monotonic() + 240
    # Either before the run exists, or some time around the next commits.
    if generator.random() < 0.15:
        time.sleep(generator.uniform(0.5, 4))
    else:
        while process.poll() is None and time.monotonic() < deadline:
            if (run / "run.yaml").exists() and len(list(records.glob("*.json"))) >= target:
                break
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.03))
    assert process.poll() is None, "the job was done before it was killed: give it more shards"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return {p.name: p.read_bytes() for p in records.glob("*.json")}


def check_kills(inputs, undisturbed, run, kills, seed):
    generator = random.Random(seed)
    for _ in range(kills):
        before = kill_at_random(inputs, run, generator)
        time.sleep(generator.choice([0, 0, 8]))  # the dead job's workers may live on for seconds
        assert set(before) <= {f"{i:05d}.json" for i in range(SHARDS)}
    with pytest.MonkeyPatch.context() as patch, serial(patch):
        code, _, err = run_job("collect", *inputs, f"run={run}")
        assert (code, err) == (0, "")
        assert reduce(ReduceJob(run=str(run)), quiet()) == 0
    assert_same_run(run, undisturbed)
    assert sorted(commits(run)) == list(range(SHARDS))
    # A worker that outlives its killed job may finish the shard it had in flight, and the next
    # job do it too; a shard whose record the next job found is never done again.
    return commits(run)


def test_killed_and_run_again(inputs, undisturbed, tmp_path):
    check_kills(inputs, undisturbed, tmp_path / "run", kills=1, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_twenty_times(inputs, undisturbed, tmp_path):
    counts = check_kills(inputs, undisturbed, tmp_path / "run", kills=20, seed=1)
    print("commits by shard:", counts)


def test_committed_shards_are_not_computed_again(inputs, undisturbed):
    assert "60 of 60 shards are committed already" in again_here(inputs, undisturbed)
    assert commits(undisturbed) == dict.fromkeys(range(SHARDS), 1)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_drains_and_the_next_call_goes_on(number, inputs, undisturbed, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        command("collect", *inputs, f"run={run}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    records = run / "activations.zarr" / "records"
    while not list(records.glob("*.json")) and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, number)  # as a terminal's Ctrl-C does: the whole group
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, (out, err)
    assert err == ""
    left = re.search(r"stopped: (\d+) shards are left. The same command goes on", out)
    assert left, out
    done = sorted(int(path.stem) for path in records.glob("*.json"))
    assert int(left[1]) == SHARDS - len(done) > 0
    assert commits(run) == dict.fromkeys(done, 1)
    again_here(inputs, run)
    assert store_bytes(run) == store_bytes(undisturbed)


def test_peak_memory_is_within_the_plan(undisturbed):
    """At most what was planned, and at least 70 % of it."""
    from helpers.serial import collect_job

    from neuronstats.cluster.nodes import Node
    from neuronstats.collect.inspect import corpus_size, inspect
    from neuronstats.collect.prepare import make_choices
    from neuronstats.machine import probe
    from neuronstats.store.run import Run

    info = Run.open(str(undisturbed)).info["settings"]
    job = collect_job(undisturbed, info["model"]["path"], info["data"]["path"])
    inputs = inspect(job, print)
    plan, _ = make_choices(inputs, [Node.of(probe())], corpus_size(inputs, None), None)
    text = "".join(p.read_text() for p in (undisturbed / "logs").glob("*.log"))
    peak = max(int(n) for n in re.findall(r"peak_bytes=(\d+)", text))
    print(f"peak {peak} of {plan.host_bytes} planned: {peak / plan.host_bytes:.3f}")
    assert 0.7 <= peak / plan.host_bytes <= 1.0


def test_reducing_stays_within_its_plan(reduced):
    assert re.search(r"workers +1\n", reduced)  # the others have one per core; all are compared
    peak, planned = re.search(r"peak memory (\d+) MB of (\d+) MB planned", reduced).groups()
    assert 0.7 <= int(peak) / int(planned) <= 1.0


def test_tokens_are_the_arrays(undisturbed, inputs):
    from neuronstats.store.run import Run

    tokens = np.load(inputs[3].removeprefix("data.path="))
    corpus = Run.open(str(undisturbed)).corpus()
    assert (corpus.tokens == tokens).all()
    assert corpus.domains == ("a", "b")
