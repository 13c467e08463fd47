"""Every family: bits and hidden states equal its own forward's, resident and streamed."""

import numpy as np
import pytest
import torch
from helpers import families

from neuronstats import bits
from neuronstats.collect.sweep import Sweep
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.decoder import Decoder

BATCH, POSITIONS = 2, 11
RELU = {"opt", "opt_350m"}
GATED = {"phi3", "stablelm", "granite", "smollm3", "mistral", "olmo2"}
GATED |= {n for n in families.FAMILIES if n.startswith(("llama", "qwen", "gemma", "cohere"))}


def swept(folder, tokens, *, resident):
    """Bits [neuron, sequence, position] and output [sequence, position, d] of every layer."""
    checkpoint = Checkpoint(folder)
    sweep = Sweep(
        checkpoint,
        num_layers=checkpoint.config.num_hidden_layers,
        num_bitmaps=checkpoint.config.num_hidden_layers,
        batch_sequences=BATCH,
        dtype=torch.float32,
        device=torch.device("cpu"),
        resident=resident,
    )
    outputs: list[np.ndarray] = []
    hidden = sweep._embedded(tokens)
    found = []
    made = sweep._made(iter(sweep.layers), hidden, tokens.shape)
    for finite, _, bitmap in made:
        assert finite.all()
        found.append(bits.unpack(bitmap.numpy(), tokens.shape[1]))
        outputs.append(hidden[: len(tokens)].numpy().copy())
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
