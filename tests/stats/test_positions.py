import math

import numpy as np
import pytest
from helpers import oracle
from helpers import panels as panel
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronstats.errors import UserError
from neuronstats.stats import curves as position_types
from neuronstats.stats import positions
from neuronstats.stats.curves import OSCILLATORY, TYPES, classify, find_waves, window_width
from neuronstats.stats.positions import (
    corrected_information,
    count_domains,
    coverage,
    indicated_ranges,
    mutual_information,
)
from neuronstats.stats.settings import PositionSettings

DEFAULT = PositionSettings()


@st.composite
def counts_and_sequences(draw):
    num_sequences = draw(st.integers(1, 40))
    num_positions, num_neurons = draw(st.integers(1, 20)), draw(st.integers(1, 5))
    row = st.lists(st.integers(0, num_sequences), min_size=num_neurons, max_size=num_neurons)
    counts = draw(st.lists(row, min_size=num_positions, max_size=num_positions))
    return np.array(counts), num_sequences


@given(counts_and_sequences())
@settings(deadline=None)
def test_information_equals_its_definition(case):
    counts, num_sequences = case
    found = mutual_information(counts, num_sequences)
    expected = [oracle.information(column, num_sequences) for column in counts.T.tolist()]
    np.testing.assert_allclose(found, expected, atol=1e-14)
    assert (found >= 0).all()
    assert (found <= math.log(2) + 1e-12).all()


@given(st.integers(1, 10**6), st.data(), st.integers(1, 300))
@settings(deadline=None)
def test_flat_curves_tell_exactly_nothing(num_sequences, data, num_positions):
    flat = data.draw(st.integers(0, num_sequences))
    counts = np.full((num_positions, 3), flat)
    counts[:, 1], counts[:, 2] = 0, num_sequences  # dead, always activated
    assert mutual_information(counts, num_sequences).tolist() == [0, 0, 0]


def test_rounding_makes_no_information_negative():
    counts = np.full((52, 52), 19052385) + np.eye(52, dtype=int)
    assert mutual_information(counts, 97291144).min() == 0


@pytest.mark.parametrize("num_positions", [2, 64, 2048])
def test_a_perfect_half_indicator_tells_one_bit(num_positions):
    counts = np.zeros((num_positions, 1), np.int64)
    counts[::2] = 1000
    assert mutual_information(counts, 1000)[0] == pytest.approx(math.log(2), rel=1e-15)


@given(counts_and_sequences(), st.integers(0, 10**6))
@settings(deadline=None)
def test_splits_of_neurons_and_orders_of_positions_do_not_matter(case, seed):
    counts, num_sequences = case
    together = mutual_information(counts, num_sequences)
    apart = [mutual_information(counts[:, [n]], num_sequences)[0] for n in range(counts.shape[1])]
    assert together.tolist() == apart
    order = np.random.default_rng(seed).permutation(len(counts))
    np.testing.assert_allclose(
        mutual_information(counts[order], num_sequences), together, rtol=1e-12, atol=1e-15
    )


