"""The script for a machine with a GPU: a failing step ends it, and its steps run on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = str(ROOT / "tools/gpu_check.sh")


def run(*steps, **environment):
    return subprocess.run(
        [SCRIPT, *steps],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_step_that_fails_ends_it_and_is_named(tmp_path):
    """A pipe, a loop and a command alone must all be heard; what follows is not run."""
    fails = tmp_path / "python"
    fails.write_text("#!/bin/sh\nexit 3\n")
    fails.chmod(0o755)
    for step in ("environment", "tests", "race", "parity", "job", "sweep", "big", "bench"):
        done = run(step, "no_such_step", DEVICE="cpu", PYTHON=str(fails), TMPDIR=str(tmp_path))
        assert done.returncode != 0, step
        assert f"step {step} FAILED" in done.stderr
        assert "no_such_step" not in done.stdout
        assert "passed" not in done.stdout
    assert list(tmp_path.iterdir()) == [fails]  # nothing is left


def test_tests_that_were_skipped_are_no_success_on_a_gpu(tmp_path):
    says = tmp_path / "python"
    says.write_text("#!/bin/sh\necho '10 passed, 4 skipped in 1.0s'\n")
    says.chmod(0o755)
    done = run("tests", DEVICE="cuda", PYTHON=str(says))
    assert done.returncode != 0
    assert "step tests FAILED" in done.stderr


def test_packages_that_lie_elsewhere_are_found(tmp_path):
    says = tmp_path / "python"
    says.write_text("#!/bin/sh\necho path $PYTHONPATH\n")
    says.chmod(0o755)
    done = run("race", DEVICE="cpu", PYTHON=str(says), PYTHONPATH="/some/where")
    assert "path .:tests:/some/where\n" in done.stdout


@pytest.mark.parametrize(("ray", "job"), [(0, "jobs/collect.py"), (1, "tests/helpers/serial.py")])
def test_the_job_without_ray(ray, job, tmp_path):
    """It is not wanted of a GPU, and its wheel is large."""
    says = tmp_path / "python"
    says.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exit {ray}\necho "$@"\n'
        'for last; do :; done; mkdir -p "${last#run=}/activations.zarr"\n'
    )
    says.chmod(0o755)
    done = run("job", DEVICE="cuda", PYTHON=str(says))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(job) == done.stdout.count("ray.gpus_per_worker=1") == 2


@pytest.mark.slow
def test_the_steps_on_a_cpu():
    steps = ("environment", "race", "parity", "sweep", "big")
    done = run(*steps, DEVICE="cpu", PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert "layers that differ: 0" in done.stdout
    assert done.stdout.endswith("all steps passed\n")
