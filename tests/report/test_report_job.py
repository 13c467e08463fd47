"""The report job: exit codes, whose folder it writes in, how much, and stops in between."""

import re
import shutil

import pytest
from helpers.reported import MARKUP, draw_only, run_file
from helpers.run_job import run_job

from neuronstats.errors import SettingsError
from neuronstats.report.notebook import LoadedRun
from neuronstats.report.output import Output
from neuronstats.report.page.serve import make_server


def test_tables_of_another_run(run_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run_folder / "tables", other / "tables")
    text = run_file(run_folder)
    (other / "run.yaml").write_text(re.sub(r"fingerprint: \w+", "fingerprint: none", text, count=1))
    code, _, wrong = run_job("report", f"runs=[{other}]", f"out={tmp_path / 'out'}")
    assert code == 1
    assert "was made from another run" in wrong
    assert not (tmp_path / "out").exists()


def test_a_port_that_is_taken_is_refused_before_anything_is_written(run_folder, tmp_path):
    with make_server(tmp_path, lambda *_: None, 0) as server:
        code, _, wrong = run_job(
            "report", f"runs=[{run_folder}]", f"out={tmp_path / 'out'}", "serve=true",
            f"port={server.server_port}",
        )  # fmt: skip
    assert code == 1
    assert "cannot be used" in wrong
    assert not (tmp_path / "out/index.html").exists()


def everything_below(folder):
    """Every file's bytes, by its path."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("inside", ["", "tables", "logs", "activations.zarr/new"])
def test_a_run_in_an_object_store_is_no_place_for_a_report(inside):
    with pytest.raises(SettingsError, match="the run s3://bucket/run"):
        Output(f"s3://bucket/run/{inside}", ["s3://bucket/run/"])


@pytest.mark.usefixtures("no_figures")
def test_a_users_file_in_a_report_is_refused_and_stays(run_folder, tmp_path):
    arguments = (f"runs=[{run_folder}]", f"out={tmp_path / 'out'}", "report.neurons=none")
    assert run_job("report", *arguments)[0] == 0
    (tmp_path / "out/.hidden").write_text("of the system")
    assert run_job("report", *arguments)[0] == 0
    mine = tmp_path / "out/data/r0/mine.csv"
    mine.write_text("mine")
    before = everything_below(tmp_path / "out")
    code, _, wrong = run_job("report", *arguments)
    assert code == 2
    assert "data/r0/mine.csv" in wrong
    assert everything_below(tmp_path / "out") == before


def test_names_in_any_script_cause_no_warning(run_folder, tmp_path, monkeypatch):
    """A name stands in a legend, in panels' titles and in captions."""
    draw_only(monkeypatch, "1a", "2", "7")
    moved = shutil.copytree(run_folder, tmp_path / "run")
    text = run_file(moved)
    (moved / "run.yaml").write_text(
        re.sub(r"(model:\n(?:    .*\n)*?    name: ).*(?:\n      .*)*", r"\1模型🙂", text, count=1),
    )
    assert LoadedRun(str(moved)).name == "模型🙂"
    code, _, wrong = run_job(
        "report", f"runs=[{moved}]", f"out={tmp_path / 'out'}", "report.neurons=none"
    )  # in which a warning is an error
    assert (code, wrong) == (0, "")


@pytest.mark.usefixtures("no_figures")
def test_a_limit_of_bytes_is_kept_and_told(run_folder, tmp_path):
    limit = 20_000
    code, said, _ = run_job(
        "report", f"runs=[{run_folder}]", f"out={tmp_path / 'out'}", f"report.max_bytes={limit}"
    )
    assert code == 0
    assert sum(p.stat().st_size for p in (tmp_path / "out/data/r0").glob("d*.js")) <= limit
    assert "report.max_bytes" in said


def test_nothing_on_the_page_is_markup_but_the_pages_own(report):
    page = (report / "index.html").read_text()
    assert MARKUP not in page
    assert "&lt;/script&gt;&lt;b/class=&#34;x&#34;&gt;&amp;amp;" in page
    assert not re.search(r"(src|href)=\"(https?:)?//", page)
