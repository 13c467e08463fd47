"""Prediction, suppression and partition neurons: planted updates, and moments word by word."""

import numpy as np
import pytest
from helpers import oracle, oracle_updates
from test_sections import make_view

from neuronstats.stats import output_embedding, vocabulary
from neuronstats.stats.output_embedding import OutputEmbedding
from neuronstats.stats.settings import ReduceSettings
from neuronstats.stats.view import Weights


def names(found):
    return {column.name: values for column, values in found.items()}


def test_planted_types_are_found(monkeypatch):
    """Channel 0 is about four tokens of 400, channel 1 halves the vocabulary, the rest is noise."""
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(400, 5))
    embedding[:, 0] = 0
    embedding[[3, 30, 99, 300], 0] = 5
    embedding[:, 1] = np.where(np.arange(400) % 2, 4.0, -4.0)
    updates = np.zeros((5, 5))
    updates[0, :2] = 1, -0.01  # promotes four tokens; suppresses them
    updates[1, 2] = -3
    updates[2, 3] = 2
    view = make_view()
    vars(view)["weights"] = Weights(OutputEmbedding(embedding), updates)
    found = vocabulary.section(view, ReduceSettings())
    types = names(found.columns)["vocabulary_type"].tolist()
    assert types == ["prediction", "suppression", "partition", None, None]
    assert [found.layer_sums[column] for column in vocabulary.LAYER_COLUMNS] == [1, 1, 1]
    for name in ("skewness", "kurtosis", "variance_ratio"):  # the last update is zero
        known = ~np.ma.getmaskarray(names(found.columns)[f"vocabulary_{name}"])
        assert known.tolist() == [True] * 4 + [False]
    assert names(found.columns)["vocabulary_variance"][4] == 0


@pytest.mark.parametrize("num_neurons", [1, 7, 65])
@pytest.mark.parametrize("offset", [0, 300])
@pytest.mark.parametrize("projected", [False, True])
def test_moments_equal_the_oracle(monkeypatch, num_neurons, offset, projected):
    """Also where the mean is far from 0, whatever the parts that are projected at once."""
    monkeypatch.setattr(output_embedding, "TOKEN_BLOCK_BYTES", 8 * 6 * 7)  # seven tokens
    rng = np.random.default_rng(num_neurons)
    embedding = (rng.standard_t(4, size=(45, 6)) + offset).astype(np.float32)
    out = rng.normal(size=(6, 9)).astype(np.float32) if projected else None
    updates = rng.normal(size=(9 if projected else 6, num_neurons)).astype(np.float32)
    found = names(vocabulary.moments(OutputEmbedding(embedding, out), updates))
    for neuron in {0, num_neurons // 2, num_neurons - 1}:
        lists = [None if a is None else a.tolist() for a in (updates[:, neuron], embedding, out)]
        wanted = oracle_updates.vocabulary_row(*lists, oracle.Settings())
        for name, values in found.items():
            assert values[neuron] == pytest.approx(wanted[name], rel=1e-7, abs=1e-9), name


def test_a_neuron_s_moments_do_not_depend_on_the_company():
    rng = np.random.default_rng(3)
    embedding = OutputEmbedding(rng.normal(size=(301, 20)))
    updates = rng.normal(size=(20, 130))
    together = names(vocabulary.moments(embedding, updates))
    for part in (slice(0, 1), slice(3, 77), slice(129, 130)):
        apart = names(vocabulary.moments(embedding, updates[:, part]))
        for name, values in apart.items():
            np.testing.assert_array_equal(values, together[name][part])


def test_nothing_is_known_where_it_is_switched_off():
    found = vocabulary.section(make_view(), ReduceSettings(vocabulary=False))
    assert tuple(found.columns) == vocabulary.COLUMNS
    assert set(names(found.columns)["vocabulary_type"]) == {None}
