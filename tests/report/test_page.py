"""The report job and its page: exit codes, data pieces, and the page in a real browser."""

import base64
import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from unittest import mock
from urllib.parse import quote

import numpy as np
import pytest
from helpers import oracle, planted
from helpers.reported import MARKED, MARKUP, planted_run
from helpers.run_job import JOBS, run_job
from helpers.serial import quiet
from hypothesis import given, settings
from hypothesis import strategies as st

import neuronstats
from benchmarks.page import browser_is_here, start_browser
from neuronstats import bits
from neuronstats.corpus.token_texts import TokenTexts
from neuronstats.errors import SettingsError, UserError
from neuronstats.report.job import report as report_job
from neuronstats.report.notebook import LoadedRun, VisibleTexts, example_contexts, spread_out
from neuronstats.report.output import Output
from neuronstats.report.page import data as pieces
from neuronstats.report.page import detail as details
from neuronstats.report.page import search
from neuronstats.report.page.html import WRITES
from neuronstats.report.page.serve import make_server
from neuronstats.report.settings import ReportJob
from neuronstats.store.folder import RunFolder

browser_missing = pytest.mark.skipif(
    not browser_is_here(),
    reason="no selenium, chromium and chromedriver here: apt install chromium-driver",
)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, planted_checkpoint):
    return planted_run(tmp_path_factory.mktemp("page"), planted_checkpoint)


@pytest.fixture(scope="module")
def run(run_folder):
    return LoadedRun(str(run_folder))


@pytest.fixture(scope="module")
def report(run_folder, tmp_path_factory):
    """A report that holds the detail of all classified neurons and five others."""
    out = tmp_path_factory.mktemp("report") / "out"
    some = ("report.neurons=classified", "report.sample=5")
    code, said, wrong = run_job("report", f"runs=[{run_folder}]", f"out={out}", *some)
    assert code == 0, wrong
    assert "index.html" in said
    return out


def run_file(folder):
    """A run's run.yaml without its checksum, to be edited."""
    return re.sub(r"(?m)^checksum: .*\n", "", (folder / "run.yaml").read_text())


def piece(report, layer, neuron):
    """A neuron's detail, as the files have it."""
    columns = json.loads(
        (report / f"data/r0/n{layer:03d}.js").read_text()[len("NS.layer(0,0,") : -3]
    )
    number = np.frombuffer(base64.b64decode(columns["piece"][1]), "<i4")[neuron]
    if number < 0:
        return None
    text = (report / f"data/r0/d{number:05d}.js").read_text()
    return json.loads(text[len("NS.detail(0,0,") : -3])[str(neuron)]


# The job.


def test_no_run_is_a_wrong_setting(tmp_path):
    code, _, wrong = run_job("report", f"out={tmp_path / 'out'}")
    assert code == 2
    assert "runs is not set" in wrong
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run(tmp_path):
    code, _, wrong = run_job("report", f"runs=[{tmp_path}]")
    assert code == 2
    assert "holds no run" in wrong


def test_a_run_named_twice(run_folder, tmp_path):
    code, _, wrong = run_job(
        "report", f"runs=[{run_folder},{run_folder}]", f"out={tmp_path / 'out'}"
    )
    assert code == 2
    assert "more than once" in wrong


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


def test_shards_committed_since_partial_tables(run_folder):
    run = LoadedRun(str(run_folder))
    run.metadata |= {"complete": False, "shards": 1}
    with pytest.raises(UserError, match=r"has 3 shards, its partial tables were made of 1: run"):
        run.token_ids.sum()


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

    def make(neurons):
        settings = pieces.ReportSettings(neurons=neurons, sample=2)
        job = ReportJob(runs=[str(run_folder)], out=str(out), report=settings)
        return report_job(job, quiet())

    make("none")
    expected = everything_below(out)
    real = RunFolder.write
    number = stop = 0

    def write(folder, key, data):
        nonlocal number
        number += 1
        if number == stop:
            raise OSError("stopped")
        real(folder, key, data)

    while number >= stop:
        make("classified")
        number, stop = 0, stop + 1
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "write", write)
            with contextlib.suppress(OSError):
                make("none")
        make("none")
        assert everything_below(out) == expected
    assert stop > len(expected)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("neurons=some", "classified, all or none"),
        ("contexts=1000000", "expected 0 to 100"),
        ("context_tokens=1001", "expected 0 to 1000"),
        ("max_bytes=-1", "expected 0 or more"),
    ],
)
def test_settings_of_the_report_are_checked(run_folder, setting, expected):
    code, _, wrong = run_job("report", f"runs=[{run_folder}]", f"report.{setting}")
    assert code == 2
    assert expected in wrong


