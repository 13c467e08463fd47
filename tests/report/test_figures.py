"""Figures: the numbers drawn are the tables'; what has no data says why; pictures repeat."""

import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from helpers import planted

from neuronstats.report.figures import catalogue as figures
from neuronstats.report.figures import curves as figures_curves
from neuronstats.report.figures import examples as figures_examples
from neuronstats.report.figures import layers as figures_layers
from neuronstats.report.figures import neurons as figures_neurons
from neuronstats.report.figures import published
from neuronstats.report.figures import suppression as figures_suppression
from neuronstats.report.figures import vocabulary as figures_vocabulary
from neuronstats.report.figures.frame import (
    NamedRun,
    NoDataError,
    draw,
    share_words,
    wilson,
)

WAVE = ("oscillatory", True)


def lines(drawing):
    """Every line of a drawing by its label, of all panels."""
    return {line.get_label(): line.get_xydata() for a in drawing.figure.axes for line in a.lines}


def rows(named):
    return named.run.neurons.to_pylist()


def planted_tokens():
    """The tokens with a detector, by layer."""
    return [{g for p in planted.neurons(layer=k, n=1) for g in p.ngrams} for k in range(3)]


def test_dead_share_is_the_planted_models(named):
    truth = Counter(neuron.layer for neuron in planted.NEURONS if neuron.dead)
    drawing = figures_layers.dead([named])
    assert f"= {3 / named.run.tokens:.2g} (planted)." in drawing.caption  # the bound
    found = lines(drawing)["planted"]
    assert found[:, 0].tolist() == [0, 1 / 3, 2 / 3, 1]
    assert found[:, 1] == pytest.approx([100 * truth[k] / planted.WIDTH for k in range(4)])


def test_frequency_is_the_mean_over_the_alive(named):
    found = lines(figures_layers.frequency([named]))["planted"]
    alive = [
        [r["frequency"] for r in rows(named) if r["layer"] == k and not r["dead"]] for k in range(4)
    ]
    assert found[:, 1] == pytest.approx([np.mean(each) for each in alive])


def test_runs_are_overlaid_on_relative_depth(named):
    both = [named, NamedRun("again", named.run)]
    found = lines(figures_layers.dead(both))
    assert found["planted"].tolist() == found["again"].tolist()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_covers_group_every_alive_neuron_once(named, n):
    layers, counts = figures_neurons.cover_bins(named.run, n)
    edges = [*figures_neurons.COVER_BINS, float("inf")]
    for layer in layers:
        covers = [r[f"cover_{n}"] for r in rows(named) if r["layer"] == layer and not r["dead"]]
        bins = [sum(a <= c < b for c in covers) for a, b in pairwise(edges)]
        assert counts[:, layer].tolist() == bins


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_run_of_dead_neurons_has_no_empty_bars(named, n, monkeypatch):
    _, counts = figures_neurons.cover_bins(named.run, n)
    monkeypatch.setattr(figures_neurons, "cover_bins", lambda *_: (range(3), 0 * counts))
    with pytest.raises(NoDataError, match="no neuron of a layer with bitmaps is alive"):
        figures_neurons.covers([named], n)


def test_bins_are_named_by_what_they_hold():
    names = [figures_neurons.bin_name(i) for i in range(len(figures_neurons.COVER_BINS))]
    assert names == ["0", "1 to 5", "6 to 50", "51 to 500", "501 to 5000", "over 5000"]


def test_detectors_and_their_tokens_are_the_planted_ones(named):
    tokens = planted_tokens()
    found = lines(figures_layers.detectors([named], (1,), "3"))
    assert found["planted"][:, 1].tolist() == [len(planted.neurons(layer=k, n=1)) for k in range(3)]
    assert found["planted, in the layer"][:, 1].tolist() == [len(each) for each in tokens]
    cumulated = [len(set().union(*tokens[: k + 1])) for k in range(3)]
    assert found["planted, up to the layer"][:, 1].tolist() == cumulated


def test_new_tokens_are_the_planted_ones(named):
    found = lines(figures_layers.new_ngrams([named], (1,), "4"))
    tokens = planted_tokens()
    overall = [len(each - set().union(*tokens[:k])) for k, each in enumerate(tokens)]
    previous = [len(each - (tokens[k - 1] if k else set())) for k, each in enumerate(tokens)]
    assert found["new against all layers below"][:, 1].tolist() == overall
    assert found["new against the layer just below"][:, 1].tolist() == previous


def test_dead_curve_ends_at_the_dead_share(named):
    found = lines(figures_layers.dead_curve([named]))["planted, all"]
    dead = sum(r["dead"] for r in rows(named))
    assert found[-1].tolist() == pytest.approx([named.run.tokens, 100 * dead / len(rows(named))])
    assert (np.diff(found[:, 1]) <= 0).all()


