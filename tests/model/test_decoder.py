"""The guards, each with the wrong result that it prevents; what is refused, and in which words."""

import numpy as np
import pytest
import torch
from helpers import families
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

from neuronstats.errors import WRONG_SETTINGS, SettingsError
from neuronstats.model import record as recording
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.config import load_config
from neuronstats.model.decoder import Decoder
from neuronstats.model.record import NotReplayable, first_hidden, record

TOKENS = torch.tensor([[3, 4, 5], [6, 7, 8]])


class Block(nn.Module):
    """A layer that adds what it is given."""

    def __init__(self, *, as_tuple=False):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.as_tuple = as_tuple

    def forward(self, hidden, extra=None, shared=None):
        out = hidden + self.linear(hidden)
        if isinstance(extra, torch.Tensor):
            out = out + extra
        if isinstance(shared, list):
            out = out + len(shared)
            shared.append(1)
        return (out, out * 2) if self.as_tuple else out


class Model(nn.Module):
    """A model of three layers, with a trick between them."""

    def __init__(self, trick=None):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(16, 4)
        self.trick = trick
        self.layers = nn.ModuleList(Block(as_tuple=trick in ("tuple", "second")) for _ in range(3))

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, use_cache):
        hidden = self.embed(input_ids)
        extra = shared = None
        if self.trick == "tokens":
            extra = self.embed(input_ids) * 2
        if self.trick == "shared":
            shared = []
        if self.trick == "mask":
            extra = torch.arange(4.0)
        for layer in self.layers:
            found = layer(hidden, extra, shared=shared)
            hidden, second = found if isinstance(found, tuple) else (found, None)
            if self.trick == "second":
                extra = second
            if self.trick == "between":
                hidden = hidden * 2
            if self.trick == "in place":
                hidden += 1
        return (hidden,)


@torch.no_grad()
def replayed(model):
    """The second batch's last hidden states, carried layer by layer with the first one's calls."""
    calls = record(model, model.layers, (TOKENS + 5) % 16)
    for tokens in ((TOKENS + 5) % 16, TOKENS):
        hidden = first_hidden(model, model.layers, tokens)
        for layer, call in zip(model.layers, calls, strict=True):
            found = layer(hidden, *call.args, **call.kwargs)
            hidden = found[0] if isinstance(found, tuple) else found
    return hidden


@pytest.mark.parametrize("trick", [None, "tuple", "mask"])
def test_replay_equals_the_models_own_forward(trick):
    model = Model(trick)
    assert torch.equal(replayed(model), model(TOKENS, use_cache=False)[0])


@pytest.mark.parametrize(
    ("trick", "words"),
    [
        ("between", "computes between layer 0 and layer 1"),
        ("in place", "computes between layer 0 and layer 1"),
        ("second", "layer 1 what an earlier layer has computed"),
        ("tokens", "depends on the tokens"),
        ("shared", "a list, which layers may share"),
    ],
)
def test_guards(trick, words, monkeypatch):
    with pytest.raises(NotReplayable, match=words):
        replayed(Model(trick))
    # Without the guard the hidden states are wrong, and nothing says so.
    model = Model(trick)
    monkeypatch.setattr(recording, "_equal", lambda one, other: True)
    monkeypatch.setattr(recording, "_check_plain", lambda value, second, index: None)
    monkeypatch.setattr(recording, "_check_between", lambda hidden, previous, index: None)
    assert not torch.equal(replayed(model), model(TOKENS, use_cache=False)[0])


REFUSED = {
    "mixtral": ({**families.LLAMA, "num_local_experts": 4}, ["mixtral", "mixture of experts"]),
    "mamba": (
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        ["mamba", "no module that is the activation"],
    ),
    "lfm2": (
        {**families.LLAMA, "layer_types": ["conv", "full_attention", "conv"], "block_ff_dim": 40},
        ["lfm2", "not understood"],
    ),
    "gemma3n_text": (
        {
            **{**families.LLAMA, "num_hidden_layers": 2, "num_kv_shared_layers": 0},
            "layer_types": ["sliding_attention", "full_attention"],
            "vocab_size_per_layer_input": 64,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0, 0.0],
        },
        ["gemma3n"],
    ),
    "bert": (families.SMALL, ["an encoder", "bert"]),
    "t5": ({"d_model": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 64}, ["'t5'"]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_are_not_understood(kind, tmp_path):
    settings, words = REFUSED[kind]
    from transformers import AutoConfig

    AutoConfig.for_model(kind, **settings).save_pretrained(tmp_path)
    with pytest.raises(SettingsError) as caught:
        Decoder(Checkpoint(tmp_path, weights=False))
    message = str(caught.value)
    assert caught.value.code == WRONG_SETTINGS
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_model_of_several_parts_is_refused(tmp_path):
    from transformers import Gemma3Config

    Gemma3Config().save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="gemma3_text"):
        load_config(tmp_path)