def test_names_in_any_script_cause_no_warning(run_folder, tmp_path):
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


# The data.


def test_scripts_are_ascii_and_close_nothing():
    written = search.script("NS.detail", 0, {"text": MARKUP + "\u2028é"})
    assert written.isascii()
    assert json.loads(written[len("NS.detail(0,") : -3])["text"] == MARKUP + "\u2028é"


def test_flags_say_what_the_table_says(run):
    found = pieces.flags(run.neurons)
    for flag, row in zip(found.tolist(), run.neurons.to_pylist(), strict=True):
        assert bool(flag & pieces.DEAD) == row["dead"]
        for n in (1, 2, 3):
            assert bool(flag & (1 << n)) == bool(row[f"detector_{n}"])
        assert bool(flag & pieces.POSITIONAL) == (row["position_type"] is not None)
        assert bool(flag & pieces.STRONG) == bool(row["position_strong"])
        kind = (flag >> pieces.TYPE_SHIFT) & 7
        assert (pieces.TYPES[kind - 1] if kind else None) == row["position_type"]
        kind = flag >> pieces.WRITES_SHIFT
        assert (pieces.vocabulary.TYPES[kind - 1] if kind else None) == row["vocabulary_type"]


def test_trigger_tokens_are_those_of_the_top_ngrams(run):
    for layer in range(run.layout.num_bitmaps):
        rows = [r for r in run.table("triggers").to_pylist() if r["layer"] == layer]
        table = run.rows("triggers", layer, 0, planted.WIDTH, ["layer", "neuron", "n", "token_ids"])
        for most in (3, 60):
            counts, tokens = search.trigger_tokens(table, planted.WIDTH, most)
            found = np.split(tokens, np.cumsum(counts)[:-1])
            for neuron in range(planted.WIDTH):
                mine = sorted((r for r in rows if r["neuron"] == neuron), key=lambda r: r["n"])
                held = list(dict.fromkeys(t for r in mine for t in r["token_ids"]))
                assert found[neuron].tolist() == held[:most]


def test_the_searched_tokens_are_bounded(run, monkeypatch):
    assert search.tokens_kept(run) == search.TRIGGER_TOKENS
    monkeypatch.setattr(search, "TRIGGER_BYTES", 3 * run.layout.num_bitmaps * planted.WIDTH * 8)
    assert search.tokens_kept(run) == 9


def test_the_classified_come_first_and_the_sample_is_spread(run):
    everything = pieces.chosen(run, pieces.ReportSettings(neurons="all"))
    assert sorted(everything) == list(range(len(run.neurons)))
    some = pieces.chosen(run, pieces.ReportSettings(neurons="classified", sample=4))
    classified = [r for r in some if pieces.flags(run.neurons)[r] & (2 | 4 | 8 | pieces.POSITIONAL)]
    assert some[: len(classified)].tolist() == classified
    assert len(some) == len(classified) + 4
    assert len(pieces.chosen(run, pieces.ReportSettings(neurons="none"))) == 0


def spread_out_booleans(activated, count, reach):
    """`spread_out` as it is defined: on the list of all activations."""
    places = np.flatnonzero(activated)
    if not len(places) or not count:
        return []
    steps = [np.linspace(0, len(places) - 1, number) for number in (count, 4 * count)]
    taken = []
    for place in places[list(dict.fromkeys(np.concatenate(steps).astype(np.int64).tolist()))]:
        sequence, position = divmod(int(place), activated.shape[1])
        if not any(s == sequence and abs(p - position) <= reach for s, p in taken):
            taken.append((sequence, position))
        if len(taken) == count:
            break
    return sorted(taken)


def four_digits(value):
    return float(f"{value:.4g}") if np.isfinite(value) else None


