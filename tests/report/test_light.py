"""A report is made without the libraries that count and compute: they take seconds to import."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
FORMAT1 = TESTS / "data/format1/run"
MUST_NOT_IMPORT = ("torch", "numba", "ray", "transformers")
CODE = """
import sys
from helpers.run_job import run_job
from neuronstats.report.notebook import LoadedRun
from neuronstats.report.page.data import neuron_script
from neuronstats.report.settings import ReportSettings

import neuronstats.report.job
with_text, without = {runs}
neuronstats.report.job.PICTURES = ("svg",)  # drawing another time takes a third of the test
code, _, wrong = run_job("report", f"runs=[{{with_text}}]", "out={out}", "report.neurons=none")
assert code == 0, wrong
assert b"contexts" in neuron_script(LoadedRun(without), 0, 0, 7, ReportSettings())
print(*sorted(set({heavy}) & set(sys.modules)))
"""


def test_the_report_job_does_not_import(run_folder, tmp_path):
    """With a checkpoint tokens become text; without one, neurons' details need no projection."""
    runs = (str(run_folder), str(FORMAT1))
    code = CODE.format(runs=runs, out=tmp_path / "out", heavy=MUST_NOT_IMPORT)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TESTS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
    assert "w9" in (tmp_path / "out/data/r0/words.js").read_text()


def test_a_table_in_a_notebook_does_not_import(run_folder):
    """Nor the hub's client, which takes as long as reading two million rows."""
    code = "import sys, neuronstats; neuronstats.load(sys.argv[1]).neurons.to_pandas()"
    code += f"; print(*sorted({{*{MUST_NOT_IMPORT}, 'huggingface_hub'}} & {{*sys.modules}}))"
    command = [sys.executable, "-c", code, str(run_folder)]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
