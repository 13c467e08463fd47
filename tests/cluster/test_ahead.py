"""Ray started beside a job's imports: its workers are used, and used again; nothing stays."""

import os
import signal
import sys
import time
from pathlib import Path
from unittest.mock import ANY, Mock, call

import psutil
import pytest

from neuronstats.cluster import local
from neuronstats.cluster.connection import SpareWorkers
from neuronstats.cluster.local import ray_ahead
from neuronstats.cluster.settings import RaySettings
from neuronstats.cluster.start import connect
from neuronstats.machine import Machine

HERE = Path(__file__).parent
WORKERS = RaySettings(workers=2, cpus_per_worker=1)


class Says:
    """Says which process it is, and whether a module was imported before its work was known."""

    def __init__(self):
        self._imported = "wave" in sys.modules

    def __call__(self, task):
        time.sleep(0.5)  # so that both workers get some
        return os.getpid(), self._imported


@pytest.fixture(autouse=True)
def here(monkeypatch):
    path = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parents[1])])
    monkeypatch.setenv("PYTHONPATH", path)  # the workers import this module


def do(settings):
    with connect(settings, on_message=print) as pool:
        answers = [answer for _, answer in pool.run(Says, (), range(4))]
    return {pid for pid, _ in answers}, all(imported for _, imported in answers)


def test_workers_are_started_before_their_work_is_known_and_kept_from_job_to_job():
    before = set(psutil.Process().children(recursive=True))
    with ray_ahead(WORKERS, "colorsys", "wave"):
        assert "colorsys" in sys.modules
        pids, imported = do(WORKERS)
        assert imported
        assert len(pids) == 2
        again, _ = do(RaySettings(workers=1, cpus_per_worker=2))  # other cores for each
        assert again < pids
        family = set(psutil.Process().children(recursive=True)) - before
    assert family
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_work_per_core_starts_workers_without_gpus(monkeypatch):
    """As the reduction does, on a machine whose GPUs the collection would take."""
    machine = Machine(cores=4, gpus=2, host_bytes=1 << 34, gpu_bytes=1 << 34)
    monkeypatch.setattr(local, "probe", lambda: machine)
    start = Mock()
    monkeypatch.setattr(local, "start_worker", start)
    for per_core, gpus in ((False, 1), (True, 0)):
        spare = SpareWorkers(None)
        local._start_workers(spare, RaySettings(), ["wave"], per_core=per_core)
        assert start.call_args_list == [call(ANY, num_cpus=0, num_gpus=gpus)] * 2
        assert spare.gpus == gpus
        start.reset_mock()


def test_what_cannot_be_imported_is_left_to_the_job():
    """It imports the module itself, and its error has the place."""
    with ray_ahead(RaySettings(workers=1), "no.such.module", "no.such.module"):
        pids, imported = do(RaySettings(workers=1))
    assert len(pids) == 1
    assert not imported


def test_a_cluster_is_not_started_ahead():
    handler = signal.getsignal(signal.SIGTERM)
    with ray_ahead(RaySettings(address="10.0.0.1:6379"), "no.such.module", "wave"):
        assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
        assert signal.getsignal(signal.SIGTERM) is handler


def interrupted():
    with ray_ahead(RaySettings(), "colorsys", "wave"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)


def test_sigterm_before_the_work_begins_interrupts():
    """As Ctrl-C does: the job ends with its own exit code, and Ray with it."""
    before = set(psutil.Process().children(recursive=True))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    left = set(psutil.Process().children(recursive=True)) - before
    assert not psutil.wait_procs(left, timeout=10)[1]
    assert signal.getsignal(signal.SIGTERM) is handler
