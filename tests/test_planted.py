"""The planted model does what its rules say, and its truth table is true."""

import collections

import numpy as np
import pytest
import torch
from helpers import models, oracle, planted
from transformers import AutoTokenizer, OPTForCausalLM


def assert_planted(model, tokens):
    for layer, values in enumerate(models.hf_fc1_outputs(model, tokens)):
        expected = planted.expected_bits(layer, tokens)
        np.testing.assert_array_equal(models.fire_bits([values])[0], expected)
        assert np.abs(values).min() > planted.MARGIN


@pytest.mark.parametrize(
    ("seed", "num_sequences", "num_positions"),
    [(0, 8, planted.POSITIONS), (1, 16, 61), (2, 30, 3), (3, 30, 1)],
)
def test_forward_follows_the_rules_on_any_tokens(planted_model, seed, num_sequences, num_positions):
    tokens = planted.random_corpus(seed, num_sequences, num_positions)
    assert_planted(planted_model, tokens)


def test_forward_follows_the_rules_on_the_corpus(planted_model, planted_corpus):
    assert_planted(planted_model, planted_corpus[0][::4])


def test_forward_follows_the_rules_with_bos_inside(planted_model):
    tokens, _ = planted.corpus(5, 12, 125, inner_bos=0.1)
    assert (tokens[:, 1:] == planted.BOS).mean() > 0.05
    assert_planted(planted_model, tokens)


def test_checkpoint_and_text(planted_model, planted_checkpoint, planted_corpus):
    loaded = OPTForCausalLM.from_pretrained(planted_checkpoint).state_dict()
    for name, value in planted_model.state_dict().items():
        assert torch.equal(value, loaded[name]), name
    tokenizer = AutoTokenizer.from_pretrained(planted_checkpoint)
    ids = planted_corpus[0][0].tolist()
    text = tokenizer.decode(ids[1:])
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids[1:]


@pytest.mark.parametrize("num_positions", [planted.POSITIONS, 125, 64])
def test_corpus(num_positions):
    tokens, domains = planted.corpus(3, num_positions=num_positions)
    assert tokens.shape == (60, num_positions)
    assert (tokens[:, 0] == planted.BOS).all()
    assert not (tokens[:, 1:] == planted.BOS).any()
    assert planted.NEVER not in tokens
    assert collections.Counter(domains) == dict.fromkeys(planted.DOMAINS, 20)
    wanted = {ngram for neuron in planted.NEURONS for ngram in neuron.ngrams}
    found = {n: oracle.count_ngrams(tokens.tolist(), planted.BOS, n) for n in (1, 2, 3)}
    assert all(found[len(ngram)][ngram] for ngram in wanted)
    for row, domain in zip(tokens.tolist(), domains, strict=True):
        inside = planted.MATH_ONLY in oracle.count_ngrams([row], planted.BOS, 2)
        assert domain == "math" or not inside


def test_corpus_too_small():
    with pytest.raises(ValueError, match="no room"):
        planted.corpus(0, 2, 10)


@pytest.fixture(scope="module", params=[(0, planted.POSITIONS), (1, 125)])
def counted(request, planted_model):
    """A planted corpus, and the oracle's tables of it by the rules' bits."""
    seed, num_positions = request.param
    tokens, domains = planted.corpus(seed, num_positions=num_positions)
    bits = [planted.expected_bits(layer, tokens) for layer in range(planted.NUM_LAYERS)]
    layers = planted_model.model.decoder.layers
    rows = oracle.tables(
        bits,
        tokens,
        domains,
        bos=planted.BOS,
        embedding=planted_model.lm_head.weight.detach(),
        fc2=[layer.fc2.weight.detach() for layer in layers],
    )
    return bits, rows


def test_truth_table_is_true(counted):
    _, rows = counted
    detected = collections.defaultdict(list)
    for row in rows["ngrams"]:
        detected[row["layer"], row["neuron"], row["n"]].append(tuple(row["token_ids"]))
    for truth, row in zip(planted.NEURONS, rows["neurons"], strict=True):
        assert (truth.layer, truth.neuron) == (row["layer"], row["neuron"])
        assert truth.dead == row["dead"], truth
        assert truth.suppresses is row["suppresses"], truth
        assert (truth.position_type is not None) == row["positional"], truth
        for n in (1, 2, 3):
            if n < truth.n or truth.n == 0:
                assert not row[f"detector_{n}"], (truth, n)
        if truth.n:
            assert row[f"detector_{truth.n}"], truth
            assert tuple(sorted(detected[truth.layer, truth.neuron, truth.n])) == truth.ngrams


def test_curves_are_true(counted):
    bits, _ = counted
    for truth in planted.NEURONS:
        if truth.curve is None:
            continue
        curve = bits[truth.layer][truth.neuron].mean(axis=0)[1:]
        expected = np.array(truth.curve)[1 : len(curve) + 1]
        exact = (expected == 0) | (expected == 1)
        np.testing.assert_array_equal(curve[exact], expected[exact])
        assert np.abs(curve - expected).max() < 0.3, truth  # 60 sequences: four deviations
        assert abs((curve - expected).mean()) < 0.02, truth


def test_detected_tokens_by_layer(counted):
    _, rows = counted
    columns = ("detected_1", "detected_cumulative_1", "new_overall_1", "new_to_previous_1")
    found = [tuple(row[name] for name in columns) for row in rows["layers"]]
    assert found == [(8, 8, 8, 8), (5, 11, 3, 3), (3, 12, 1, 2), (0, 12, 0, 0)]


def test_suppression_is_decided_with_room(counted):
    _, rows = counted
    values = [row["trigger_projection"] for row in rows["neurons"] if row["suppresses"] is not None]
    assert len(values) == 9
    assert min(abs(value) for value in values) > planted.SUPPRESSION / 5
