"""The page of a gated model: how much each neuron writes, as its tables have it."""

import pyarrow.parquet as pq
import pytest
from helpers import planted_gated, serial
from helpers.reported import piece
from test_browser import Page, browser, browser_missing  # noqa: F401

from neuronstats.collect.job import collect
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.report.job import report
from neuronstats.report.page.writing import SHOWN
from neuronstats.report.settings import ReportJob, ReportSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gated")
    planted_gated.planted_gated("silu").save_pretrained(folder / "model")
    tokens = planted_gated.corpus()
    file = serial.save_tokens(folder / "tokens.npy", tokens, ["a"] * len(tokens))
    job = serial.collect_job(folder / "run", folder / "model", file, collect__bitmaps="all")
    with pytest.MonkeyPatch.context() as patch, serial.serial(patch):
        patch.setattr("neuronstats.report.job.all_figures", lambda runs: [])
        assert collect(job, serial.quiet()) == 0
        assert reduce(ReduceJob(run=job.run), serial.quiet()) == 0
        chosen = ReportSettings(neurons="all")
        out = str(folder / "report")
        assert report(ReportJob(runs=[job.run], out=out, report=chosen), serial.quiet()) == 0
    return folder


def test_details_have_the_tables_values(folder):
    rows = pq.read_table(folder / "run" / "tables" / "neurons.parquet").to_pylist()
    for row in rows:
        written = piece(folder / "report", row["layer"], row["neuron"])["writing"]
        assert [line["title"] for line in written] == [title for _, title, _ in SHOWN]
        for line, (column, _, _) in zip(written, SHOWN, strict=True):
            value = row[column.name]
            assert line["value"] == (None if value is None else float(f"{value:.4g}"))
            assert line["meaning"] == column.meaning
    known = {line["title"] for row in rows for line in written if line["value"] is not None}
    assert "one-signedness" in known


@browser_missing
def test_the_panel_shows_them(folder, browser):  # noqa: F811
    page = Page(browser, folder / "report")
    page.open("#run/0/5")
    page.shown(0, 5)
    texts = [text.replace("\u00a0", " ") for text in page.texts("#updates tr")]
    row = pq.read_table(folder / "run" / "tables" / "neurons.parquet").to_pylist()[5]
    share = f"{100 * row['open_write_share']:.3g}"
    assert any(text.startswith(f"from open gates{share} %") for text in texts), texts
    assert any(text.startswith("one-signedness1|sum") for text in texts), texts
    assert page.complaints() == []
