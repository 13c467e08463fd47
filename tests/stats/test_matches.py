"""The same neuron in two runs: correlations against numpy's, planted twins, shuffled controls."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronstats import bits
from neuronstats.stats import matches


def random_bits(rng, num_neurons, num_sequences=9, num_positions=21):
    """Bool [neuron, sequence, position] of many rates, some never or always set."""
    rate = rng.choice([0, 0.02, 0.3, 0.9, 1], num_neurons)
    return rng.random((num_neurons, num_sequences, num_positions)) < rate[:, None, None]


def correlations(first, second):
    """numpy's, of every pair: float64 [first, second]."""
    rows = np.concatenate([part.reshape(len(part), -1) for part in (first, second)]).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.corrcoef(rows)[: len(first), len(first) :]


def best(first, second):
    tokens = first[0].size
    packed = [matches.words(bits.pack(part)) for part in (first, second)]
    return matches.best_matches(*packed, tokens)


@given(seed=st.integers(0, 10**6), sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)))
@settings(max_examples=40, deadline=None)
def test_matches_are_numpy_s_highest_correlations(seed, sizes):
    rng = np.random.default_rng(seed)
    first, second = (random_bits(rng, size) for size in sizes)
    wanted = correlations(first, second)
    for found, expected in zip(best(first, second), (wanted, wanted.T), strict=True):
        for neuron, row in enumerate(expected):
            known = row[~np.isnan(row)]
            if not len(known):
                assert found.neuron[neuron] == -1
                assert np.isnan(found.correlation[neuron])
                continue
            assert found.correlation[neuron] == pytest.approx(known.max(), abs=1e-12)
            assert row[found.neuron[neuron]] == pytest.approx(known.max(), abs=1e-12)


def test_a_permuted_twin_is_found_again(monkeypatch):
    """Over several blocks and tiles; of equal ones the lowest is taken."""
    monkeypatch.setattr(matches, "BLOCK", 7)
    rng = np.random.default_rng(5)
    first = rng.random((20, 40, 1000)) < 0.2
    order = rng.permutation(20)
    second = np.concatenate([first[order], first[:1]])
    found, back = best(first, second)
    assert found.neuron.tolist() == np.argsort(order).tolist()
    np.testing.assert_allclose(found.correlation, 1)
    assert back.neuron[:20].tolist() == order.tolist()
    assert back.neuron[20] == 0


def test_correlations_are_exact_where_products_are_large():
    common = np.array([[1_000_000_000]])
    ones = np.array([1_000_000_000])
    assert matches.correlations(common, ones, ones, 2_000_000_000).tolist() == [[1.0]]


def test_shuffled_sequences_stay_in_their_domain():
    domains = np.array([0, 0, 0, 0, 0, 1, 2, 2, 2])
    moved = matches.shuffled(domains)
    assert sorted(moved.tolist()) == list(range(9))
    assert (domains[moved] == domains).all()
    assert [i for i in range(9) if moved[i] == i] == [5]
