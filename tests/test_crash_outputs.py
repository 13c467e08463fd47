"""A death at every single write of report and train; then the same command again.

As in test_crash.py: what is stored after one step is what is stored before the next.
"""

import functools
import shutil
from pathlib import Path

import pytest
import torch
from helpers import models
from helpers.serial import make_run, quiet
from helpers.steps import Steps

from neuronstats.report import job as report_job
from neuronstats.report.figures.frame import Drawing
from neuronstats.report.job import report
from neuronstats.report.settings import ReportJob, ReportSettings
from neuronstats.stats.settings import ReduceSettings
from neuronstats.store.layout import LOCK
from neuronstats.training.loop import train
from neuronstats.training.settings import TrainSettings


def contents(folder):
    """Every file's bytes; folders too, where they are empty."""
    paths = sorted(path for path in folder.rglob("*") if path.name != LOCK)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in paths
        if path.is_file() or not any(path.iterdir())
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory, smallest_checkpoint):
    folder, tokens = tmp_path_factory.mktemp("crash") / "run", models.random_tokens(6, 16, seed=3)
    return make_run(folder, smallest_checkpoint, tokens, reduction=ReduceSettings(ngrams=[1]))


@pytest.fixture
def drawn_once(run, monkeypatch):
    """Figures are the same each time: draw them once."""
    figures = report_job.all_figures(report_job.open_runs([run]))
    monkeypatch.setattr(report_job, "all_figures", lambda runs: figures)
    render = Drawing.render
    once = functools.cache(lambda index, kind: render(figures[index], kind))
    monkeypatch.setattr(Drawing, "render", lambda self, kind: once(figures.index(self), kind))


def reporting(run, out, neurons="all"):
    settings = ReportSettings(neurons=neurons, contexts=1, sample=2)
    return lambda: report(ReportJob(runs=[run], out=str(out), report=settings), quiet())


def test_report_dies_at_every_step(run, drawn_once, tmp_path, monkeypatch):
    """Over an older report, from which files go; hidden and foreign ones stay."""
    steps = Steps(monkeypatch)
    steps.run(reporting(run, tmp_path / "whole", "none"))
    whole = contents(tmp_path / "whole")
    out, old = tmp_path / "out", tmp_path / "old"
    steps.run(reporting(run, out))
    (out / ".own").write_text("of the user")
    assert whole.keys() < contents(out).keys()
    shutil.copytree(out, old)
    number = steps.run(reporting(run, out, "none"))
    assert number > 30
    for step in range(number):
        shutil.rmtree(out)
        shutil.copytree(old, out)
        steps.run(reporting(run, out, "none"), step)
        steps.run(reporting(run, out, "none"))
        assert contents(out) == whole | {".own": b"of the user"}, f"died before step {step}"


def training(out):
    settings = TrainSettings(
        tokens=8 * 2 * 4,
        checkpoints=[0, 32],
        num_layers=1,
        hidden_size=8,
        num_heads=1,
        ffn_size=16,
        vocab_size=260,
        sequence_length=8,
        batch_sequences=2,
        heldout_percent=30,
        heldout_sequences=2,
        heldout_every=2,
        log_every=1,
        save_every=2,
    )
    documents = [("prose", f"document {number} of a few words") for number in range(12)]

    def job():
        assert train(settings, documents, Path(out)) == Path(out) / "final"
        return 0

    return job


def equal(one, other):
    """Whether two states hold the same; how torch packs them depends on where they were made."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return one == other


def test_train_dies_at_every_step(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = Steps(monkeypatch)
        number = steps.run(training(tmp_path / "whole"))
        whole = contents(tmp_path / "whole")
        assert number > 25
        for step in range(number):
            out = tmp_path / f"run{step}"
            steps.run(training(out), step)
            steps.run(training(out))
            found = contents(out)
            assert found.keys() == whole.keys()
            different = {name for name in found if found[name] != whole[name]}
            assert different <= {"state.pt"}, f"died before step {step}"
            assert equal(*(torch.load(folder / "state.pt") for folder in (out, tmp_path / "whole")))
    finally:
        torch.set_num_threads(threads)