def expected_curve(counts, sequences, points):
    step = -(-len(counts) // points)
    means = [counts[i : i + step] for i in range(0, len(counts), step)]
    values = [four_digits(part.sum() / (len(part) * sequences)) for part in means]
    return {"step": step, "values": values}


def expected_detail(run, layer, neuron, contexts, reach):
    """One neuron's detail, read alone and from whole tables."""
    counts = run.position_counts(layer, slice(neuron, neuron + 1))[:, 0]
    by_domain = run.position_counts_by_domain(layer, slice(neuron, neuron + 1))[:, :, 0]
    row = run.neurons.to_pylist()[layer * run.layout.num_neurons + neuron]
    consistency = row["position_consistency"]
    found = {
        "curve": expected_curve(counts, run.num_sequences, details.CURVE_POINTS),
        "domain_curves": {
            domain: expected_curve(by_domain[i], run.domain_sequences[domain], 64)
            for i, domain in enumerate(run.layout.domains)
        },
        "consistency": None if consistency is None else four_digits(consistency),
    }
    for name in ("domains", "triggers", "ngrams"):
        mine = [
            r for r in run.table(name).to_pylist() if (r["layer"], r["neuron"]) == (layer, neuron)
        ]
        kept = [
            r
            for i, r in enumerate(mine)
            if name == "domains" or sum(o["n"] == r["n"] for o in mine[:i]) < details.TOP
        ]
        found[name] = [
            {
                key: four_digits(value) if isinstance(value, float) else value
                for key, value in r.items()
                if key not in ("layer", "neuron", "token_ids")
            }
            for r in kept
        ]
    update = run.update(layer, neuron, details.TOP)
    found["update"] = {side: [word for word, _ in words] for side, words in update.items()}
    for r in run.table("suppression").to_pylist():
        if (r["layer"], r["neuron"]) == (layer, neuron):
            found["update"] = {
                name: run.words(r[name][: details.TOP])
                for name in ("promoted", "suppressed", "triggers")
            } | {"trigger_rank": r["trigger_rank"][: details.TOP]}
    if layer < run.layout.num_bitmaps:
        activated, tokens = run.activated(layer, neuron), run.token_ids
        found["contexts"] = []
        for s, p in spread_out_booleans(activated & (tokens != run.bos_id), contexts, reach):
            first, last = max(0, p - reach), min(tokens.shape[1], p + reach + 1)
            text = []
            for place in range(first, last):
                word = int(tokens[s, place])
                if activated[s, place]:
                    text.append([[word]])
                elif text and isinstance(text[-1], tuple):
                    text[-1] = (*text[-1], word)
                else:
                    text.append((word,))
            words = [run.texts(t) if isinstance(t, tuple) else [run.texts(t[0])] for t in text]
            domain = run.layout.domains[run.sequence_domains[s]]
            place = {"sequence": s, "position": p, "first": first, "domain": domain}
            found["contexts"].append({**place, "text": words})
    return found


@pytest.fixture(scope="module")
def expected_details(run):
    """Every neuron's detail, by layer and neuron."""
    return {
        (layer, neuron): expected_detail(run, layer, neuron, 10, 20)
        for layer in range(run.num_layers)
        for neuron in range(planted.WIDTH)
    }


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_every_neurons_detail_is_its_own(run, expected_details, data):
    """For any neurons in any order, however they are read: alone or many together."""
    layer = data.draw(st.integers(0, run.num_layers - 1))
    neurons = data.draw(st.lists(st.integers(0, planted.WIDTH - 1), min_size=1, unique=True))
    block = data.draw(
        st.sampled_from([1, 5 * run.layout.row_bytes * len(run.layout.shards), 1 << 26])
    )
    with mock.patch.object(details, "BLOCK_BYTES", block):
        found = details.details(run, layer, neurons, pieces.ReportSettings())
    assert list(found) == list(map(str, neurons))
    for neuron in neurons:
        assert found[str(neuron)] == expected_details[layer, neuron]


@pytest.mark.parametrize("neurons", ["all", "classified"])
def test_groups_hold_every_chosen_neuron_once(run, neurons, monkeypatch):
    """Also where the last classified neuron lies in the layer of the first of the others."""
    for size in (1, 7, 256):
        monkeypatch.setattr(pieces, "GROUP_NEURONS", size)
        rows = pieces.chosen(run, pieces.ReportSettings(neurons=neurons))
        held = list(pieces.groups(rows, planted.WIDTH))
        assert [k * planted.WIDTH + n for k, group in held for n in group] == rows.tolist()
        assert len(set(rows.tolist())) == len(rows)
        assert max(len(group) for _, group in held) <= size


def test_blocks_hold_neurons_whose_chunks_touch():
    class Layout:
        shards, row_bytes, neurons_per_chunk = (0, 0), 10, 4

    run = mock.Mock(layout=Layout)
    assert list(details._blocks(run, [0, 1, 5, 10, 11, 30])) == [[0, 1, 5], [10, 11], [30]]
    with mock.patch.object(details, "BLOCK_BYTES", 40):
        assert list(details._blocks(run, [0, 1, 2, 3, 7])) == [[0, 1], [2, 3], [7]]


def test_parts_of_characters_are_shown_as_their_bytes():
    folder = Path(neuronstats.__file__).parent / "embedded/opt-mini"
    shown, plain = VisibleTexts(folder), TokenTexts(folder)
    ids = plain._tokenizer.encode("naïve 模型 ’x’ </s> 🙂", add_special_tokens=False)
    assert shown(ids) == plain(ids)
    alone = "".join(shown([token]) for token in ids)
    assert alone.count("\\x") >= 4
    assert "\ufffd" not in alone
    whole = [t for t in range(len(plain._tokenizer) + 3) if "\ufffd" not in plain([t])]
    assert len(whole) > 1000
    assert [shown([t]) for t in whole] == [plain([t]) for t in whole]
    rng = np.random.default_rng(0)
    for some in rng.choice(whole, (200, 12)).tolist():
        assert shown(some) == plain(some)


def test_contexts_mark_exactly_the_activated_tokens(run):
    tokens = run.token_ids
    truth = planted.expected_bits(0, tokens)
    for neuron in (1, 3, 12):
        for context in example_contexts(run, truth[neuron], 6, 9):
            row, first = context["sequence"], context["first"]
            marks = [isinstance(part, list) for part in context["text"]]
            last = min(tokens.shape[1], context["position"] + 10)
            assert sum(marks) == truth[neuron, row, first:last].sum()
            words = [w for p in context["text"] for w in (p if isinstance(p, list) else p.split())]
            assert words == [run.texts([t]) for t in tokens[row, first:last]]
            assert truth[neuron, row, context["position"]]


def test_contexts_are_spread_out():
    activated = np.zeros((4, 100), bool)
    activated[0, :50] = True
    activated[3, 90] = True
    found = spread_out(bits.pack(activated), 3, 10)
    assert (3, 90) in found
    assert len(found) == 3
    same = [p for s, p in found if s == 0]
    assert abs(same[0] - same[1]) > 10
    assert spread_out(np.zeros((4, 13), np.uint8), 3, 10) == []


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.floats(0, 0.6), st.integers(1, 5), st.integers(1, 40), st.data())
def test_contexts_are_chosen_as_they_were_from_booleans(seed, share, sequences, width, data):
    count, reach = data.draw(st.integers(0, 12)), data.draw(st.integers(0, 9))
    activated = np.random.default_rng(seed).random((sequences, width)) < share
    expected = spread_out_booleans(activated, count, reach)
    assert spread_out(bits.pack(activated), count, reach) == expected


