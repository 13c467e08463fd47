import math

import numpy as np
import pytest
from helpers.oracle_updates import project
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronstats.errors import UserError
from neuronstats.stats import output_embedding, suppression
from neuronstats.stats.suppression import (
    OutputEmbedding,
    Triggers,
    draw_controls,
    judge,
    mean_projections,
)


def whole(rng, *shape):
    """Small whole numbers: their sums are exact, so ties are ties."""
    return rng.integers(-2, 3, shape).astype(np.float32)


def random_case(seed, num_neurons=7, num_tokens=40, projected=False):
    rng = np.random.default_rng(seed)
    embedding, columns = whole(rng, num_tokens, 6), whole(rng, 6, num_neurons)
    project_out = None
    if projected:
        project_out, columns = whole(rng, 6, 9), whole(rng, 9, num_neurons)
    rows = [
        (neuron, token)
        for neuron in range(num_neurons)
        for token in rng.choice(num_tokens, rng.integers(1, 6), replace=False).tolist()
    ]
    neuron, token = np.array(rows, np.int64).T
    return embedding, columns, project_out, Triggers(neuron, token)


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("num_neurons", [1, 7, 65])
def test_findings_equal_the_oracle(monkeypatch, projected, centred, num_neurons):
    monkeypatch.setattr(suppression, "JUDGE_BLOCK", 32)
    monkeypatch.setattr(output_embedding, "TOKEN_BLOCK_BYTES", 8 * 6 * 7)  # seven tokens
    embedding, columns, project_out, triggers = random_case(1, num_neurons, projected=projected)
    vocabulary = OutputEmbedding(embedding, project_out, centred=centred)
    found = judge(vocabulary, columns, triggers, num_top=5)
    tables = [
        project(
            column.tolist(),
            embedding.tolist(),
            None if project_out is None else project_out.tolist(),
            centred=centred,
        )
        for column in columns.T
    ]
    np.testing.assert_allclose(vocabulary.project(columns), np.transpose(tables), atol=1e-12)
    own = [triggers.token[triggers.neuron == n].tolist() for n in range(num_neurons)]
    for neuron, values in enumerate(tables):
        mean = math.fsum(values[token] for token in own[neuron]) / len(own[neuron])
        assert found.trigger_projection[neuron] == pytest.approx(mean, abs=1e-12)
        if abs(mean) > 1e-9:
            assert found.suppresses[neuron] == (mean < 0)
    if centred:  # a mean is not exact, so neither are ties
        return
    for neuron, values in enumerate(tables):
        assert found.suppresses[neuron] == (found.trigger_projection[neuron] < 0)
        rising = sorted(range(len(values)), key=lambda token: (values[token], token))
        falling = sorted(range(len(values)), key=lambda token: (-values[token], token))
        assert found.suppressed[neuron].tolist() == rising[:5]
        assert found.promoted[neuron].tolist() == falling[:5]
        assert found.promoted_projection[neuron].tolist() == [values[t] for t in falling[:5]]
        assert found.suppressed_projection[neuron].tolist() == [values[t] for t in rising[:5]]
        ranks = found.trigger_rank[triggers.neuron == neuron].tolist()
        assert ranks == [rising.index(token) for token in own[neuron]]
    shuffled = [
        sum(tables[a][token] for token in own[b]) < 0
        for a in range(num_neurons)
        for b in range(num_neurons)
        if a != b
    ]
    if shuffled:
        assert found.shuffled_share == pytest.approx(sum(shuffled) / len(shuffled))
    else:
        assert math.isnan(found.shuffled_share)


@given(seed=st.integers(0, 10**6), cut=st.integers(0, 9), centred=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_split_of_neurons_into_blocks_does_not_matter(seed, cut, centred):
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(50, 33)).astype(np.float32)
    columns = rng.normal(size=(21, 9)).astype(np.float16)
    vocabulary = OutputEmbedding(
        embedding, rng.normal(size=(33, 21)).astype(np.float32), centred=centred
    )
    together = vocabulary.project(columns)
    apart = [vocabulary.project(columns[:, part]) for part in (slice(cut), slice(cut, None))]
    np.testing.assert_array_equal(together, np.concatenate(apart, axis=1))
    one = vocabulary.project_tokens(columns, Triggers(np.array([8, 3]), np.array([4, 5])))
    other = vocabulary.project_tokens(columns[:, 3:4], Triggers(np.array([0]), np.array([5])))
    assert one[1] == other[0]


