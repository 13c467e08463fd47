"""Fixtures of the report's tests: one reduced run, opened, and one report of it."""

import pytest
from helpers.reported import draw_only
from helpers.run_job import run_job

from neuronstats.report.figures.frame import NamedRun
from neuronstats.report.notebook import LoadedRun


@pytest.fixture(scope="session")
def run(run_folder):
    return LoadedRun(str(run_folder))


@pytest.fixture(scope="session")
def named(run):
    return NamedRun("planted", run)


@pytest.fixture(scope="session")
def report(run_folder, tmp_path_factory):
    """A report of some figures, and the detail of all classified neurons and five others."""
    out = tmp_path_factory.mktemp("report") / "out"
    some = ("report.neurons=classified", "report.sample=5")
    with pytest.MonkeyPatch.context() as patch:
        draw_only(patch, "1a", "10")
        code, said, wrong = run_job("report", f"runs=[{run_folder}]", f"out={out}", *some)
    assert code == 0, wrong
    assert "index.html" in said
    return out


@pytest.fixture
def no_figures(monkeypatch):
    draw_only(monkeypatch)
