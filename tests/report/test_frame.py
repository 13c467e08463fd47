"""The frame that all figures share: settings and runs in words, intervals, files that repeat."""

import copy

import pytest

from neuronstats.report.figures import catalogue as figures
from neuronstats.report.figures import layers as figures_layers
from neuronstats.report.figures.frame import (
    Drawing,
    NamedRun,
    NoDataError,
    draw,
    settings_words,
    wilson,
)
from neuronstats.report.notebook import LoadedRun
from neuronstats.store.reduced import labels


def test_settings_are_written_once_or_for_each_run(named):
    both = [named, NamedRun("again", named.run)]
    assert settings_words(both, ["cover_share"]) == "Settings: cover_share 0.95."
    other = copy.copy(named.run)
    other.metadata = {**named.run.metadata, "settings": {"cover_share": 0.9}}
    words = settings_words([named, NamedRun("other", other)], ["cover_share"])
    assert words == "Settings: cover_share 0.95 (planted), 0.9 (other)."
    assert settings_words(both, []) == ""


def test_pictures_are_the_same_each_time(named):
    one, two = (draw(figures_layers.dead, "1a", "title", [named]) for _ in range(2))
    for kind in ("svg", "png"):
        assert one.render(kind) == two.render(kind)
    assert b"<dc:date>" not in one.render("svg")


def test_a_figure_without_data_is_not_an_error():
    def missing(runs):
        raise NoDataError("nothing was counted")

    expected = Drawing(name="9", title="title", reason="nothing was counted")
    assert draw(missing, "9", "title", []) == expected


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),  # by scipy.stats.binomtest(...).proportion_ci("wilson")
    [(2, 3, 0.207660, 0.938510), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0)],
)
def test_intervals_are_wilsons(count, total, low, high):
    assert wilson(count, total) == pytest.approx((low, high), abs=1e-5)


def test_labels_tell_runs_apart(named):
    run = named.run
    assert labels([run]) == [run.name]
    assert len(set(labels([run, run]))) == 2


def test_a_dozen_runs_are_drawn_without_a_warning(run_folder):
    run = LoadedRun(str(run_folder))
    many = [NamedRun(f"a-rather-long-name-{index}", run) for index in range(12)]
    for name in ("1a", "3", "suppression"):
        function, title = figures.CATALOGUE[name]
        drawing = draw(function, name, title, many)
        assert any("12 runs, each of" in note for note in drawing.notes), name