def test_the_mean_decides_not_the_majority():
    # One trigger strongly down, two slightly up; and the other way round.
    embedding = np.array([[-9.0, 9.0], [1, -1], [1, -1], [5, 5]])
    columns = np.eye(2)
    triggers = Triggers(np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 0, 1, 2]))
    found = judge(OutputEmbedding(embedding), columns, triggers, num_top=20)
    assert found.suppresses.tolist() == [True, False]
    np.testing.assert_allclose(found.trigger_projection, [-7 / 3, 7 / 3])
    assert found.trigger_rank.tolist() == [0, 1, 2, 3, 0, 1]
    assert found.promoted.shape == (2, 4)  # a vocabulary of four has no top twenty
    assert found.shuffled_share == 0.5


def test_a_mean_of_exactly_zero_does_not_suppress():
    triggers = Triggers(np.array([0, 0]), np.array([0, 1]))
    found = judge(OutputEmbedding(np.array([[1.0], [-1.0]])), np.ones((1, 1)), triggers)
    assert found.trigger_projection.tolist() == [0.0]
    assert not found.suppresses[0]


def test_neurons_without_triggers_have_no_mean():
    triggers = Triggers(np.array([1], np.int64), np.array([0], np.int64))
    found = judge(OutputEmbedding(np.ones((3, 2))), np.ones((2, 2)), triggers)
    assert math.isnan(found.trigger_projection[0])
    assert not found.suppresses[0]
    none = Triggers(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert judge(OutputEmbedding(np.ones((3, 2))), np.ones((2, 2)), none).trigger_rank.shape == (0,)
    empty = judge(OutputEmbedding(np.ones((3, 2))), np.ones((2, 0)), none)
    assert empty.promoted.shape == (0, 3)


def test_controls_depend_on_their_arguments_alone():
    candidates = np.arange(5, 300)
    drawn = draw_controls(candidates, 40, layer=3)
    assert len(set(drawn.tolist())) == 40
    assert set(drawn.tolist()) <= set(candidates.tolist())
    np.testing.assert_array_equal(drawn, draw_controls(candidates, 40, layer=3))
    np.testing.assert_array_equal(drawn[:7], draw_controls(candidates, 7, layer=3))
    assert drawn.tolist() != draw_controls(candidates, 40, layer=4).tolist()
    assert sorted(draw_controls(np.array([4, 9]), 40, layer=0).tolist()) == [4, 9]


def test_random_updates_suppress_half_of_all_triggers():
    rng = np.random.default_rng(0)
    vocabulary = OutputEmbedding(rng.normal(size=(300, 40)))
    triggers = Triggers(np.repeat(np.arange(400), 3), rng.integers(0, 300, 1200))
    found = judge(vocabulary, rng.normal(size=(40, 400)), triggers)
    assert found.suppresses.mean() == pytest.approx(0.5, abs=0.1)
    assert found.shuffled_share == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("embedding", "project_out", "columns", "message"),
    [
        ((5, 4), None, (3, 2), "expected 4 channels"),
        ((5, 4), (4, 6), (4, 2), "expected 6 channels"),
        ((5, 4), (3, 6), (6, 2), r"shape \(3, 6\)"),
        ((5,), None, (3, 2), r"shape \(5,\)"),
        ((5, 4), None, (4,), r"shape \(4,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(embedding, project_out, columns, message):
    with pytest.raises(UserError, match=message):
        OutputEmbedding(
            np.ones(embedding), None if project_out is None else np.ones(project_out)
        ).project(np.ones(columns))


def test_nan_in_the_weights_is_refused():
    columns = np.full((4, 2), np.nan)
    none = Triggers(np.zeros(0, np.int64), np.zeros(0, np.int64))
    with pytest.raises(UserError, match="NaN"):
        mean_projections(OutputEmbedding(np.ones((5, 4))), columns, none)


@pytest.mark.parametrize("rows", [1, 3, 10_000])
def test_portions_change_nothing(rows, monkeypatch):
    """All of a layer's neurons may be detectors: their updates are read in parts, as columns."""
    rng = np.random.default_rng(5)
    embedding = output_embedding.OutputEmbedding(rng.standard_normal((50, 8)))
    columns = rng.standard_normal((8, 150)).astype(np.float32)
    owners = rng.permutation(np.repeat(np.arange(0, 150, 2), 3))  # half of them have triggers
    triggers = Triggers(neuron=owners, token=rng.integers(0, 50, len(owners)))
    expected = judge(embedding, columns, triggers)
    means = mean_projections(embedding, columns, triggers)
    widest = []

    class Part:
        shape = columns.shape

        def __getitem__(self, place):
            widest.append(columns[place].shape[1])
            return columns[place]

    monkeypatch.setattr(suppression, "JUDGE_BLOCK", 64)
    monkeypatch.setattr(suppression, "SHUFFLED_ROWS", rows)
    found = judge(embedding, Part(), triggers)
    for name in suppression.Suppression.__slots__:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(mean_projections(embedding, Part(), triggers), means)
    assert max(widest) == 64
