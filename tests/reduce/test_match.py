"""Neurons matched between runs: what reduce writes and refuses, what the report shows of it."""

import json
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import models
from helpers.reported import draw_only
from helpers.serial import make_run, quiet, serial

from benchmarks.page import browser_is_here, start_browser
from neuronstats.errors import SettingsError
from neuronstats.reduce.job import reduce
from neuronstats.reduce.match import compared_sequences
from neuronstats.reduce.settings import ReduceJob
from neuronstats.report.figures.frame import NamedRun, NoDataError
from neuronstats.report.figures.matches import matches
from neuronstats.report.job import open_runs, report
from neuronstats.report.notebook import LoadedRun
from neuronstats.report.settings import ReportJob

SEQUENCES, POSITIONS = 10, 24


def collected(folder, checkpoint, name, *, seed=2, **settings):
    """A run over random tokens of two domains."""
    tokens = models.random_tokens(SEQUENCES, POSITIONS, seed=seed)
    domains = ["a"] * 6 + ["b"] * 4
    return make_run(
        folder / name, checkpoint, tokens, domains, **{"collect__bitmaps": 2} | settings
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny_checkpoint):
    """Two models' runs, cut into other shards, reduced and matched over half of the sequences."""
    folder = tmp_path_factory.mktemp("pair")
    first = collected(folder, tiny_checkpoint("pre"), "first", collect__shard_sequences=3)
    second = collected(folder, tiny_checkpoint("post"), "second")
    with serial(pytest.MonkeyPatch()):
        job = ReduceJob(runs=[first, second], match_tokens=5 * POSITIONS + 3)
        assert reduce(job, quiet()) == 0
    return first, second


@pytest.fixture(scope="module")
def page(pair, tmp_path_factory):
    """The report of both."""
    out = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        draw_only(patch, "matches")
        assert report(ReportJob(runs=list(pair), out=str(out)), quiet()) == 0
    return out


def bits_of(location, layer, sequences):
    run = LoadedRun(location)
    width = range(run.layout.num_neurons)
    return np.array([run.activated(layer, neuron)[sequences] for neuron in width])


def highest(first, second):
    rows = np.concatenate([b.reshape(len(b), -1) for b in (first, second)]).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.corrcoef(rows)[: len(first), len(first) :]
    return np.where(np.isnan(found), -np.inf, found)


def test_the_table_is_numpy_s(pair):
    table = pq.read_table(f"{pair[0]}/matches.parquet")
    rows = table.to_pylist()
    assert table.schema.field("match").metadata[b"meaning"]
    sequences = compared_sequences(SEQUENCES, POSITIONS, 5 * POSITIONS + 3)
    assert sequences.tolist() == [0, 2, 4, 7, 9]
    moved = np.array([2, 4, 0, 9, 7])  # each sequence's place is another's of its domain
    names = [LoadedRun(location).run.fingerprint for location in pair]
    for layer in range(2):
        first, second = (bits_of(location, layer, sequences) for location in pair)
        shifted = bits_of(pair[1], layer, moved)
        both = highest(first, second), highest(first, shifted)
        for (run, other), (phi, control) in zip(
            (names, names[::-1]), (both, [m.T for m in both]), strict=True
        ):
            own = [r for r in rows if (r["run"], r["other"], r["layer"]) == (run, other, layer)]
            assert [r["neuron"] for r in own] == list(range(len(phi)))
            for r, values, chance in zip(own, phi, control, strict=True):
                assert r["tokens"] == 5 * POSITIONS
                if values.max() == -np.inf:
                    assert r["match"] is r["correlation"] is r["mutual"] is None
                    continue
                assert r["correlation"] == pytest.approx(values.max(), abs=1e-12)
                assert values[r["match"]] == pytest.approx(values.max(), abs=1e-12)
                assert r["control"] == pytest.approx(chance.max(), abs=1e-12)
                back = own_of(rows, other, run, layer)[r["match"]]["match"]
                assert r["mutual"] == (back == r["neuron"])
    assert any(r["mutual"] for r in rows)


