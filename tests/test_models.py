"""The builders of models.py: what they write is what transformers reads."""

import numpy as np
import pytest
import torch
from helpers import models
from transformers import AutoTokenizer, OPTForCausalLM


@pytest.mark.parametrize("layout", models.LAYOUTS)
@pytest.mark.parametrize("prefix", models.PREFIXES)
def test_transformers_loads_every_layout(tiny_model, tiny_checkpoint, order, layout, prefix):
    folder = tiny_checkpoint(order, layout=layout, prefix=prefix, tied_head=prefix == "decoder.")
    loaded, report = OPTForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    expected = tiny_model(order).state_dict()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_fp16_checkpoint(tiny_model, tiny_checkpoint, order):
    folder = tiny_checkpoint(order, layout="bin", dtype=torch.float16)
    loaded = OPTForCausalLM.from_pretrained(folder, dtype="auto")
    assert loaded.dtype == torch.float16
    expected = tiny_model(order).model.decoder.layers[1].fc1.weight.half()
    assert torch.equal(loaded.model.decoder.layers[1].fc1.weight, expected)


def test_a_layer_lies_in_two_files(tiny_checkpoint):
    folder = tiny_checkpoint("pre", layout="bin_sharded")
    names = [set(torch.load(path, weights_only=True)) for path in sorted(folder.glob("*.bin"))]
    assert len(names) == 3
    layers = [{name.split(".")[3] for name in file if ".layers." in name} for file in names]
    assert layers[0] & layers[1]


def test_post_norm_model_is_built_like_350m(tiny_model):
    decoder = tiny_model("post").model.decoder
    assert decoder.final_layer_norm is None
    assert decoder.project_in.weight.shape == (32, 24)
    assert decoder.project_out.weight.shape == (24, 32)


@pytest.mark.parametrize("seed", [0, 1])
def test_rates_of_the_random_neurons(tiny_model, order, seed):
    tokens = models.random_tokens(40, models.POSITIONS, seed=seed)
    for bits in models.fire_bits(models.hf_fc1_outputs(tiny_model(order, seed), tokens)):
        rates = bits.mean(axis=(1, 2))
        assert 0.1 <= (rates == 0).mean() <= 0.12
        assert rates[0] == 1
        assert ((rates > 0.03) & (rates < 0.55)).mean() >= 0.85


def test_hf_fc1_outputs_do_not_depend_on_the_batch(tiny_model, order):
    tokens = models.random_tokens(7, 21)
    whole = models.hf_fc1_outputs(tiny_model(order), tokens, batch=7)
    parts = models.hf_fc1_outputs(tiny_model(order), tokens, batch=3)
    for one, other in zip(whole, parts, strict=True):
        assert one.shape == (7, 21, 100)
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("style", ["fast", "hub"])
def test_tokenizer(tmp_path, tiny_model, style):
    folder = models.save_checkpoint(tiny_model("pre"), tmp_path / style)
    tokenizer = AutoTokenizer.from_pretrained(models.save_tokenizer(folder, style=style))
    assert tokenizer.bos_token_id == models.BOS
    assert len(tokenizer) == models.VOCABULARY
    ids = tokenizer("The dog, 猫.")["input_ids"]
    assert ids[0] == models.BOS
    assert models.BOS not in ids[1:]
    assert max(ids) < models.VOCABULARY
    assert tokenizer.decode(ids, skip_special_tokens=True) == "The dog, 猫."


def test_word_tokenizer(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(models.save_word_tokenizer(tmp_path, 64))
    assert tokenizer.bos_token_id == models.BOS
    assert tokenizer("w7 w63 </s> w10", add_special_tokens=False)["input_ids"] == [7, 63, 2, 10]
    assert tokenizer.decode([7, 63]) == "w7 w63"
