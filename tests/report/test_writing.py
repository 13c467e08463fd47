"""The page of a gated model: how much each neuron writes, as its tables have it."""

import pyarrow.parquet as pq
import pytest
from helpers import planted_gated
from helpers.reported import draw_only, piece
from helpers.serial import make_run, quiet
from test_browser import Page, browser, browser_missing  # noqa: F401

from neuronstats.report.job import report
from neuronstats.report.page.columns import WRITING_COLUMNS
from neuronstats.report.settings import ReportJob
from neuronstats.stats.settings import ReduceSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gated")
    planted_gated.planted_gated("silu").save_pretrained(folder / "model")
    tokens, model = planted_gated.corpus(), folder / "model"
    settings = {"reduction": ReduceSettings(), "collect__bitmaps": "all"}
    run = make_run(folder / "run", model, tokens, ["a"] * len(tokens), **settings)
    job = ReportJob(runs=[run], out=str(folder / "report"))
    with pytest.MonkeyPatch.context() as patch:
        draw_only(patch)
        assert report(job, quiet()) == 0
    return folder


def test_details_have_the_tables_values(folder):
    rows = pq.read_table(folder / "run" / "tables" / "neurons.parquet").to_pylist()
    for row in rows:
        written = piece(folder / "report", row["layer"], row["neuron"])["writing"]
        values = {name: row[name] for name in (shown.column.name for shown in WRITING_COLUMNS)}
        assert written == {n: v and float(f"{v:.4g}") for n, v in values.items()}
    assert any(row["one_signedness"] is not None for row in rows)


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
    assert "meaning" in page.texts("#updates th")
    assert page.complaints() == []