def own_of(rows, run, other, layer):
    return [r for r in rows if (r["run"], r["other"], r["layer"]) == (run, other, layer)]


def test_the_report_draws_it_and_links_the_neurons(page):
    info = (page / "data" / "info.js").read_text()
    assert [r["matches"] for r in json.loads(info[len("window.NS_INFO=") : -2])["runs"]] == [
        [0, 1],
        [0, 1],
    ]
    for number in range(2):
        for layer in range(2):
            text = (page / f"data/r{number}/m{layer:03d}.js").read_text()
            assert text.startswith(f'NS.matched({number},{layer},{{"{1 - number}":')
    assert (page / "figures" / "fig_matches.svg").is_file()


def test_the_figure_is_the_table(pair):
    runs = [NamedRun(name, LoadedRun(at)) for name, at in zip("ab", pair, strict=True)]
    drawing = matches(runs)
    rows = [
        r
        for r in pq.read_table(f"{pair[0]}/matches.parquet").to_pylist()
        if r["run"] == runs[0].run.run.fingerprint and r["correlation"] is not None
    ]
    medians = [np.median([r["correlation"] for r in rows if r["layer"] == k]) for k in range(2)]
    assert drawing.figure.axes[0].lines[0].get_ydata() == pytest.approx(medians)
    count = sum(r["correlation"] - (r["control"] or 0) > 0.5 for r in rows)
    assert f"{count} of {len(rows)} of a in b" in drawing.caption
    with pytest.raises(NoDataError, match="match_tokens"):
        matches(runs[:1])


def test_what_cannot_be_matched_is_refused_before_anything_is_touched(
    pair, tiny_checkpoint, tmp_path
):
    others = {
        "other tokens": collected(tmp_path, tiny_checkpoint("pre"), "other", seed=3),
        "no bitmaps": collected(tmp_path, tiny_checkpoint("pre"), "bare", collect__bitmaps="none"),
        "not finished": collected(tmp_path, tiny_checkpoint("pre"), "half"),
    }
    for record in Path(others["not finished"], "activations.zarr", "records").glob("*.json"):
        record.unlink()
        break
    for reason, other in others.items():
        job = ReduceJob(runs=[pair[0], other], match_tokens=100, partial=True)
        with serial(pytest.MonkeyPatch()), pytest.raises(SettingsError, match=reason):
            reduce(job, quiet())
        assert not Path(other, "tables").exists()


@pytest.mark.parametrize("settings", [{"run": "x"}, {"runs": ["x"]}, {"runs": ["x", "y"]}])
def test_match_tokens_needs_several_runs(settings):
    number = 1 << 31 if len(settings.get("runs", [])) > 1 else 5
    with pytest.raises(SettingsError, match=f"match_tokens={number}"):
        ReduceJob(**settings, match_tokens=number)


@pytest.mark.skipif(not browser_is_here(), reason="no selenium, chromium and chromedriver here")
def test_a_neuron_s_panel_links_to_its_match(pair, page, tmp_path):
    table = pq.read_table(f"{pair[0]}/matches.parquet").to_pylist()
    known = next(r for r in table if r["match"] is not None)  # of the first run's first layer
    labels = [named.label for named in open_runs(pair)]
    from selenium.webdriver.support.ui import WebDriverWait

    driver = start_browser(tmp_path / "profile")
    try:
        address = (page / "index.html").as_uri()
        driver.get(f"{address}#{quote(labels[0], safe='')}/{known['layer']}/{known['neuron']}")
        wait = WebDriverWait(driver, 60)
        link = wait.until(lambda d: d.find_element("css selector", "#why a"))
        assert link.text == f"neuron {known['match']}"
        assert f"correlate by {known['correlation']:.2f}" in driver.find_element("id", "why").text
        driver.execute_script("arguments[0].click()", link)
        name = f"{labels[1]}: layer {known['layer']}, neuron {known['match']}"
        wait.until(lambda d: d.find_element("id", "name").text == name)
    finally:
        driver.quit()
