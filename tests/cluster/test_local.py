"""A local job whose Ray is killed under it: told within a minute, and nothing of it is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import models
from helpers.serial import save_tokens

from neuronstats.errors import GONE

ROOT = Path(__file__).parents[2]


def ray_processes(job):
    """Ray's processes of a job by the end of their program's name."""
    return {child.pid: child for child in psutil.Process(job.pid).children(recursive=True)}


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_killed_under_a_local_job(victim, tiny_checkpoint, tmp_path):
    tokens = save_tokens(tmp_path / "tokens.npy", models.random_tokens(800, 64, seed=3))
    run = tmp_path / "run"
    settings = ["model=local", f"model.path={tiny_checkpoint('pre')}", "data=tokens"]
    settings += [f"data.path={tokens}", f"run={run}", "collect.shard_sequences=1"]
    job = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "collect.py"), *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    records = run / "activations.zarr" / "records"
    deadline = time.monotonic() + 200
    while not list(records.glob("*.json")) and time.monotonic() < deadline:
        assert job.poll() is None, job.communicate()
        time.sleep(0.2)
    family = ray_processes(job)
    (killed,) = [pid for pid, process in family.items() if process.name() == victim]
    os.kill(killed, signal.SIGKILL)
    begun = time.monotonic()
    _, err = job.communicate(timeout=120)
    assert job.returncode == GONE, err
    assert time.monotonic() - begun < 60
    assert "Ray on this machine has ended; what was committed stays" in err
    deadline = time.monotonic() + 60
    while left := [p for p in family.values() if p.is_running() and p.status() != "zombie"]:
        assert time.monotonic() < deadline, [process.name() for process in left]
        time.sleep(0.5)