def test_every_positional_neuron_is_a_circle(named):
    drawing = figures_neurons.types([named])
    dots = [d.get_offsets() for d in drawing.figure.axes[0].collections]
    places = np.concatenate(dots)
    found = Counter(float(layer) for layer, _ in places)
    for layer, count in found.items():  # ranked from 1, so that a column's height is its number
        assert sorted(places[places[:, 0] == layer, 1]) == list(range(1, count + 1))
    assert found == Counter(
        float(r["layer"]) for r in rows(named) if r["position_type"] is not None
    )


def test_examples_are_the_planted_detectors(named):
    head, *found = figures_examples.examples([named]).rows
    cells = {(int(row[1]), int(row[2])): dict(zip(head, row, strict=True)) for row in found}
    assert set(cells) == {(p.layer, p.neuron) for p in planted.neurons(n=1)}
    for p in planted.neurons(n=1):
        words = [figures_examples.quoted(w) for w in named.run.words([t for (t,) in p.ngrams])]
        shown = cells[p.layer, p.neuron]["detected tokens (rank)"]
        assert all(word in shown for word in words)


def bars(panel, colour):
    """The ranges drawn in a colour, row by row from the lowest, as sets of positions."""
    from matplotlib.colors import to_rgba

    found = []
    for row in panel.collections:
        if tuple(row.get_facecolor()[0]) == to_rgba(colour):
            corners = [path.vertices[:, 0] for path in row.get_paths()]
            found.append({p for x in corners for p in range(int(min(x)), int(max(x)))})
    return found


def test_ranges_are_where_the_planted_waves_are_up(named):
    drawing = figures_curves.ranges([named])
    waves = [
        [p for p in planted.neurons(layer=k) if (p.position_type, p.position_strong) == WAVE]
        for k in (0, 3)
    ]
    for panel, expected in zip(drawing.figure.axes, waves, strict=True):
        up = [{i for i, f in enumerate(p.curve) if f > 0.5 and i} for p in expected]
        shown = bars(panel, figures_neurons.TYPE_COLOURS["oscillatory"])
        first = {1, 2, 3}  # smoothing has neighbours on one side alone there
        assert [row - first for row in shown] == [row - first for row in up]
        together = set().union(*shown)
        assert bars(panel, "0.2") == [together]
        share = 100 * len(together) / (planted.POSITIONS - 1)
        assert f"{share:.0f} % of the" in panel.get_title()
        labels = [text.get_text() for text in panel.get_yticklabels()]
        assert labels == ["any", *(str(p.neuron) for p in expected)]


def test_the_gallery_shows_every_type_and_the_curves_of_its_neurons(named):
    panels = [panel for panel in figures_curves.gallery([named]).figure.axes if panel.lines]
    kinds = {(r["position_type"], r["position_strong"]) for r in rows(named)} - {(None, None)}
    shown = set()
    for panel in panels:
        words = panel.get_title().replace("\n", " ")
        kind, strength, layer, neuron = re.fullmatch(
            r"([a-z ]+), (strong|weak) planted, layer (\d+), neuron (\d+)", words
        ).groups()
        row = rows(named)[int(layer) * planted.WIDTH + int(neuron)]
        found = (kind.replace(" ", "_"), strength == "strong")
        assert (row["position_type"], row["position_strong"]) == found
        shown.add(found)
        curve = named.run.activated(int(layer), int(neuron)).mean(axis=0)
        assert panel.lines[0].get_ydata() == pytest.approx(curve)
    assert shown == kinds


def test_suppression_is_shown_against_both_controls(named):
    drawing = figures_suppression.suppression([named])
    found = lines(drawing)
    table = named.run.layers.to_pylist()
    for label, column in (
        ("planted", "suppressing_share"),
        ("planted, others' triggers", "suppressing_shuffled_share"),
        ("planted, neurons that detect none", "suppressing_control_share"),
    ):
        expected = [100 * r[column] for r in table if r[column] is not None]
        assert found[label][:, 1] == pytest.approx(expected)
        assert len(expected) == 3
    truth = [[p.suppresses for p in planted.neurons(layer=k, n=1)] for k in range(3)]
    assert found["planted"][:, 1] == pytest.approx([100 * np.mean(each) for each in truth])
    total = sum(map(sum, truth)), sum(map(len, truth))
    assert f"In all: {share_words(*total)} of planted" in drawing.caption
    (bars,) = drawing.figure.axes[0].collections
    ends = [np.array(line)[:, 1] for line in bars.get_segments()]
    assert ends == [pytest.approx(100 * np.array(wilson(sum(t), len(t)))) for t in truth]


