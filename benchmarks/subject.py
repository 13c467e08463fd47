"""What the benchmark runs: a checkpoint, its own or one of random weights, and tokens for it."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import OPTConfig, OPTModel

from neuronstats.collect import plan as planning
from neuronstats.errors import SettingsError
from neuronstats.model.shape import Shape

VOCABULARY, POSITIONS, BOS = 50272, 2048, 2
DEVIATION = 0.02  # of the random weights, as in an untrained OPT
SHAPES = {  # layers, d, heads, vocabulary
    "tiny": (4, 64, 4, 512),  # to try the instrument itself
    "opt-125m": (12, 768, 12, VOCABULARY),
    "opt-350m": (24, 1024, 16, VOCABULARY),
    "opt-1.3b": (24, 2048, 32, VOCABULARY),
    "opt-2.7b": (32, 2560, 32, VOCABULARY),
    "opt-6.7b": (32, 4096, 32, VOCABULARY),
    "opt-13b": (40, 5120, 40, VOCABULARY),
    "opt-30b": (48, 7168, 56, VOCABULARY),
    "opt-66b": (64, 9216, 72, VOCABULARY),
}


Tokens = NDArray[np.uint16] | NDArray[np.uint32]


@dataclass(frozen=True)
class Subject:
    """The model and the tokens that every contestant gets."""

    folder: Path
    shape: Shape
    dtype: torch.dtype
    device: torch.device
    tokens: Tokens
    """[sequence, position], all of one shard."""
    batch_sequences: int
    """Of the sweep, and of hooks; the sequences are a whole number of batches."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the shard."""
        return self.tokens.size

    @property
    def on_gpu(self) -> bool:
        """Whether the model runs on a GPU."""
        return self.device.type == "cuda"


def write_random(
    folder: Path, name: str, num_layers: int | None, active: float, dtype: torch.dtype
) -> None:
    """Write a checkpoint of random weights.

    The layers are those of the small and the large OPTs (LayerNorm before the blocks) for every
    shape, also for 350m's.

    Args:
        folder: made here.
        name: one of SHAPES.
        num_layers: fewer layers than the shape has; None for all.
        active: share of the tokens on which a neuron is activated, about.
        dtype: of the weights.

    Raises:
        SettingsError: no such shape.
    """
    if name not in SHAPES:
        raise SettingsError(f"bench.shape={name}: expected one of {', '.join(SHAPES)}.")
    layers, hidden, heads, vocabulary = SHAPES[name]
    config = OPTConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=num_layers or layers,
        ffn_dim=4 * hidden,
        max_position_embeddings=POSITIONS,
        num_attention_heads=heads,
        word_embed_proj_dim=hidden,
        bos_token_id=BOS,
        eos_token_id=BOS,
        pad_token_id=1,
    )
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in OPTModel(config).state_dict().items()}
    # FFN inputs have mean 0 and variance 1, so fc1 without bias has this deviation.
    bias = float(torch.special.ndtri(torch.tensor(active))) * DEVIATION * hidden**0.5
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}
    for key, shape in shapes.items():
        if key.endswith("bias"):
            value = torch.full(shape, bias if key.endswith("fc1.bias") else 0.0)
        elif "layer_norm" in key:
            value = torch.ones(shape)
        else:
            value = torch.empty(shape).normal_(0.0, DEVIATION, generator=generator)
        weights[f"model.{key}"] = value.to(dtype)
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    described = config.to_dict() | {
        "architectures": ["OPTForCausalLM"],
        "dtype": str(dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(described, indent=2))


def spread_tokens(tokens: Tokens, num_sequences: int) -> Tokens:
    """Take sequences from all over a corpus [sequence, position], repeated where it is short."""
    rows = np.arange(num_sequences) * len(tokens) // num_sequences
    return tokens[rows]


def random_tokens(
    num_sequences: int, num_positions: int, vocabulary: int
) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """Draw token ids [sequence, position]: the begin-of-sequence token, then any."""
    generator = np.random.default_rng(0)
    ids = generator.integers(3, vocabulary, (num_sequences, num_positions))
    ids[:, 0] = BOS
    return ids.astype(np.uint16) if vocabulary <= 1 << 16 else ids.astype(np.uint32)


def batch_sequences(num_positions: int, *, on_gpu: bool) -> int:
    """Give the batch that a collect run's plan takes."""
    tokens = planning.GPU_BATCH_TOKENS if on_gpu else planning.CPU_BATCH_TOKENS
    return max(1, tokens // num_positions)
