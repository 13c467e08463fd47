"""Figures: the numbers drawn are the tables'; what has no data says why; pictures repeat."""

from collections import Counter
from itertools import pairwise

import numpy as np
import planted
import pyarrow as pa
import pytest
from reported import planted_run

from neuronstats import figures, figures_curves, figures_examples, figures_layers, figures_neurons
from neuronstats.drawing import Drawing, NamedRun, NoDataError, draw
from neuronstats.loaded import LoadedRun, labels


@pytest.fixture(scope="module")
def named(tmp_path_factory, planted_checkpoint):
    base = tmp_path_factory.mktemp("figures")
    return NamedRun("planted", LoadedRun(str(planted_run(base, planted_checkpoint))))


def lines(drawing):
    """Every line of a drawing by its label, of all panels."""
    return {line.get_label(): line.get_xydata() for a in drawing.figure.axes for line in a.lines}


def rows(named):
    return named.run.neurons.to_pylist()


def test_dead_share_is_the_planted_models(named):
    truth = Counter(neuron.layer for neuron in planted.NEURONS if neuron.dead)
    found = lines(figures_layers.dead([named]))["planted"]
    assert found[:, 0].tolist() == [0, 1 / 3, 2 / 3, 1]
    assert found[:, 1] == pytest.approx([100 * truth[k] / planted.WIDTH for k in range(4)])


def test_frequency_is_the_mean_over_the_alive(named):
    found = lines(figures_layers.frequency([named]))["planted"]
    alive = [
        [r["frequency"] for r in rows(named) if r["layer"] == k and not r["dead"]] for k in range(4)
    ]
    assert found[:, 1] == pytest.approx([np.mean(each) for each in alive])


def test_the_bound_is_three_by_tokens(named):
    assert f"{3 / named.run.tokens:.2g}" in figures_layers.dead([named]).caption


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


def test_bins_are_named_by_what_they_hold():
    names = [figures_neurons.bin_name(i) for i in range(len(figures_neurons.COVER_BINS))]
    assert names == ["0", "1 to 5", "6 to 50", "51 to 500", "501 to 5000", "over 5000"]


def test_detectors_and_their_tokens_are_the_planted_ones(named):
    drawing = figures_layers.detectors([named], (1,), "3", "title")
    tokens = [{g for p in planted.neurons(layer=k, n=1) for g in p.ngrams} for k in range(3)]
    found = lines(drawing)
    assert found["planted"][:, 1].tolist() == [len(planted.neurons(layer=k, n=1)) for k in range(3)]
    assert found["planted, in the layer"][:, 1].tolist() == [len(each) for each in tokens]
    cumulated = [len(set().union(*tokens[: k + 1])) for k in range(3)]
    assert found["planted, up to the layer"][:, 1].tolist() == cumulated


def test_new_tokens_are_the_planted_ones(named):
    found = lines(figures_layers.new_ngrams([named], (1,), "4", "title"))
    tokens = [{g for p in planted.neurons(layer=k, n=1) for g in p.ngrams} for k in range(3)]
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
    found = Counter(float(layer) for layer, _ in np.concatenate(dots))
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


def test_ranges_are_where_the_wave_is_up():
    mask = np.array([True, True, False, False, True])
    assert figures_curves._spans(mask) == [(0, 2), (4, 1)]
    assert figures_curves._spans(~mask) == [(2, 2)]
    assert figures_curves._spans(np.zeros(3, bool)) == []


def test_domains_in_which_a_positional_neuron_keeps_to_it(named):
    kept = figures_neurons.domains_kept(named.run)
    information = {(r["layer"], r["neuron"], r["domain"]): r["position_mi"]
                   for r in named.run.table("domains").to_pylist()}  # fmt: skip
    sequences = named.run.domain_sequences
    expected = [
        sum(
            information[r["layer"], r["neuron"], d] - 1 / (2 * count) > 0.05
            for d, count in sequences.items()
        )
        for r in rows(named)
        if r["position_type"] is not None
    ]
    assert kept.tolist() == expected


def test_every_figure_is_drawn_or_says_why(named):
    found = figures.all_figures([named])
    assert [drawing.name for drawing in found] == list(figures.ORDER)
    for drawing in found:
        shown = [drawing.figure is not None, bool(drawing.rows), bool(drawing.reason)]
        assert sum(shown) == 1, drawing.name
        assert "tokens (tokens)" in drawing.caption  # how many, of which data
    assert {d.name: d.reason for d in found}["10"].startswith("it sets runs of one architecture")


def test_a_run_without_bitmaps_says_so(named, monkeypatch):
    empty = pa.nulls(len(named.run.layers), pa.int64())
    layers = named.run.layers
    for name in [n for n in layers.column_names if n.startswith(("detect", "new_"))]:
        layers = layers.set_column(layers.column_names.index(name), name, empty)
    monkeypatch.setattr(named.run, "layers", layers)
    function, title = figures.CATALOGUE["3"]
    assert "no run keeps bitmaps" in draw(function, "3", title, [named]).reason


def test_pictures_are_the_same_each_time(named):
    one, two = (draw(figures_layers.dead, "1a", "title", [named]) for _ in range(2))
    for kind in ("svg", "png"):
        assert one.render(kind) == two.render(kind)
    assert b"<dc:date>" not in one.render("svg")


def test_a_figure_without_data_is_not_an_error():
    def missing(runs):
        raise NoDataError("nothing was counted")

    assert draw(missing, "9", "title", []) == Drawing(
        "9", "title", ".", reason="nothing was counted"
    )


def test_labels_tell_runs_apart(named):
    run = named.run
    assert labels([run]) == [run.name]
    assert len(set(labels([run, run]))) == 2