def test_more_neurons_than_a_block_holds(monkeypatch):
    counts = np.random.default_rng(0).integers(0, 30, (40, 700))
    whole = mutual_information(counts, 30)
    typed = classify(counts, 30, DEFAULT)
    monkeypatch.setattr(positions, "INFORMATION_BLOCK", 13)
    monkeypatch.setattr(position_types, "CURVE_BLOCK", 17)
    assert mutual_information(counts, 30).tolist() == whole.tolist()
    for found, expected in zip(classify(counts, 30, DEFAULT), typed, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_correction_is_right_on_average_for_neurons_that_know_nothing():
    rng = np.random.default_rng(0)
    counts = rng.binomial(100, np.linspace(0.2, 0.8, 2000), (64, 2000))
    plain = mutual_information(counts, 100)
    corrected = corrected_information(plain, 64, 100)
    assert plain.mean() == pytest.approx(63 / (2 * 100 * 64), rel=0.05)
    assert corrected.mean() == pytest.approx(0, abs=1e-4)
    assert corrected.min() < 0  # not clipped: the mean would not be 0
    assert corrected_information(np.array([0.5]), 4, 10)[0] == 0.5 - 3 / 80


@pytest.mark.parametrize(
    ("counts", "num_sequences", "message"),
    [
        (np.ones((3, 2)), 5, "integers"),
        (np.ones(3, int), 5, "position, neuron"),
        (np.ones((3, 2), int), 0, "3 positions of 0 sequences"),
        (np.ones((0, 2), int), 5, "0 positions"),
        (np.full((3, 2), 6), 5, "to 6"),
        (np.full((3, 2), -1), 5, "from -1"),
    ],
)
def test_counts_that_cannot_be_are_refused(counts, num_sequences, message):
    for function in (mutual_information, lambda *a: classify(*a, DEFAULT)):
        with pytest.raises(UserError, match=message):
            function(counts, num_sequences)


# --- types -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results():
    return panel.run_panel(draws=4)


def test_types_are_right_on_the_panels_of_fig_7(results):
    assert sum(results.values()) >= 300
    for num_sequences in (200, 1000):
        for num_positions in panel.POSITIONS:
            wanted = {"sequences": num_sequences, "positions": num_positions}
            assert panel.share_right(results, **wanted) >= 0.98
    assert panel.share_right(results, sequences=50) >= 0.95


def test_strength_is_right_on_the_panels_of_fig_7(results):
    for kind in (panel.perfect_square, panel.plateau, panel.middle_step, panel.whole_line):
        right = {"kind": kind, "given": panel.PANEL[kind], "sequences": 1000}
        assert panel.total(results, strong=True, **right) == panel.total(results, **right) > 0
    for kind in (panel.square, panel.sinusoid):
        assert panel.total(results, kind=kind, strong=True) == 0


def test_noise_and_slow_changes_are_no_waves():
    found = panel.run_panel(panel.NOT_WAVES, draws=40)
    for kind in panel.NOT_WAVES:
        assert panel.total(found, kind=kind, given="oscillatory") <= 2  # of 360
    assert panel.total(found, kind=panel.white, given="other", strong=True) == 0


def typed(curve, num_sequences=100, **thresholds):
    """Type and strength of one curve from position 1 on, given as frequencies without noise."""
    counts = np.rint(np.concatenate([[0.5], curve]) * num_sequences).astype(int)[:, None]
    types, strong = classify(counts, num_sequences, PositionSettings(**thresholds))
    return TYPES[types[0]], bool(strong[0])


def steps(*levels, width=50):
    return np.repeat(np.array(levels, float), width)


def test_a_plateau_is_no_wave_and_two_periods_are():
    assert typed(steps(0, 1, 0)) == ("both_extremes", True)
    assert typed(steps(0, 1, 0, 1)) == ("oscillatory", True)
    assert typed(steps(0, 1, 0, 1), min_crossings=4) == ("both_extremes", True)
    assert typed(steps(0, 1, 0, 1, 0), min_crossings=4) == ("oscillatory", True)


def test_near_and_exactly_at_the_extremes():
    assert typed(steps(0, 1)) == ("both_extremes", True)
    assert typed(steps(0.01, 0.99)) == ("both_extremes", True)
    assert typed(steps(0.02, 1)) == ("both_extremes", False)
    assert typed(steps(0, 0.98)) == ("both_extremes", False)
    assert typed(steps(0.09, 0.91)) == ("both_extremes", False)
    assert typed(steps(0.11, 0.91)) == ("one_extreme", False)
    assert typed(steps(0.11, 1)) == ("one_extreme", True)
    assert typed(steps(0, 0.8)) == ("one_extreme", True)
    assert typed(steps(0.2, 0.8)) == ("other", True)


def test_a_wave_is_strong_only_if_it_is_at_both_extremes():
    wave = (0, 1, 0, 1, 0, 1)
    assert typed(steps(*wave)) == ("oscillatory", True)
    assert typed(steps(*wave) * 0.9) == ("oscillatory", False)
    assert typed(steps(*wave) * 0.9 + 0.1) == ("oscillatory", False)


def test_a_range_must_be_long_and_level():
    assert typed(np.repeat([0, 0.7], [21, 179]))[0] == "one_extreme"
    assert typed(np.repeat([0, 0.7], [17, 183]))[0] == "other"
    assert typed(np.linspace(1, 0, 200)) == ("other", True)
    bent = np.interp(np.arange(200), [0, 40, 160, 199], [1, 0.95, 0.05, 0])
    assert typed(bent) == ("both_extremes", False)
    assert typed(bent, level=0.1)[0] == "other"


def test_thick_curves_are_weak():
    rng = np.random.default_rng(0)
    line = np.linspace(0.8, 0.2, 500)
    assert typed(line) == ("other", True)
    assert typed(line + rng.uniform(-0.2, 0.2, 500)) == ("other", False)


def test_binomial_noise_makes_no_curve_thick():
    counts = np.random.default_rng(0).binomial(20, np.linspace(0.85, 0.15, 2049))[:, None]
    types, strong = classify(counts, 20, DEFAULT)
    assert TYPES[types[0]] == "other"
    assert strong[0]


def test_position_0_is_left_out_of_the_type():
    curve = steps(0, 1, width=100)
    for first in (0, 1):
        counts = (np.concatenate([[first], curve]) * 50).astype(int)[:, None]
        types, strong = classify(counts, 50, DEFAULT)
        assert (TYPES[types[0]], strong[0]) == ("both_extremes", True)


def test_the_smoothing_window_follows_sequences_and_positions():
    assert window_width(2047, 1000, DEFAULT) == 17  # 1/128 of the positions
    assert window_width(2047, 10, DEFAULT) == 41  # 1 / (4 * 10 * 0.025^2) = 40
    assert window_width(2047, 1, DEFAULT) == 65  # 1/32 of the positions
    assert window_width(63, 50, DEFAULT) == 3
    for num_positions in range(8, 300, 7):
        for num_sequences in (1, 20, 400):
            assert window_width(num_positions, num_sequences, DEFAULT) % 2 == 1


@pytest.mark.parametrize(("num_positions", "num_sequences"), [(9, 1), (9, 3), (17, 1), (40, 2)])
def test_the_smallest_data_get_types_without_a_warning(num_positions, num_sequences):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, num_sequences + 1, (num_positions, 300))
    counts[:, 0], counts[:, 1] = 0, num_sequences
    types, _ = classify(counts, num_sequences, DEFAULT)
    assert set(types.tolist()) <= set(range(4))
    assert OSCILLATORY not in types[:2]
    with pytest.raises(UserError, match="at least 9"):
        classify(counts[:8], num_sequences, DEFAULT)
    assert classify(counts[:, :0], num_sequences, DEFAULT)[0].shape == (0,)


