"""Several runs by one command: -m."""

import runpy
import sys
from pathlib import Path

import pytest
from helpers import models, serial
from helpers.reported import draw_only

from neuronstats.store.run import Run

JOB = Path(__file__).parents[1] / "jobs" / "collect.py"


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Call jobs/collect.py in this process, without Ray; returns its exit code."""
    for name in ("a", "b"):
        models.save_checkpoint(models.tiny_opt(seed=ord(name)), tmp_path / name)
    tokens = models.random_tokens(4, 16)
    serial.save_tokens(tmp_path / "tokens.npy", tokens)
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        settings = ["model=local", "data=tokens", "data.path=tokens.npy", "run='${model.path}/run'"]
        monkeypatch.setattr(sys, "argv", [str(JOB), *settings, *arguments])
        with serial.serial(monkeypatch), pytest.raises(SystemExit) as end:
            runpy.run_path(str(JOB), run_name="__main__")
        return end.value.code

    return call


def test_each_value_is_a_run(command, tmp_path, capsys):
    before = {path.name for path in tmp_path.iterdir()}
    assert command("-m", "model.path=a,b") == 0
    assert "next: reduce runs=[a/run,b/run]" in capsys.readouterr().out
    for name in ("a", "b"):
        run = Run.open(str(tmp_path / name / "run"))
        assert not run.layout.shards[len(run.records()) :]
    assert {path.name for path in tmp_path.iterdir()} == before  # nothing of Hydra's


def test_it_ends_with_the_report_on_all_runs(command, tmp_path, capsys, monkeypatch):
    draw_only(monkeypatch, "1a")
    assert command("-m", "model.path=a,b", "report=both") == 0
    said = capsys.readouterr().out
    assert "next:" not in said
    assert "report: 2 runs" in said
    page = (tmp_path / "both" / "index.html").read_text()
    assert all(f"{name}/run" in page for name in ("a", "b"))
    for name in ("a", "b"):
        assert (tmp_path / name / "run" / "tables" / "neurons.parquet").exists()
    # Again: all is collected already, and the report is written anew.
    assert command("-m", "model.path=a,b", "report=both") == 0


def test_a_run_that_is_refused_keeps_no_other_from_being_done(command, tmp_path, capsys):
    assert command("-m", "model.path=/none/here,b") == 2
    assert "model.path=/none/here does not exist" in capsys.readouterr().out
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
def test_refusals(command, tmp_path, capsys, arguments, words):
    assert command(*arguments) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not (tmp_path / "a" / "run").exists()