def test_every_detail_names_what_the_update_promotes_and_suppresses(report, run, planted_model):
    decoder = planted_model.model.decoder
    embedding = decoder.embed_tokens.weight.detach().numpy().tolist()
    fc2 = decoder.layers[0].fc2.weight.detach().numpy()
    detectors = {r["neuron"] for r in run.neurons.to_pylist()[: planted.WIDTH] if r["detector_1"]}
    kinds = set()
    for neuron in range(planted.WIDTH):
        found = piece(report, 0, neuron)
        if found is None:
            continue
        expected = oracle.suppression_row(oracle.project(fc2[:, neuron].tolist(), embedding), [])
        for side in ("promoted", "suppressed"):
            assert found["update"][side] == run.words(expected[side][: details.TOP])
        assert ("triggers" in found["update"]) == (neuron in detectors)
        kinds.add(neuron in detectors)
    assert kinds == {True, False}


def test_without_the_checkpoint_only_detectors_have_an_update(run_folder, tmp_path):
    moved = shutil.copytree(run_folder, tmp_path / "run")
    text = run_file(moved)
    (moved / "run.yaml").write_text(
        text.replace(str(run_folder.parent / "model"), "/nowhere/it/is")
    )
    lone = LoadedRun(str(moved))
    assert not lone.projects
    neurons = list(range(planted.WIDTH))
    found = details.details(lone, 0, neurons, pieces.ReportSettings())
    rows = lone.neurons.to_pylist()
    assert {int(n) for n, entry in found.items() if "update" in entry} == {
        n for n in neurons if rows[n]["detector_1"]
    }


