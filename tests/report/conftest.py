"""Fixtures of the report's tests: one reduced run, opened, and one report of it."""

import pytest
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
    """A report that holds the detail of all classified neurons and five others."""
    out = tmp_path_factory.mktemp("report") / "out"
    some = ("report.neurons=classified", "report.sample=5")
    code, said, wrong = run_job("report", f"runs=[{run_folder}]", f"out={out}", *some)
    assert code == 0, wrong
    assert "index.html" in said
    return out


@pytest.fixture
def no_figures(monkeypatch):
    """The job without its figures, which take most of its time."""
    monkeypatch.setattr("neuronstats.report.job.all_figures", lambda runs: [])
