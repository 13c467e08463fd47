"""A training followed through its checkpoints by the commands of docs/reproduce.md."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.reported import draw_only
from helpers.run_job import run_job
from helpers.serial import serial
from test_train import SMALL, make_documents

from neuronstats.report.figures.dynamics import dynamics
from neuronstats.report.figures.frame import NoDataError
from neuronstats.report.job import open_runs
from neuronstats.stats.curves import TYPES
from neuronstats.store.info import RunInfo

STEPS = [0, 1000, 5120]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A tiny training's checkpoints, collected and reduced by one command each; the text's name."""
    folder = tmp_path_factory.mktemp("dynamics")
    text = folder / "text.jsonl"
    text.write_text("".join(f'{{"text": "{words}"}}\n' for _, words in make_documents()))
    train = [f"train.{k}={v}" for k, v in (SMALL | {"checkpoints": STEPS}).items()]
    data = ["data=local", "data.path=text.jsonl"]

    def job(*arguments):
        with serial(pytest.MonkeyPatch()):
            code, _, err = run_job(*arguments, cwd=folder)
        assert code == 0, err

    job("train", *data, *train, "out=small")
    paths = ",".join(f"small/checkpoint-{step}" for step in reversed(STEPS))
    where = "run=runs/${model.path}"
    job("collect", "-m", "model=local", f"model.path={paths}", *data, where, "collect.bitmaps=all")
    reduced = ["reduce.positional_mi=0.02", "reduce.max_cover={1: 40, 2: 50, 3: 50}"]
    places = ",".join(f"runs/{path}" for path in paths.split(","))
    job("reduce", "-m", f"run={places}", *reduced, "reduce.detect_rate=0.5")
    with pytest.MonkeyPatch.context() as patch:
        draw_only(patch, "dynamics")
        job("report", f"runs=[{places}]", "out=report", "report.neurons=none")
    assert not list(folder.rglob("multirun.yaml"))
    return folder, places.split(",")


def test_the_report_orders_them_by_step(runs, monkeypatch):
    folder, places = runs
    monkeypatch.chdir(folder)
    named = open_runs(places)
    assert [each.label for each in named] == [f"checkpoint-{step}" for step in STEPS]
    assert [each.run.run.about.training for each in named] == [
        (f"{folder}/small/", s) for s in STEPS
    ]
    page = (folder / "report" / "index.html").read_text()
    assert f"<title>neuronstats: {', '.join(f'checkpoint-{step}' for step in STEPS)}" in page
    assert (folder / "report" / "figures" / "fig_dynamics.svg").is_file()


def test_the_figure_is_the_tables(runs, monkeypatch):
    folder, places = runs
    monkeypatch.chdir(folder)
    dead, detectors, positional = dynamics(open_runs(places)).figure.axes
    layers = [pq.read_table(f"runs/small/checkpoint-{s}/tables/layers.parquet") for s in STEPS]

    def totals(column):
        return [sum(table[column].to_pylist()) for table in layers]

    shares = 100 * np.array(totals("dead")) / np.array(totals("neurons"))
    assert dead.lines[0].get_xdata().tolist() == STEPS
    assert dead.lines[0].get_ydata() == pytest.approx(shares)
    for n, line in zip((1, 2, 3), detectors.lines, strict=True):
        assert line.get_ydata().tolist() == totals(f"detectors_{n}")
    for kind, line in zip(TYPES, positional.lines, strict=True):
        assert line.get_ydata().tolist() == totals(kind)
    assert sum(totals("detectors_1"))
    assert sum(totals("positional"))
    with pytest.raises(NoDataError, match="give several of one"):
        dynamics(open_runs(places[:1]))


@pytest.mark.parametrize(
    ("path", "name", "revision", "training"),
    [
        ("out/checkpoint-1000", "local", None, ("out/", 1000)),
        ("out/checkpoint-1000/", "local", None, ("out/", 1000)),
        ("hub/pythia-70m", "pythia-70m", "step1000", ("hub/pythia-70m pythia-70m", 1000)),
        ("a/small-step_20", "local", None, ("a/small-", 20)),
        ("out/final", "local", None, None),
        ("a/footstep3", "mystep-7x", None, None),
    ],
)
def test_the_step_is_read_from_the_checkpoint_s_name(path, name, revision, training):
    model = {"name": name, "path": path, "revision": revision}
    assert RunInfo({"settings": {"model": model}}).training == training