def test_a_detail_holds_the_tables_rows(report, run):
    found = piece(report, 0, 1)  # detects the token MARKED
    assert [r["text"] for r in found["ngrams"] if r["n"] == 1] == [MARKUP]
    assert found["triggers"][0]["occurrences"] == int((run.token_ids == MARKED).sum())
    assert {d["domain"] for d in found["domains"]} == set(planted.DOMAINS)
    counts = run.position_counts(0, slice(1, 2))[:, 0]
    assert found["curve"]["values"] == pytest.approx(counts / run.num_sequences, abs=1e-4)


@pytest.fixture
def no_figures(monkeypatch):
    """The job without its figures, which take most of its time."""
    monkeypatch.setattr("neuronstats.report.job.all_figures", lambda runs: [])


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


@pytest.mark.usefixtures("no_figures")
def test_a_second_report_leaves_nothing_of_the_first(run_folder, tmp_path):
    out = tmp_path / "out"
    for chosen in ("all", "none"):
        arguments = (f"runs=[{run_folder}]", f"out={out}", f"report.neurons={chosen}")
        assert run_job("report", *arguments)[0] == 0
        assert (out / "data/r0/d00000.js").exists() == (chosen == "all")


def test_a_notebook_gets_bits_curves_and_tables(run_folder):
    run = neuronstats.load(str(run_folder))
    tokens = run.token_ids
    assert (run.activated(1, 3) == planted.expected_bits(1, tokens)[3]).all()
    assert run.curve(1, 3) == pytest.approx(run.activated(1, 3).mean(axis=0))
    assert run.neurons.to_pandas()["dead"].sum() == sum(p.dead for p in planted.NEURONS)
    assert run.table("no_such_table") is None
    with pytest.raises(UserError, match="no bitmaps"):
        run.activated(3, 0)


# The browser.

LOCAL = ("file://", "data:", "about:", "blob:", "chrome://")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = start_browser(tmp_path_factory.mktemp("profile"))
    driver.get("about:blank")
    driver.get_log("performance")  # the browser's own start page
    yield driver
    driver.quit()