def test_sizes_are_known_without_weights(tmp_path):
    kind, settings, _, _ = families.FAMILIES["llama"]
    model = families.build(kind, settings)
    model.save_pretrained(tmp_path)
    with_weights = Decoder(Checkpoint(tmp_path)).shape
    (tmp_path / "model.safetensors").unlink()
    assert Decoder(Checkpoint(tmp_path, weights=False)).shape == with_weights
    assert with_weights.front_weights == families.HIDDEN  # the last norm


@pytest.mark.parametrize("prefix", ["", "model."])
def test_weights_with_and_without_the_base_prefix(prefix, tmp_path):
    kind, settings, _, _ = families.FAMILIES["llama"]
    model = families.build(kind, settings)
    model.config.save_pretrained(tmp_path)
    inner = {prefix + key: value for key, value in model.model.state_dict().items()}
    inner["lm_head.weight"] = model.lm_head.weight.detach()
    inner[f"{prefix}layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # of old files
    save_file(inner, tmp_path / "model.safetensors", metadata={"format": "pt"})
    decoder = Decoder(Checkpoint(tmp_path))
    for name, weight in decoder.stored_layer(1).items():
        assert torch.equal(weight, model.model.layers[1].state_dict()[name])
    tokens = np.array([[3, 4, 5]])
    hidden = decoder.front(torch.from_numpy(tokens))
    assert torch.equal(hidden, model.model.embed_tokens.weight[tokens])


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2", "llama", "gpt2"])
def test_what_neurons_write_goes_through_the_norm_after_it(family, tmp_path):
    kind, settings, _, down = families.FAMILIES[family]
    model = families.build(kind, settings)
    model.save_pretrained(tmp_path)
    decoder = Decoder(Checkpoint(tmp_path))
    for index, layer in enumerate(families.layers_of(model)):
        projection = layer.get_submodule(down)
        zeros = torch.zeros(families.NEURONS)
        with torch.no_grad():  # what each neuron alone writes, without the bias
            written = projection(torch.eye(families.NEURONS)) - projection(zeros)
            if hasattr(layer, "post_feedforward_layernorm"):
                written = layer.post_feedforward_layernorm(written)
        found = decoder.updates(index).T
        cosine = nn.functional.cosine_similarity(found.float(), written)
        torch.testing.assert_close(cosine, torch.ones(families.NEURONS))


@pytest.mark.parametrize("stored", ["embedding", "head", "both", "different"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_tied_head_is_what_transformers_makes_of_it(family, stored, tmp_path):
    """Whichever of the two is stored; where both are and differ, the head is not the embedding."""
    kind, settings, _, _ = families.FAMILIES[family]
    model = families.build(kind, {**settings, "tie_word_embeddings": True})
    model.config.save_pretrained(tmp_path)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    embedding = next(key for key in state if key.endswith(("embed_tokens.weight", "wte.weight")))
    if stored == "embedding":
        del state["lm_head.weight"]
    elif stored == "head":
        del state[embedding]
    elif stored == "different":
        state["lm_head.weight"] += 1
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    own = AutoModelForCausalLM.from_pretrained(tmp_path)
    decoder = Decoder(Checkpoint(tmp_path))
    assert torch.equal(decoder.output_embedding()[0], own.get_output_embeddings().weight)
    first = []
    families.layers_of(own)[0].register_forward_pre_hook(lambda _, args: first.append(args[0]))
    with torch.no_grad():
        own(TOKENS)
    assert torch.equal(decoder.front(TOKENS), first[0])
