"""A local job whose Ray is killed under it: told within a minute, and nothing of it is left."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import models
from helpers.run_job import run_job
from helpers.serial import save_tokens, serial

from neuronstats.cluster import guard
from neuronstats.errors import DONE, FAILED, GONE

ROOT = Path(__file__).parents[2]


def family_of(job):
    """The processes that a job has started, and what these have."""
    return psutil.Process(job.pid).children(recursive=True)


def left_of(family):
    return [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def is_worker(process):
    with contextlib.suppress(psutil.Error):
        return process.cmdline()[:1] and process.cmdline()[0].startswith("ray::_Worker")


@pytest.fixture(scope="module")
def inputs(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    tokens = save_tokens(folder / "tokens.npy", models.random_tokens(4000, 64, seed=3))
    settings = ["model=local", f"model.path={tiny_checkpoint('pre')}", "data=tokens"]
    return [*settings, f"data.path={tokens}", "collect.shard_sequences=1"]


@pytest.fixture(scope="module")
def collected(inputs, tmp_path_factory):
    run = tmp_path_factory.mktemp("collected") / "run"
    with pytest.MonkeyPatch.context() as patch, serial(patch):
        code, _, err = run_job("collect", *inputs, f"run={run}", "collect.shard_sequences=2000")
    assert code == 0, err
    return run


@pytest.fixture
def start(inputs, collected, tmp_path):
    """start(job): the real command, when it is at work; ended at last."""
    jobs = []

    def begin(name):
        run = tmp_path / "run" if name == "collect" else collected
        settings = [*inputs, f"run={run}"] if name == "collect" else [f"run={run}"]
        job = subprocess.Popen(
            [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *settings],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        jobs.append(job)
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            assert job.poll() is None, job.communicate()
            family = family_of(job)
            if any(map(is_worker, family)) and (
                name == "reduce" or list(run.glob("activations.zarr/records/*.json"))
            ):
                time.sleep(3 if name == "collect" else 1)  # looks of the watch; it is soon done
                return job, family_of(job)
            time.sleep(0.5)
        raise AssertionError("it did not begin")

    yield begin
    for job in jobs:
        job.kill()
        job.communicate()


VICTIMS = ["raylet", "gcs_server", "ray::DashboardAgent", "ray::RuntimeEnvAgent"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["collect", "reduce"])
@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_under_a_local_job(victim, name, start):
    """Told within a minute, exit code 75; ten seconds later nothing of it is left.

    An agent takes the raylet with it.
    """
    job, family = start(name)
    (killed,) = [process for process in family if process.name() == victim]
    killed.kill()
    begun = time.monotonic()
    _, err = job.communicate(timeout=120)
    seconds = time.monotonic() - begun
    assert job.returncode in ((GONE,) if name == "collect" else (GONE, DONE)), err
    assert seconds < 60
    if job.returncode == GONE:
        assert "Ray on this machine has ended; what was committed stays" in err
        assert len(err.splitlines()) <= 12, err
    print(f"{victim} killed under {name}: {job.returncode} after {seconds:.0f} s")
    none_left(family, name)


@pytest.mark.slow
def test_a_worker_killed_under_reduce(start):
    """Another does its task: the job goes on to its end."""
    job, family = start("reduce")
    next(filter(is_worker, family)).kill()
    _, err = job.communicate(timeout=300)
    assert (job.returncode, err) == (DONE, "")
    none_left(family, "reduce")


def none_left(family, where):
    """Ten seconds after its end nothing of a job is left."""
    begun = time.monotonic()
    _, left = psutil.wait_procs(family, timeout=10)
    print(f"{where}: all gone after {time.monotonic() - begun:.0f} s")
    assert left_of(left) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["collect", "reduce"])
def test_a_killed_job_leaves_nothing(name, start):
    job, family = start(name)
    job.kill()
    job.wait()
    none_left(family, f"driver of {name} killed")


def test_a_worker_s_error_is_told_in_its_own_words(inputs, tmp_path):
    """Weights that are not finite: nothing of Ray's, and the run stays without a shard."""
    run, damaged = tmp_path / "run", models.save_with_nan(tmp_path / "damaged", layer=1)
    settings = [*inputs, f"model.path={damaged}", f"run={run}"]
    job = [sys.executable, str(ROOT / "jobs" / "collect.py"), *settings]
    done = subprocess.run(job, capture_output=True, text=True, check=False)
    assert done.returncode == FAILED, done
    assert done.stderr.startswith("error: shard "), done.stderr
    assert "NaN or infinity in layer 1, sequence 0 of shard " in done.stderr
    assert len(done.stderr.splitlines()) <= 12, done.stderr
    assert not list((run / "activations.zarr" / "records").glob("*"))


DRIVER = """
import subprocess, sys, time
from neuronstats.cluster import start
from neuronstats.cluster.settings import RaySettings
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print(other.pid, flush=True)
with start.connect(RaySettings(), on_message=print):
    time.sleep(300)
"""


@pytest.mark.parametrize("agents", [1, 2], ids=["while Ray starts", "at work"])
def test_a_killed_driver_leaves_nothing(agents):
    """Ray's agents tried to tell a head that was gone, for up to a minute."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    job = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True, env=environment
    )
    other = psutil.Process(int(job.stdout.readline()))
    try:
        begun = time.monotonic()
        while sum("Agent" in process.name() for process in family_of(job)) < agents:
            assert job.poll() is None
            assert time.monotonic() - begun < 100
            time.sleep(0.1)
        family = family_of(job)
        assert len(family) > 5  # the other, the guard, Ray's own
        job.kill()
        none_left([process for process in family if process != other], "driver killed")
        assert other.is_running()  # what the driver started beside Ray is not Ray's
    finally:
        job.kill()
        other.kill()
        job.communicate()


def test_a_process_that_has_lost_its_parent_is_found():
    """A worker that is just started when Ray is killed is nobody's child that is known."""
    mark = "orphan-of-a-test"
    child = "subprocess.Popen(['sleep', '60'], stdout=-3, stderr=-3)"
    orphan = f"import subprocess; print({child}.pid)"
    environment = os.environ | {guard.MARK: mark}
    done = subprocess.run(
        [sys.executable, "-c", orphan], capture_output=True, text=True, env=environment, check=True
    )
    process = psutil.Process(int(done.stdout))
    try:
        family = guard.Family(psutil.Process(), mark)
        assert process not in family.look()
        assert process in family.look(everywhere=True)
    finally:
        process.kill()
