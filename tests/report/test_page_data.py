"""The page's data: every neuron's detail against whole tables, what is chosen, what is searched."""

import json
import re
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from helpers import oracle_updates, planted
from helpers.reported import MARKUP, piece, run_file
from hypothesis import given, settings
from hypothesis import strategies as st

import neuronstats
from neuronstats import bits
from neuronstats.corpus.token_texts import TokenTexts
from neuronstats.errors import UserError
from neuronstats.report.notebook import LoadedRun, VisibleTexts, example_contexts, spread_out
from neuronstats.report.page import columns, search
from neuronstats.report.page import data as pieces
from neuronstats.report.page import detail as details
from neuronstats.stats.sections import TABLES
from neuronstats.store.run import Run


def test_shards_committed_since_partial_tables(run_folder):
    run = LoadedRun(str(run_folder))
    run.metadata |= {"complete": False, "shards": 1}
    with pytest.raises(UserError, match=r"has 3 shards, its partial tables were made of 1: run"):
        run.token_ids.sum()


def test_scripts_are_ascii_and_close_nothing():
    written = search.script("NS.detail", 0, {"text": MARKUP + "\u2028é"})
    assert written.isascii()
    assert json.loads(written[len("NS.detail(0,") : -3])["text"] == MARKUP + "\u2028é"


def test_flags_say_what_the_table_says(run):
    """As the page's script reads them: a number, or the word for it."""
    fields = columns.for_page()["fields"]
    for flags, row in zip(
        columns.flags(run.neurons).tolist(), run.neurons.to_pylist(), strict=True
    ):
        found = {name: flags >> f["shift"] & f["mask"] for name, f in fields.items()}
        words = {
            name: [None, *f["values"]][found[name]] for name, f in fields.items() if f["values"]
        }
        assert found["never"] == row["dead"]
        for n in (1, 2, 3):
            assert found[f"detects_{n}"] == bool(row[f"detector_{n}"])
        assert found["judged"] == (row["suppresses"] is not None)
        assert found["suppresses"] == bool(row["suppresses"])
        assert found["positional"] == (row["position_type"] is not None)
        assert found["strong"] == bool(row["position_strong"])
        assert found["counted"] == (row["cover_1"] is not None)
        kind = row["position_type"]
        assert words["type"] == (kind and kind.replace("_", " "))
        assert words["writes"] == row["vocabulary_type"]


def test_the_pages_script_reads_declared_columns_alone():
    script = (Path(columns.__file__).parent / "assets/page.js").read_text()
    declared = {column.name for _, of_table in TABLES.values() for column in of_table}
    read = set(re.findall(r"\bcolumns\.([a-z_]+)\b(?!\()", script))
    assert read - declared == {"flags", "piece"}
    assert set(re.findall(r'flag\(flags, "([a-z]+)"', script)) <= set(columns.FIELDS)


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
    classified = [r for r in some if columns.flags(run.neurons)[r] & columns.CLASSIFIED]
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


def expected_detail(run, tables, layer, neuron, contexts, reach):
    """One neuron's detail, read alone and from whole tables: a list of rows by name."""
    counts = run.position_counts(layer, slice(neuron, neuron + 1))[:, 0]
    by_domain = run.position_counts_by_domain(layer, slice(neuron, neuron + 1))[:, :, 0]
    row = tables["neurons"][layer * run.layout.num_neurons + neuron]
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
        mine = [r for r in tables[name] if (r["layer"], r["neuron"]) == (layer, neuron)]
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
    for r in tables["suppression"]:
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
    names = ("neurons", "domains", "triggers", "ngrams", "suppression")
    tables = {name: run.table(name).to_pylist() for name in names}
    return {
        (layer, neuron): expected_detail(run, tables, layer, neuron, 10, 20)
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


def test_bits_that_are_not_those_of_the_tables_are_refused(run_folder, tmp_path):
    """Valid objects, with two neurons' bits exchanged."""
    folder = shutil.copytree(run_folder, tmp_path / "run")
    array = Run.open(str(folder)).zarr(writable=True)["bitmaps/000"]
    rows = array[...]
    counts = rows.astype(np.int64).sum(axis=(1, 2, 3))
    first, last = int(counts.argmin()), int(counts.argmax())
    array[first], array[last] = rows[last], rows[first]
    changed = LoadedRun(str(folder))
    with pytest.raises(UserError, match=r"bitmaps/000/c/0/0/0/0 is not what was committed"):
        details.details(changed, 0, [first], pieces.ReportSettings())
    changed._committed = None  # as where objects are read in parts
    for neuron in (first, last):
        with pytest.raises(UserError, match=rf"neuron {neuron} in layer 0 .*repair=true"):
            details.details(changed, 0, [neuron], pieces.ReportSettings())
    assert details.details(changed, 1, [first], pieces.ReportSettings())


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
    """No chunk is read for two: of much text its neurons' bits are more than BLOCK_BYTES."""

    class Layout:
        shards, row_bytes, neurons_per_chunk = (0, 0), 10, 4

    run = mock.Mock(layout=Layout)
    assert list(details._blocks(run, [0, 1, 5, 10, 11, 30])) == [[0, 1, 5], [10, 11], [30]]
    for size in (40, 80):  # half a chunk's, a chunk's
        with mock.patch.object(details, "BLOCK_BYTES", size):
            assert list(details._blocks(run, [0, 1, 2, 3, 7])) == [[0, 1, 2, 3], [7]]
            assert list(details._blocks(run, [2, 3, 4, 5, 9])) == [[2, 3], [4, 5], [9]]
    with mock.patch.object(details, "BLOCK_BYTES", 160):
        assert list(details._blocks(run, [2, 3, 4, 5, 9])) == [[2, 3, 4, 5], [9]]


def test_parts_of_characters_are_shown_as_their_bytes():
    folder = Path(neuronstats.__file__).parent / "embedded/opt-mini"
    shown, plain = VisibleTexts(folder), TokenTexts(folder)
    ids = plain._tokenizer.encode("naïve 模型 ’x’ </s> 🙂", add_special_tokens=False).ids
    assert shown(ids) == plain(ids)
    alone = "".join(shown([token]) for token in ids)
    assert alone.count("\\x") >= 4
    assert "\ufffd" not in alone
    whole = [t for t in range(plain._tokenizer.get_vocab_size() + 3) if "\ufffd" not in plain([t])]
    assert len(whole) > 1000
    assert [shown([t]) for t in whole] == [plain([t]) for t in whole]
    rng = np.random.default_rng(0)
    for some in rng.choice(whole, (200, 12)).tolist():
        assert shown(some) == plain(some)


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
        expected = oracle_updates.suppression_row(
            oracle_updates.project(fc2[:, neuron].tolist(), embedding), []
        )
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


def test_a_notebook_gets_bits_curves_contexts_and_tables(run_folder, expected_details):
    run = neuronstats.load(str(run_folder))
    tokens = run.token_ids
    assert example_contexts(run, run.activated(0, 1), 10, 20) == expected_details[0, 1]["contexts"]
    assert (run.activated(1, 3) == planted.expected_bits(1, tokens)[3]).all()
    assert run.curve(1, 3) == pytest.approx(run.activated(1, 3).mean(axis=0))
    assert run.neurons.to_pandas()["dead"].sum() == sum(p.dead for p in planted.NEURONS)
    assert run.table("no_such_table") is None
    with pytest.raises(UserError, match="no bitmaps"):
        run.activated(3, 0)
