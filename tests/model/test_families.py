"""Every family: bits and hidden states equal its own forward's, resident and streamed."""

import json

import numpy as np
import pytest
import torch
from helpers import families
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from neuronstats import bits
from neuronstats.collect.sweep import Sweep
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.decoder import Decoder

BATCH, POSITIONS = 2, 11
RELU = {"opt", "opt_350m"}
GATED = {"phi3", "stablelm", "granite", "smollm3", "mistral", "olmo2"}
GATED |= {n for n in families.FAMILIES if n.startswith(("llama", "qwen", "gemma", "cohere"))}


def swept(folder, tokens, *, resident, dtype=torch.float32):
    """Bits [neuron, sequence, position] and output [sequence, position, d] of every layer."""
    checkpoint = Checkpoint(folder)
    sweep = Sweep(
        checkpoint,
        num_layers=checkpoint.config.num_hidden_layers,
        num_bitmaps=checkpoint.config.num_hidden_layers,
        batch_sequences=BATCH,
        dtype=dtype,
        device=torch.device("cpu"),
        resident=resident,
    )
    outputs: list[np.ndarray] = []
    hidden = sweep._embedded(tokens)
    found = []
    made = sweep._made(iter(sweep.layers), hidden, tokens.shape)
    for _, bitmap, *finite in made:
        assert all(of_last.all() for of_last in finite)
        found.append(bits.unpack(bitmap.numpy(), tokens.shape[1]))
        outputs.append(hidden[: len(tokens)].float().numpy().copy())
    return found, outputs


@pytest.mark.parametrize("name", families.FAMILIES)
def test_equals_its_own_forward(name, tmp_path):
    kind, settings, activation, down = families.FAMILIES[name]
    model = families.build(kind, settings)
    model.save_pretrained(tmp_path, max_shard_size="20KB" if name in RELU else "5GB")
    tokens = np.random.default_rng(1).integers(3, families.VOCABULARY, (3, POSITIONS))
    full = np.concatenate([tokens, tokens[:1]])  # a batch is filled up with the first sequence
    gates, hidden = families.seen(model, activation, full, BATCH)
    for resident in (True, False):
        found, outputs = swept(tmp_path, tokens, resident=resident)
        for index, gate in enumerate(gates):
            np.testing.assert_array_equal(found[index], gate[:3].transpose(2, 0, 1) > 0)
            if index + 1 < len(gates):  # the last layer's output is not computed
                np.testing.assert_array_equal(outputs[index], hidden[index][:3])
    decoder = Decoder(Checkpoint(tmp_path))
    ffn = decoder.ffns[0]
    assert (ffn.activation, ffn.down) == (activation, down)
    assert ffn.gated is (name in GATED)
    assert ffn.in_place is (name in RELU)
    assert decoder.shape.activation.exact_zeros is (name in RELU | {"llama_relu", "nemotron"})
    shape = decoder.shape
    layer = families.layers_of(model)[0]
    assert shape.neurons == gates[0].shape[-1]
    assert shape.layer_weights == sum(p.numel() for p in layer.parameters())
    weight = layer.get_submodule(down).weight
    expected = weight if weight.shape == (families.HIDDEN, shape.neurons) else weight.T
    if ffn.norm is None:  # else the update is what the norm makes of it: test_decoder
        assert torch.equal(decoder.updates(0), expected)
    embedding, project = decoder.output_embedding()
    assert torch.equal(embedding, model.get_output_embeddings().weight)
    assert (project is not None) is (name == "opt_350m")


HALF = ["opt", "llama", "gpt2", "gemma2", "phi3", "gpt_neox", "mpt"]


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("name", HALF)
def test_half_precision_equals_its_own_forward(name, dtype, stored, tmp_path):
    """Whatever type the weights are stored in, loaded by transformers in the type asked for."""
    kind, settings, activation, _ = families.FAMILIES[name]
    families.build(kind, settings).to(stored).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    tokens = np.random.default_rng(1).integers(3, families.VOCABULARY, (4, POSITIONS))
    gates, hidden = families.seen(model, activation, tokens, BATCH)
    found, outputs = swept(tmp_path, tokens, resident=False, dtype=dtype)
    for index, gate in enumerate(gates):
        np.testing.assert_array_equal(found[index], gate.transpose(2, 0, 1) > 0)
        if index + 1 < len(gates):
            np.testing.assert_array_equal(outputs[index], hidden[index])


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("ending", ["bin", "safetensors"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "falcon_7b", "bloom"])
def test_every_form_of_checkpoint_has_the_same_weights(name, ending, sharded, tmp_path):
    """One file or several with an index, safetensors or .bin, with and without the base prefix."""
    kind, settings, _, _ = families.FAMILIES[name]
    model = families.build(kind, settings)
    model.config.save_pretrained(tmp_path)
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state = {key: value for key, value in state.items() if not key.startswith("lm_head.")}
    if name in ("gpt2", "bloom"):  # as on the hub
        state = {key.removeprefix("transformer."): value for key, value in state.items()}
    stem = "pytorch_model" if ending == "bin" else "model"
    parts = [dict(list(state.items())[i::3]) for i in range(3)] if sharded else [state]
    where = {}
    for number, part in enumerate(parts, start=1):
        file = f"{stem}-{number:05d}-of-00003.{ending}" if sharded else f"{stem}.{ending}"
        tensors = {key: value.clone().contiguous() for key, value in part.items()}
        save = torch.save if ending == "bin" else save_file
        save(tensors, tmp_path / file)
        where |= dict.fromkeys(part, file)
    if sharded:
        index = tmp_path / f"{stem}.{ending}.index.json"
        index.write_text(json.dumps({"weight_map": where}))
    decoder = Decoder(Checkpoint(tmp_path))
    for number, layer in enumerate(families.layers_of(model)):
        own = dict(layer.named_parameters())
        stored = decoder.stored_layer(number)
        assert own.keys() <= stored.keys()
        for key, weight in own.items():
            assert torch.equal(stored[key], weight)
    embedding, _ = decoder.output_embedding()
    assert torch.equal(embedding, model.get_output_embeddings().weight)
    tokens = torch.arange(3, 3 + 2 * POSITIONS).view(2, POSITIONS)
    assert torch.isfinite(decoder.front(tokens)).all()
