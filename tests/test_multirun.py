"""Several runs by one command: -m."""

import dataclasses
from functools import partial

import pytest
from helpers import models, serial
from helpers.reported import draw_only
from helpers.run_job import run_job

from neuronstats.machine import probe
from neuronstats.store.run import Run


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Call jobs/collect.py in this process, without Ray; returns exit code, stdout and stderr."""
    for name in ("a", "b"):
        models.save_checkpoint(models.tiny_opt(seed=ord(name)), tmp_path / name)
    serial.save_tokens(tmp_path / "tokens.npy", models.random_tokens(4, 16))
    settings = ["model=local", "data=tokens", "data.path=tokens.npy", "run='${model.path}/run'"]
    with serial.serial(monkeypatch):
        yield partial(run_job, "collect", *settings, cwd=tmp_path)


def test_each_value_is_a_run(command, tmp_path):
    before = {path.name for path in tmp_path.iterdir()}
    code, said, _ = command("-m", "model.path=a,b")
    assert code == 0
    assert "next: reduce runs=[a/run,b/run]" in said
    for name in ("a", "b"):
        run = Run.open(str(tmp_path / name / "run"))
        assert not run.layout.shards[len(run.records()) :]
    assert {path.name for path in tmp_path.iterdir()} == before  # nothing of Hydra's


def test_it_ends_with_the_report_on_all_runs(command, tmp_path, monkeypatch):
    draw_only(monkeypatch, "1a")
    code, said, _ = command("-m", "model.path=a,b", "report=both")
    assert code == 0
    assert "next:" not in said
    assert "report: 2 runs" in said
    page = (tmp_path / "both" / "index.html").read_text()
    assert all(f"{name}/run" in page for name in ("a", "b"))
    for name in ("a", "b"):
        assert (tmp_path / name / "run" / "tables" / "neurons.parquet").exists()
    # Again: all is collected already, and the report is written anew.
    assert command("-m", "model.path=a,b", "report=both")[0] == 0


def test_memory_of_the_run_before_is_not_missed(command, monkeypatch):
    """Its worker holds it until it is given the next run: a GPU's had no room for that one."""
    machines = iter([probe(), dataclasses.replace(probe(), host_bytes=1)])
    monkeypatch.setattr("neuronstats.collect.job.probe", lambda: next(machines))
    assert command("-m", "model.path=a,b")[0] == 0


def test_a_run_that_is_refused_keeps_no_other_from_being_done(command, tmp_path):
    code, said, _ = command("-m", "model.path=/none/here,b")
    assert code == 2
    assert "model.path=/none/here does not exist" in said
    assert Run.open(str(tmp_path / "b" / "run")).records()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "model.path=a", "ray.workers=1,2"], ["ray.* differs"]),
        (["-m", "model.path=a", "report=x,y"], ["report differs"]),
        (["model.path=a,b"], ["a,b", "-m does a run for each"]),
        (["-m", "model=local,opt-99"], ["model=opt-99", "choose one of"]),
    ],
)
def test_refusals(command, tmp_path, arguments, words):
    code, _, said = command(*arguments)
    assert code == 2
    assert all(word in said for word in words), said
    assert not (tmp_path / "a" / "run").exists()