# --- consistency and coverage ----------------------------------------------------------------


def test_domains_in_which_a_type_holds_are_counted():
    plateau, half, flat = steps(0, 1, 0), steps(0, 0.6, 0.6), steps(0.5, 0.5, 0.5)
    domains = np.array([[plateau, plateau], [plateau, half], [half, plateau], [plateau, flat]])
    sequences = np.array([100, 40, 19, 200])  # the third is too small to be asked
    curves = np.concatenate([np.zeros((4, 2, 1)), domains], axis=2).transpose(0, 2, 1)
    counts = np.rint(curves * sequences[:, None, None]).astype(int)
    types, _ = classify(counts[0], 100, DEFAULT)
    assert [TYPES[t] for t in types] == ["both_extremes"] * 2
    held, asked = count_domains(counts, sequences, types, DEFAULT)
    assert (held.tolist(), asked) == ([3, 1], 3)
    few = PositionSettings(min_domain_sequences=500)
    assert count_domains(counts, sequences, types, few)[1] == 0


def test_a_flat_curve_holds_no_type_in_a_domain():
    counts = np.full((1, 101, 1), 50)
    types, _ = classify(counts[0], 100, DEFAULT)
    assert count_domains(counts, np.array([100]), types, DEFAULT)[0].tolist() == [0]


def test_coverage_counts_the_neurons_that_indicate_each_position():
    low, high = steps(0, 1, 0, 1), steps(1, 0, 1, 0)
    late = steps(0, 0, 0, 0)
    late[150:] = 1
    counts = np.rint(np.column_stack([low, high, low, late]) * 100).astype(int)
    counts = np.concatenate([np.full((1, 4), 100), counts])
    chosen = np.array([True, False, False, False])
    one = coverage(counts, 100, chosen, DEFAULT)
    assert one.share == 0.5
    assert one.redundancy == 1
    assert one.by_position.tolist() == [0, *low.astype(int)]
    both = coverage(counts, 100, np.array([True, True, False, False]), DEFAULT)
    assert (both.share, both.redundancy) == (1, 1)
    three = coverage(counts, 100, np.array([True, True, True, False]), DEFAULT)
    assert (three.share, three.redundancy) == (1, 1.5)
    none = coverage(counts, 100, np.zeros(4, bool), DEFAULT)
    assert none.share == 0
    assert math.isnan(none.redundancy)


def test_ranges_are_counted_from_position_0():
    counts = (np.concatenate([[0.0], steps(0, 1, 0, 1)]) * 100).astype(int)[:, None]
    waves = find_waves(counts, 100, DEFAULT)
    assert waves.num_crossings.tolist() == [3]
    assert indicated_ranges(waves.above[0]).tolist() == [[51, 101], [151, 201]]
    assert indicated_ranges(np.zeros(5, bool)).shape == (0, 2)
