"""A gated model written by hand: on which tokens each neuron is open, and what it writes then.

The embedding of token t is the t-th unit vector, attention writes nothing, and RMSNorm multiplies a
unit vector of WIDTH channels by 4. So in layer 0 a neuron's gate is 4 times its row's entry for the
token, and so is its up projection; layer 1 has the same neurons, on a stream that layer 0 has moved
by less than a hundredth. The output embedding is the identity: what a neuron writes on token t is
the t-th entry of its column of the down projection. The final norm flips FLIPPED.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

WIDTH = 16  # tokens and channels
SEPARATOR = 2
GAIN = 4.0
FLIPPED = 5  # the channel of negative weight in the final norm
SCALE = 2.0**-12  # of what is written

Table = dict[int, float]


@dataclass(frozen=True)
class Neuron:
    """Entries by token, and one for all others."""

    gate: Table = field(default_factory=dict)
    up: Table = field(default_factory=dict)
    writes: Table = field(default_factory=dict)
    other_gate: float = -1.0
    other_up: float = 1.0

    def g(self, token: int) -> float:
        return GAIN * self.gate.get(token, self.other_gate)

    def u(self, token: int) -> float:
        return GAIN * self.up.get(token, self.other_up)


NEURONS = (
    Neuron(gate={4: 1}, writes={4: -1}),  # positive values, downwards: suppresses 4
    Neuron(gate={5: 1}, up={5: -1}, writes={5: 1}),  # negative values, upwards: suppresses 5
    Neuron(gate={6: 1}, up={6: -1}, writes={6: -1}),  # negative, downwards: promotes 6
    Neuron(gate={7: 1, 8: 1}, up={7: 1, 8: -2}, writes={7: 1, 8: 1}),  # less up than down
    Neuron(up=dict.fromkeys(range(8, 16), -1.0)),  # never open, either sign
    Neuron(other_gate=1.0),  # always open, one sign
    Neuron(other_gate=1.0, up=dict.fromkeys(range(9, 16), -1.0), writes={9: 1}),
    Neuron(gate={9: 1, 10: 1}, writes={9: 1, 10: -0.5}),  # promotes in the mean
)
# Whether a detector lowers its tokens, by rule; with the final norm's weight; by direction alone.
SUPPRESSES = {0: True, 1: True, 2: False, 3: True, 7: False}
NORMED = SUPPRESSES | {1: False}
DIRECTION = {0: True, 1: False, 2: True, 3: False, 7: False}


def planted_gated(act: str = "silu") -> LlamaForCausalLM:
    """The model, float32; `act` may be relu: then every value is a sum of powers of 2."""
    config = LlamaConfig(
        vocab_size=WIDTH,
        hidden_size=WIDTH,
        intermediate_size=len(NEURONS),
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        hidden_act=act,
        rms_norm_eps=0.0,
        bos_token_id=None,
        eos_token_id=SEPARATOR,
        pad_token_id=1,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).float().eval()
    tokens = range(WIDTH)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0 if parameter.ndim == 1 else 0.0)
        model.model.embed_tokens.weight.copy_(torch.eye(WIDTH))
        model.lm_head.weight.copy_(torch.eye(WIDTH))
        model.model.norm.weight[FLIPPED] = -1.0
        for layer in model.model.layers:
            for index, neuron in enumerate(NEURONS):
                gate = torch.tensor([neuron.g(token) / GAIN for token in tokens])
                up = torch.tensor([neuron.u(token) / GAIN for token in tokens])
                layer.mlp.gate_proj.weight[index] = gate
                layer.mlp.up_proj.weight[index] = up
                for token, value in neuron.writes.items():
                    layer.mlp.down_proj.weight[token, index] = SCALE * value
    return model


def corpus(seed: int = 0, num_sequences: int = 12, num_positions: int = 24) -> np.ndarray:
    """Token ids of the whole vocabulary, int64 [sequence, position]."""
    return np.random.default_rng(seed).integers(0, WIDTH, (num_sequences, num_positions))


def cases(neuron: Neuron, tokens: np.ndarray) -> list[int]:
    """Tokens beyond position 0 by the signs: open and closed, up above 0 and not."""
    found = [0, 0, 0, 0]
    for token in tokens[:, 1:].ravel().tolist():
        found[2 * (neuron.g(token) <= 0) + (neuron.u(token) <= 0)] += 1
    return found
