"""The recipe's parts: first weights, penalty, rates, order of sequences, packing, settings."""

import math

import numpy as np
import pytest
import torch
from helpers.training import make_documents, small

from neuronstats.training.data import BOS_ID, is_held_out, pack, train_tokenizer
from neuronstats.training.loop import _Run
from neuronstats.training.recipe import batch_rows, build_model, learning_rate


def test_untrained_weights_have_the_stated_spread():
    settings = small(hidden_size=64, ffn_size=256, num_layers=4)
    spread = {name: p.std().item() for name, p in build_model(settings).named_parameters()}
    layer = "model.decoder.layers.2."
    assert spread[layer + "fc1.weight"] == pytest.approx(0.06, rel=0.05)
    assert spread[layer + "self_attn.q_proj.weight"] == pytest.approx(0.06, rel=0.05)
    assert spread[layer + "fc2.weight"] == pytest.approx(0.06 / np.sqrt(8), rel=0.05)
    assert spread[layer + "self_attn.out_proj.weight"] == pytest.approx(0.06 / np.sqrt(8), rel=0.05)
    assert spread["model.decoder.embed_tokens.weight"] == pytest.approx(0.06, rel=0.05)
    assert spread["model.decoder.embed_positions.weight"] == pytest.approx(0.02, rel=0.1)


def test_embeddings_and_last_norm_start_where_they_are_set():
    plain = dict(build_model(small()).named_parameters())
    changed = dict(
        build_model(small(embedding_init_std=0.4, final_norm_init=0.2)).named_parameters()
    )
    differ = {name for name in plain if not torch.equal(plain[name], changed[name])}
    tokens, norm = "model.decoder.embed_tokens.weight", "model.decoder.final_layer_norm.weight"
    assert differ == {tokens, norm}
    assert torch.allclose(changed[tokens], plain[tokens] * (0.4 / 0.06))
    assert torch.equal(changed[norm], torch.full_like(plain[norm], 0.2))


@pytest.mark.parametrize("first", [0, 1])
def test_penalty_is_the_mean_activation_by_layer(first, undisturbed):
    """The added loss and its gradient against transformers' own activations, by hand."""
    out, _ = undisturbed
    settings = small(activation_penalty=0.3, penalty_from_layer=first)
    run = _Run(settings, out)
    tokens = run.train_ids[:4]
    loss = run.loss(tokens)
    added = run.penalty()
    added.backward()

    model = build_model(settings)
    layers = model.model.decoder.layers
    seen = []
    for layer in layers:
        layer.activation_fn.register_forward_hook(lambda _, args, result: seen.append(result))
    model(input_ids=torch.from_numpy(tokens.astype(np.int64)))
    by_layer = [a.reshape(-1, settings.ffn_size).mean(0).sum() for a in seen]
    expected = 0.3 * sum(by_layer[first:]) / len(by_layer[first:]) / settings.hidden_size
    assert added.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() == pytest.approx(math.log(300), rel=0.05)  # without the penalty
    expected.backward()
    gradients = dict(run.model.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-8), name
    assert run.penalty() == 0.0  # each step's activations count once
    run.heldout_loss()
    assert run.penalty() == 0.0  # and those of the held-out text not at all


def test_learning_rate_warms_up_and_falls_to_its_share():
    settings = small(tokens=128 * 1000, learning_rate=1.0)
    rates = [learning_rate(settings, step) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 20)
    assert rates[19] == rates[20] == 1.0
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[510] == pytest.approx(0.525, abs=1e-9)  # half way down the cosine
    assert rates[-1] == pytest.approx(0.05, abs=1e-4)


def test_each_epoch_is_another_permutation_of_all_sequences():
    settings = small(batch_sequences=3)
    rows = np.concatenate([batch_rows(settings, step, 7) for step in range(7)])
    assert len(rows) == 21
    epochs = rows.reshape(3, 7)
    for epoch in epochs:
        assert sorted(epoch) == list(range(7))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert (rows[6:9] == batch_rows(settings, 2, 7)).all()  # from the step alone


def test_sequences_are_the_documents_joined_with_the_first_token_before_each():
    texts = [text for _, text in make_documents(5, 20)] + ["literal </s> in a text"]
    tokenizer = train_tokenizer(texts, 280)
    ids = pack(tokenizer, texts, 16)
    assert ids.dtype == np.uint16
    assert (ids[:, 0] == BOS_ID).all()
    joined = ids[:, 1:].ravel().tolist()
    documents = "".join("".join(tokenizer.convert_ids_to_tokens(joined)).split("Ġ"))
    given = "</s>".join(texts).replace(" ", "")
    assert given.startswith(documents)
    assert len(given) - len(documents) < 16 * 10  # less than a sequence is left out


def test_literal_special_tokens_are_text():
    tokenizer = train_tokenizer(["abc </s> <pad>"], 260)
    ids = pack(tokenizer, ["</s><pad>"] * 4, 8)
    assert (ids[:, 1:] == BOS_ID).sum() <= 4  # one after each document
    assert not (ids == 1).any()


def test_held_out_documents_are_a_share_and_copies_stay_together():
    texts = [f"document number {number}" for number in range(5000)]
    share = np.mean([is_held_out(text, 6) for text in texts])
    assert share == pytest.approx(0.06, abs=0.01)
    assert all(is_held_out(text, 30) for text in texts if is_held_out(text, 6))
