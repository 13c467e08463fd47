"""An exit, or an error, at every single write of report and train; then the same command again."""

import shutil
from functools import partial
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
    """Every file's bytes but cut-off ones of the store's; folders too, where they are empty."""
    paths = sorted(p for p in folder.rglob("*") if p.name != LOCK and not p.name.endswith("#1"))
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in paths
        if path.is_file() or not any(path.iterdir())
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory, smallest_checkpoint):
    folder, tokens = tmp_path_factory.mktemp("crash") / "run", models.random_tokens(6, 16, seed=3)
    return make_run(folder, smallest_checkpoint, tokens, reduction=ReduceSettings(ngrams=[1]))


FIGURES = [
    Drawing(name="1a", title="Dead", caption="seen", figure=True),
    Drawing(name="3a", title="New", caption="seen", figure=True),
    Drawing(name="5", title="None", reason="there is no data"),
]


def reporting(run, out, neurons="none"):
    """A report with a few figures that need no drawing."""
    settings = ReportSettings(neurons=neurons, contexts=1, sample=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_job, "all_figures", lambda runs: FIGURES)
        patch.setattr(Drawing, "render", lambda self, kind: f"{self.stem}.{kind}".encode())
        return report(ReportJob(runs=[run], out=str(out), report=settings), quiet())


@pytest.fixture
def older(run, tmp_path):
    """older(name): a copy of a report from which files will go; hidden and foreign ones stay."""
    assert reporting(run, tmp_path / "older", "all") == 0
    (tmp_path / "older" / ".own").write_text("of the user")
    return lambda name: shutil.copytree(tmp_path / "older", tmp_path / str(name))


@pytest.fixture
def whole(run, tmp_path, older):
    assert reporting(run, tmp_path / "new") == 0
    found = contents(tmp_path / "new") | {".own": b"of the user"}
    assert found.keys() < contents(tmp_path / "older").keys()
    return found


def test_report_exits_at_every_moment(run, older, whole, tmp_path, forks):
    moments = forks.moments(partial(reporting, run, older("counted")), tmp_path / "counted")
    assert len(moments) > 40
    for moment in forks.exits(moments, lambda name: partial(reporting, run, older(name))):
        assert reporting(run, tmp_path / str(moment)) == 0
        assert contents(tmp_path / str(moment)) == whole, f"exited at moment {moment}"


def test_report_fails_once_at_every_step(run, older, whole, monkeypatch):
    steps = Steps(monkeypatch)
    for step in range(steps.run(partial(reporting, run, older("counted")))):
        out = older(step)
        steps.run(partial(reporting, run, out), step, once=True)
        steps.run(partial(reporting, run, out))
        assert contents(out) == whole, f"failed at step {step}"


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

    assert train(settings, documents, Path(out)) == Path(out) / "final"
    return 0


def equal(one, other):
    """Whether two states hold the same; how torch packs them depends on where they were made."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return one == other


def assert_equal_training(out, whole):
    found, expected = contents(out), contents(whole)
    assert found.keys() == expected.keys()
    assert not [*out.glob("*/*#1")], "a part of a write in the tokenizer, or in a model"
    assert {name for name in found if found[name] != expected[name]} <= {"state.pt"}
    assert equal(*(torch.load(folder / "state.pt") for folder in (out, whole)))


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_train_exits_at_every_moment(tmp_path, forks):
    whole = tmp_path / "whole"
    moments = forks.moments(partial(training, whole), whole)
    assert len(moments) > 25
    for moment in forks.exits(moments, lambda name: partial(training, tmp_path / str(name))):
        training(tmp_path / str(moment))
        assert_equal_training(tmp_path / str(moment), whole)


@pytest.mark.usefixtures("one_thread")
def test_train_fails_once_at_every_step(tmp_path, monkeypatch):
    steps = Steps(monkeypatch)
    for step in range(steps.run(partial(training, tmp_path / "whole"))):
        out = tmp_path / str(step)
        steps.run(partial(training, out), step, once=True)
        steps.run(partial(training, out))
        assert_equal_training(out, tmp_path / "whole")
