"""The report job: exit codes, whose folder it writes in, how much, and stops in between."""

import contextlib
import re
import shutil
from pathlib import Path

import pytest
from helpers.reported import MARKUP, run_file
from helpers.run_job import run_job
from helpers.serial import quiet

from neuronstats.errors import SettingsError
from neuronstats.report.job import report as report_job
from neuronstats.report.notebook import LoadedRun
from neuronstats.report.output import Output
from neuronstats.report.page import data as pieces
from neuronstats.report.page.serve import make_server
from neuronstats.report.settings import ReportJob
from neuronstats.store.folder import RunFolder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "runs is not set"),
        (["runs=[.]"], "holds no run"),
        (["runs=[RUN,RUN]"], "more than once"),
        (["runs=[RUN]", "report.neurons=some"], "classified, all or none"),
        (["runs=[RUN]", "report.contexts=1000000"], "expected 0 to 100"),
        (["runs=[RUN]", "report.context_tokens=1001"], "expected 0 to 1000"),
        (["runs=[RUN]", "report.max_bytes=-1"], "expected 0 or more"),
    ],
)
def test_wrong_settings_touch_nothing(run_folder, tmp_path, arguments, says):
    given = [argument.replace("RUN", str(run_folder)) for argument in arguments]
    code, _, wrong = run_job("report", *given, f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert code == 2
    assert says in wrong
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_not_reduced(run_folder, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(run_folder / "run.yaml", bare)
    code, _, wrong = run_job("report", f"runs=[{bare}]", f"out={tmp_path / 'out'}")
    assert code == 1
    assert wrong.splitlines()[-1].startswith("error: ")
    assert "jobs/reduce.py" in wrong


def test_out_is_a_file(run_folder, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below"):
        code, _, wrong = run_job("report", f"runs=[{run_folder}]", f"out={out}")
        assert code in (1, 2)
        assert str(file) in wrong.splitlines()[-1]
    assert file.read_text() == "mine"


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


def foreign_index(folder):
    (folder / "index.html").write_text("mine")


def foreign_folders(folder):  # the names that a report has too
    for name in ("data/raw/thesis.csv", "figures/fig1.pdf"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("mine")


def foreign_marker(folder):  # of another program, or written by a report that did not list files
    (folder / "report.json").write_text('{"runs": []}')
    foreign_index(folder)


def foreign_list(folder):
    (folder / "report.json").write_text('["data/a.csv"]')
    foreign_folders(folder)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    "put", [foreign_index, foreign_folders, foreign_marker, foreign_list], ids=lambda f: f.__name__
)
def test_a_folder_with_a_users_files_is_refused(run_folder, tmp_path, put):
    out = tmp_path / "proj"
    out.mkdir()
    put(out)
    before = everything_below(out)
    code, _, wrong = run_job("report", f"runs=[{run_folder}]", "out=.", cwd=out)
    assert code == 2
    assert "did not write" in wrong
    assert str(sorted(before)[0]) in wrong
    assert everything_below(out) == before


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


@pytest.mark.parametrize(
    "inside", ["", "tables", "tables/new", "logs", "activations.zarr", "activations.zarr/new",
               "report/../tables"]
)  # fmt: skip
def test_a_runs_own_folders_are_no_place_for_a_report(run_folder, tmp_path, inside):
    before = everything_below(run_folder)
    code, _, wrong = run_job("report", f"runs=[{run_folder}]", f"out={run_folder / inside}")
    assert code == 2
    assert "the run" in wrong
    assert everything_below(run_folder) == before
    with pytest.raises(SettingsError, match="the run s3://bucket/run"):
        Output(f"s3://bucket/run/{inside.removeprefix('report/../')}", ["s3://bucket/run/"])


@pytest.mark.usefixtures("no_figures")
def test_a_report_that_was_stopped_is_made_anew(run_folder, tmp_path, monkeypatch):
    """After a stop at every write, the same command ends with the same files, none left over."""
    out = tmp_path / "out"

    def make(neurons, out=out):
        settings = pieces.ReportSettings(neurons=neurons, sample=2)
        job = ReportJob(runs=[str(run_folder)], out=str(out), report=settings)
        return report_job(job, quiet())

    make("none")
    expected = everything_below(out)
    make("classified", tmp_path / "before")
    real = RunFolder.write
    number = stop = 0

    def write(folder, key, data):
        nonlocal number
        number += 1
        if number == stop:
            raise OSError("stopped")
        real(folder, key, data)

    while number >= stop:
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "before", out)
        number, stop = 0, stop + 1
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "write", write)
            with contextlib.suppress(OSError):
                make("none")
        make("none")
        assert everything_below(out) == expected
    assert stop > len(expected)


def test_names_in_any_script_cause_no_warning(run_folder, tmp_path, monkeypatch):
    """A name stands in a legend, in panels' titles and in captions."""
    monkeypatch.setattr("neuronstats.report.figures.catalogue.ORDER", ("1a", "2", "7"))
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


def test_vendored_libraries_keep_their_licences():
    vendor = Path(pieces.__file__).parent / "assets/vendor"
    for name in ("tabulator", "uPlot"):
        assert "MIT" in (vendor / f"{name}.LICENSE").read_text()