def test_published_readings_are_for_the_papers_models_alone(named, monkeypatch):
    assert "eye" not in str(figures_layers.dead([named]).notes)
    labels = lines(figures_layers.dead([named]))
    assert not any(published.NAME in label for label in labels)
    monkeypatch.setitem(named.run.run.info["settings"]["model"], "name", "opt-66b")
    drawing = figures_layers.dead([named])
    marks = lines(drawing)[f"planted, {published.NAME}"]
    assert (0.05, 73.0) in [tuple(mark) for mark in marks]
    assert published.NAME in [t.get_text() for t in drawing.figure.axes[0].get_legend().get_texts()]
    assert "opt-66b" in drawing.notes[0]
    assert "by eye" in drawing.notes[0]
    detectors = figures_layers.detectors([named], (1,), "3")
    left, right = detectors.figure.axes
    assert left.lines[-1].get_ydata().tolist() == [345.0, 120.0, 455.0, 0.0]
    assert set(right.lines[-1].get_ydata()) == {10000.0}
    assert "5351" in detectors.notes[-1]


def test_the_share_of_domains_is_the_tables(named):
    spread, by_layer = figures_neurons.domain_consistency([named]).figure.axes
    known = [r for r in rows(named) if r["position_consistency"] is not None]
    counts = Counter(r["position_consistency"] for r in known)
    assert len(known) == len([p for p in planted.NEURONS if p.position_type])
    expected = [(100 * share, 100 * counts[share] / len(known)) for share in sorted(counts)]
    assert spread.lines[0].get_xydata() == pytest.approx(np.array(expected))
    means = [
        100 * np.mean([r["position_consistency"] for r in known if r["layer"] == k])
        for k in range(planted.NUM_LAYERS)
    ]
    assert by_layer.lines[0].get_ydata() == pytest.approx(means)


def test_ranges_cover_what_the_table_says(named):
    figure = figures_curves.ranges([named]).figure
    titles = [panel.get_title().replace("\n", " ") for panel in figure.axes]
    redundancy = named.run.layers["oscillatory_redundancy"].to_pylist()
    for layer, coverage in enumerate(named.run.layers["oscillatory_coverage"].to_pylist()):
        waves = [
            p.neuron
            for p in planted.neurons(layer=layer)
            if (p.position_type, p.position_strong) == WAVE
        ]
        if waves:
            on = figures_curves.indicated(named.run, layer, waves)
            assert on.any(axis=0).mean() == pytest.approx(coverage)
            assert on.sum(axis=0)[on.any(axis=0)].mean() == pytest.approx(redundancy[layer])
            said = f"{100 * coverage:.0f} % of the positions, by {redundancy[layer]:.1f} neurons"
            assert any(f"layer {layer}: {said}" in title for title in titles)


def test_weak_evidence_for_detectors_is_in_the_notes(named):
    notes = " ".join(figures_layers.detectors([named], (2,), "14").notes)
    table = named.run.layers
    strict, few, loose = (
        sum(v for v in table[f"{name}_2"].to_pylist() if v is not None)
        for name in ("detectors", "detectors_few", "detectors_loose")
    )
    assert f"{strict} detectors of bigrams in planted ({few} of them on fewer than 10" in notes
    assert f"{loose} where the detected are gathered from all triggers" in notes


def test_every_figure_is_drawn_or_says_why(named):
    found = figures.all_figures([named])
    assert [drawing.name for drawing in found] == list(figures.CATALOGUE)
    for drawing in found:
        shown = [drawing.figure is not None, bool(drawing.rows), bool(drawing.reason)]
        assert sum(shown) == 1, drawing.name
        if not drawing.reason:
            sentences = re.findall(r"[.:!?](?=\s+[A-Z(]|$)", drawing.caption)
            assert 1 <= len([end for end in sentences if end != ":"]) <= 2, drawing.caption
            assert any("tokens (tokens)" in note for note in drawing.notes)  # how many, of which
    assert {d.name: d.reason for d in found}["10"].startswith("it sets runs of one architecture")


def test_neurons_by_what_they_write_are_the_tables(named, monkeypatch):
    drawing = figures_vocabulary.vocabulary([named])
    for panel, kind in zip(drawing.figure.axes, figures_vocabulary.TYPES, strict=True):
        counts = Counter(r["layer"] for r in rows(named) if r["vocabulary_type"] == kind)
        shares = [100 * counts[k] / planted.WIDTH for k in range(planted.NUM_LAYERS)]
        assert panel.lines[0].get_ydata() == pytest.approx(shares)
        assert f"{sum(counts.values())} {kind}" in drawing.caption
    old = named.run.layers.drop_columns([f"{k}_neurons" for k in figures_vocabulary.TYPES])
    monkeypatch.setattr(named.run, "layers", old)
    with pytest.raises(NoDataError, match="reduce again"):
        figures_vocabulary.vocabulary([named])


def test_a_run_without_bitmaps_says_so(named, monkeypatch):
    empty = pa.nulls(len(named.run.layers), pa.int64())
    layers = named.run.layers
    for name in [n for n in layers.column_names if n.startswith(("detect", "new_"))]:
        layers = layers.set_column(layers.column_names.index(name), name, empty)
    monkeypatch.setattr(named.run, "layers", layers)
    function, title = figures.CATALOGUE["3"]
    assert "no run keeps bitmaps" in draw(function, "3", title, [named]).reason
