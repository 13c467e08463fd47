"""What the benchmark runs: a checkpoint, its own or one of random weights, and tokens for it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import OPTConfig, OPTModel

from benchmarks.settings import GPU_TIMES, BenchJob, Sizes
from neuronstats.collect import choose
from neuronstats.collect.job import collect
from neuronstats.collect.settings import CollectJob, CollectSettings
from neuronstats.console import Console
from neuronstats.corpus.settings import DataSettings
from neuronstats.errors import UserError, expect
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.decoder import Decoder
from neuronstats.model.settings import Dtype, ModelSettings
from neuronstats.model.shape import Shape
from neuronstats.model.source import locate
from neuronstats.store.run import Run

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
    name: str = "random weights"
    """The model, for people."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the shard."""
        return self.tokens.size

    @property
    def on_gpu(self) -> bool:
        """Whether the model runs on a GPU."""
        return self.device.type == "cuda"

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What the parts that run this model say of it."""
        shape, (sequences, positions) = self.shape, self.tokens.shape
        layers = f"{shape.num_layers} layers of d={shape.hidden}, {shape.neurons} neurons each"
        dtype = str(self.dtype).removeprefix("torch.")
        batch = f"in batches of {self.batch_sequences}"
        return [
            ("model", f"{self.name}: {layers}, {dtype}"),
            ("tokens", f"{sequences} sequences of {positions}, {batch}"),
        ]


def make_subject(settings: BenchJob, sizes: Sizes, device: torch.device, scratch: Path) -> Subject:
    """Load the model's shape, or write random weights; draw the tokens.

    Raises:
        SettingsError: no such shape, model or run.
    """
    options, model, chosen = settings.bench, settings.model, settings.model.dtype
    on_gpu = device.type == "cuda"
    auto = torch.float16 if on_gpu else torch.float32
    dtype: torch.dtype = auto if chosen is Dtype.auto else getattr(torch, chosen.value)
    run = None if options.run is None else Run.open(options.run)
    name, num_positions = model.name, sizes.positions
    if run is not None:
        model = ModelSettings(**{**run.info["settings"]["model"], "dtype": chosen})
        name, num_positions = f"the model of {options.run}", run.layout.num_positions
    if model.path is None:
        known = options.shape in SHAPES
        expect("bench.shape", options.shape, f"one of {', '.join(SHAPES)}", met=known)
        folder, name = scratch / "model", f"random weights in the shape of {options.shape}"
        layers, hidden, heads, vocabulary = SHAPES[options.shape]
        config = opt_config(sizes.layers or layers, hidden, heads, vocabulary)
        write_random(folder, config, [sizes.active], dtype)
    else:
        folder = locate(model)
    shape = Decoder(Checkpoint(folder)).shape
    num_positions = min(num_positions, shape.positions)
    planned = choose.batch_tokens(shape.hidden, on_gpu=on_gpu)
    batch = sizes.batch_sequences or max(1, planned // num_positions)
    wanted = sizes.sequences * (GPU_TIMES if on_gpu else 1)
    num_sequences = -(-wanted // batch) * batch
    if run is None:
        tokens = random_tokens(num_sequences, num_positions, shape.vocabulary)
    else:  # from all over its text, repeated where it is short
        ids = run.corpus().tokens
        tokens = ids[np.arange(num_sequences) * len(ids) // num_sequences]
    return Subject(folder, shape, dtype, device, tokens, batch, name)


def opt_config(
    num_layers: int,
    hidden: int,
    num_heads: int,
    vocabulary: int,
    *,
    neurons: int | None = None,
    positions: int = POSITIONS,
) -> OPTConfig:
    """Build the configuration of an OPT with LayerNorm before the blocks."""
    return OPTConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=num_layers,
        ffn_dim=neurons or 4 * hidden,
        max_position_embeddings=positions,
        num_attention_heads=num_heads,
        word_embed_proj_dim=hidden,
        bos_token_id=BOS,
        eos_token_id=BOS,
        pad_token_id=1,
    )


def write_random(
    folder: Path,
    config: OPTConfig,
    active: Sequence[float],
    dtype: torch.dtype,
    *,
    positional_every: int | None = None,
) -> None:
    """Write a checkpoint of random weights.

    Args:
        folder: made here.
        config: of the model.
        active: shares of the tokens on which neurons are activated, about, in turn; 0: dead.
        dtype: of the weights.
        positional_every: one neuron in so many sees the position alone, which the first dimension
            of the hidden states then holds.
    """
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in OPTModel(config).state_dict().items()}
    # FFN inputs have mean 0 and variance 1, so fc1 without bias has this deviation.
    scale = DEVIATION * config.hidden_size**0.5
    biases = torch.special.ndtri(torch.tensor(active)).clamp(min=-1e3) * scale
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}
    for key, shape in shapes.items():
        if key.endswith("fc1.bias"):
            value = biases[torch.arange(config.ffn_dim) % len(active)]
        elif key.endswith("bias"):
            value = torch.zeros(shape)
        elif "layer_norm" in key:
            value = torch.ones(shape)
        else:
            value = torch.empty(shape).normal_(0.0, DEVIATION, generator=generator)
        if positional_every is not None:
            if "embed_positions" in key:
                value[:, 0] = torch.linspace(-0.1, 0.1, shape[0])
            elif "embed_tokens" in key:
                value[:, 0] = 0
            elif key.endswith("fc1.weight"):
                value[::positional_every] = 0
                value[::positional_every, 0] = scale
        weights[f"model.{key}"] = value.to(dtype)
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    described = config.to_dict() | {
        "architectures": ["OPTForCausalLM"],
        "dtype": str(dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(described, indent=2))


def random_tokens(num_sequences: int, num_positions: int, vocabulary: int) -> Tokens:
    """Draw token ids [sequence, position]: the begin-of-sequence token, then any."""
    generator = np.random.default_rng(0)
    ids = generator.integers(3, vocabulary, (num_sequences, num_positions))
    ids[:, 0] = BOS
    return ids.astype(np.uint16) if vocabulary <= 1 << 16 else ids.astype(np.uint32)


def collect_run(scratch: Path, tokens: Tokens, num_bitmaps: int, console: Console) -> Path:
    """Collect the model in scratch/model over tokens [sequence, position]; return the run.

    Raises:
        UserError: the job was interrupted.
    """
    np.save(scratch / "tokens.npy", tokens)
    job = CollectJob(
        model=ModelSettings(name="random", path=str(scratch / "model")),
        data=DataSettings(name="random", kind="tokens", path=str(scratch / "tokens.npy")),
        collect=CollectSettings(bitmaps=num_bitmaps),
        run=str(scratch / "run"),
    )
    if collect(job, console):
        raise UserError("collecting was interrupted")
    return Path(job.location)