class Page:
    """The page as a person uses it."""

    def __init__(self, driver, report):
        self.driver, self.url = driver, (report / "index.html").as_uri()

    def open(self, fragment=""):
        self.driver.get("about:blank")
        self.driver.get(self.url + fragment)

    def js(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def wait(self, code, *arguments):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 60).until(lambda _: self.js("return " + code, *arguments))

    def text(self, selector):
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def texts(self, selector):
        code = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return self.js(code, selector)

    def set(self, name, value):
        self.js(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change'))",
            name, value,
        )  # fmt: skip

    def shown(self, layer, neuron):
        self.wait(
            "document.getElementById('panel').dataset.shown === arguments[0]", f"0/{layer}/{neuron}"
        )

    def press(self, key):
        self.js("document.body.dispatchEvent(new KeyboardEvent('keydown',"
                "{key: arguments[0], bubbles: true}))", key)  # fmt: skip

    def complaints(self):
        return [entry for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def requests(self):
        messages = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        return [
            m["params"]["request"]["url"]
            for m in messages
            if m["method"] == "Network.requestWillBeSent"
        ]


@pytest.fixture
def page(browser, report):
    found = Page(browser, report)
    yield found
    assert found.complaints() == []
    assert [url for url in found.requests() if not url.startswith(LOCAL)] == []


@browser_missing
def test_the_overview_shows_figures_and_numbers(page):
    page.open()
    assert MARKUP in page.text("h1")
    page.wait("[...document.images].some((i) => i.complete && i.naturalWidth > 0)")
    assert "never activated" in page.text("table.facts")
    reasons = page.texts("#empty .reason")
    assert reasons
    assert len(set(reasons)) == len(reasons)  # each is said once


@browser_missing
def test_the_table_filters_sorts_and_searches(page, run):
    table = run.neurons.to_pylist()
    page.open("#neurons")
    page.wait("document.querySelectorAll('.tabulator-row').length > 0")
    assert page.text("#count") == f"{len(table)} neurons"
    for name, true in {
        "dead": lambda r: r["dead"],
        "token": lambda r: r["detector_1"],
        "positional": lambda r: r["position_type"] is not None,
        "oscillatory": lambda r: r["position_type"] == "oscillatory",
    }.items():
        page.set("class", name)
        expected = f"{sum(bool(true(r)) for r in table)} neurons"
        page.wait("document.getElementById('count').textContent === arguments[0]", expected)
    page.set("class", "")
    page.set("layer", "2")
    page.wait(
        "document.getElementById('count').textContent === arguments[0]", f"{planted.WIDTH} neurons"
    )
    page.set("layer", "")
    page.set("token", MARKUP)
    held = [*run.table("ngrams").to_pylist(), *run.table("triggers").to_pylist()]
    found = {(r["layer"], r["neuron"]) for r in held if MARKUP in r["text"]}
    page.wait(
        "document.getElementById('count').textContent === arguments[0]", f"{len(found)} neurons"
    )
    assert MARKUP.replace(" ", "␣") in "".join(page.texts(".tabulator-cell"))
    page.set("token", "")
    page.wait(
        "document.getElementById('count').textContent === arguments[0]", f"{len(table)} neurons"
    )
    for _ in range(2):  # falling frequency
        page.js(
            "document.querySelector('[tabulator-field=frequency] .tabulator-col-title').click()"
        )
    page.wait(
        "document.querySelector('.tabulator-row [tabulator-field=frequency]').textContent"
        " === '100 %'"
    )


@browser_missing
def test_key_numbers_link_to_the_neurons_that_they_count(page, run):
    kinds = {kind: (lambda r, kind=kind: r["vocabulary_type"] == kind) for kind in WRITES}
    kinds |= {"dead": lambda r: r["dead"], "positional": lambda r: r["position_type"]}
    for name, counted in kinds.items():
        page.open()
        page.js("document.querySelector(`a[href$='class=${arguments[0]}']`).click()", name)
        count = sum(bool(counted(r)) for r in run.neurons.to_pylist())
        page.wait(
            "document.getElementById('count').textContent === arguments[0]", f"{count} neurons"
        )
        assert page.js("return document.getElementById('class').value") == name


@browser_missing
def test_a_link_names_a_neuron_and_its_panel_tells_of_it(page, report):
    page.open(f"#{quote(MARKUP, safe='')}/0/1")
    page.shown(0, 1)
    assert page.text("#name").endswith("layer 0, neuron 1")
    assert any("token detector" in text for text in page.texts(".tag"))
    assert any("Detects tokens" in text for text in page.texts("#why li"))
    assert page.js("return document.querySelectorAll('#curve canvas').length") == 1
    contexts = piece(report, 0, 1)["contexts"]
    marks = [part[0] for context in contexts for part in context["text"] if isinstance(part, list)]
    assert page.texts("#contexts mark") == marks
    assert set(marks) == {MARKUP}
    assert page.js("return document.querySelectorAll('#panel b').length") == 0


@browser_missing
def test_next_previous_random_and_keys(page):
    name = quote(MARKUP, safe="")
    page.open(f"#{name}/0/1")
    page.shown(0, 1)
    page.js("document.getElementById('next').click()")
    page.shown(0, 2)
    page.press("ArrowLeft")
    page.shown(0, 1)
    page.press("r")
    page.wait("document.getElementById('panel').dataset.shown !== '0/0/1'")
    page.press("Escape")
    page.wait("!document.getElementById('neurons').hidden")


@browser_missing
def test_a_neuron_without_detail_says_so(page, report):
    bare = next(k for k in range(planted.WIDTH) if piece(report, 0, k) is None)
    page.open(f"#{quote(MARKUP, safe='')}/0/{bare}")
    page.shown(0, bare)
    visible = "getComputedStyle(document.querySelector(arguments[0])).display !== 'none'"
    assert page.wait(visible, ".no-detail")
    assert not page.js("return " + visible, ".detail")


@pytest.fixture(scope="module")
def server(report, run, tmp_path_factory):
    """The address of the page, served, with every neuron's detail."""
    live = shutil.copytree(report, tmp_path_factory.mktemp("live") / "out")
    info = live / "data/info.js"
    info.write_text(info.read_text().replace('"live": false', '"live": true'))

    def detail(number, layer, neuron):
        if number:
            return None
        return pieces.neuron_script(run, 0, layer, neuron, pieces.ReportSettings())

    with make_server(live, detail, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ask(url, host=None, method="GET"):
    headers = {"Host": host} if host else {}
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def test_the_server_gives_pages_and_details(server, report):
    assert ask(server + "/index.html") == (200, (report / "index.html").read_bytes())
    status, content = ask(server + "/live/0/0/0.js")
    assert status == 200
    assert content.startswith(b'NS.detail(0,0,{"0":')


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_every_method_checks_the_host_and_follows_no_link_outwards(report, tmp_path, method):
    out = shutil.copytree(report, tmp_path / "out")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/index.html").write_text("mine")
    (out / "folder").symlink_to(tmp_path / "secret")
    (out / "file.html").symlink_to(tmp_path / "secret/index.html")
    (out / "below").mkdir()
    (out / "below/index.html").symlink_to(tmp_path / "secret/index.html")
    (out / "inside.html").symlink_to("index.html")
    with make_server(out, lambda *_: b"NS", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for path in ("/", "/index.html", "/live/0/0/0.js", "/inside.html"):
            assert ask(address + path, method=method)[0] == 200
            assert ask(address + path, "elsewhere.example", method) == (403, b"")
        for path in ("/folder/", "/folder/index.html", "/file.html", "/below/", "/none"):
            assert ask(address + path, method=method)[0] == 404
        server.shutdown()


def test_the_server_gives_nothing_else(server):
    assert ask(server + "/live/0/0/99999.js")[0] == 404
    assert ask(server + "/live/0/-1/0.js")[0] == 404
    assert ask(server + "/live/7/0/0.js")[0] == 404
    assert ask(server + "/../run.yaml")[0] == 404
    assert ask(server + "/data/")[0] == 404
    assert ask(server + "/index.html", host="elsewhere.example")[0] == 403


def start_serving(run_folder, out):
    """The job as a process, and the address that it says."""
    command = [sys.executable, JOBS / "report.py", "serve=true", "port=0", f"runs=[{run_folder}]"]
    some = ["report.neurons=none", f"out={out}"]
    process = subprocess.Popen(
        [*command, *some], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if found := re.search(r"serving (http://\S+)/ ", line):
            return process, found[1]
    raise AssertionError(process.communicate()[1])


@browser_missing
def test_a_served_page_computes_every_neurons_detail(browser, run_folder, run, tmp_path):
    process, address = start_serving(run_folder, tmp_path / "out")
    try:
        found = Page(browser, tmp_path / "out")
        found.url = address + "/index.html"
        assert piece(tmp_path / "out", 0, 2) is None  # not in the folder
        found.open(f"#{quote(MARKUP, safe='')}/0/2")
        found.shown(0, 2)
        found.wait("document.querySelectorAll('#curve canvas').length === 1")
        truth = planted.expected_bits(0, run.token_ids)[2]
        tokens = {run.texts([t]) for t in run.token_ids[truth & (run.token_ids != planted.BOS)]}
        assert set(found.texts("#contexts mark")) - {run.texts([planted.BOS])} == tokens
        assert "computed when asked for" in found.text("#left-out")
        assert found.complaints() == []
        assert [url for url in found.requests() if not url.startswith((*LOCAL, address))] == []
    finally:
        process.send_signal(signal.SIGTERM)
        said, wrong = process.communicate(timeout=60)
    assert process.returncode == 130, wrong
    assert "stopped serving" in said


@browser_missing
def test_a_link_to_no_neuron_says_so(page):
    page.open("#nobody/0/1")
    page.wait("document.getElementById('message').textContent.includes('no neuron')")


@browser_missing
@pytest.mark.parametrize("width", [1400, 1280, 390])
def test_nothing_is_wider_than_the_window(page, width):
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    try:
        for fragment in ("", "#neurons", f"#{quote(MARKUP, safe='')}/0/1"):
            page.open(fragment)
            page.wait("document.readyState === 'complete'")
            assert page.js("return document.documentElement.scrollWidth") <= width
        page.shown(0, 1)
        assert set(page.texts("#ngrams .detected")) == {"detected"}
        tables = "[...document.querySelectorAll('#ngrams .scroll')]"
        assert set(page.js(f"return {tables}.map((e) => e.scrollWidth - e.clientWidth)")) == {0}
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_vendored_libraries_keep_their_licences():
    vendor = Path(pieces.__file__).parent / "assets/vendor"
    for name in ("tabulator", "uPlot"):
        assert "MIT" in (vendor / f"{name}.LICENSE").read_text()
