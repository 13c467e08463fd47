"""What to train: the settings and what follows from them: rates, batches, the untrained model."""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import OPTConfig, OPTForCausalLM

from neuronstats.errors import SettingsError
from neuronstats.traindata import BOS_ID, MAX_VOCABULARY, MIN_VOCABULARY, PAD_ID

PRECISIONS = ("float32", "bfloat16")


@dataclass(kw_only=True, slots=True)
class TrainSettings:
    """What to train: the defaults are the recipe of the embedded opt-mini."""

    tokens: int = 8_000_000
    """Tokens to train on, over as many epochs as that takes; rounded up to whole steps."""
    checkpoints: list[int] = field(
        default_factory=lambda: [0, 1_000_000, 2_000_000, 4_000_000, 6_000_000]
    )
    """Keep the model after so many tokens; 0 is the untrained control. The end is always kept."""
    positions: bool = True
    """Learned positions; false: the position embeddings are zero and stay so (sec. 5.4)."""
    num_layers: int = 4
    """Decoder layers."""
    hidden_size: int = 128
    """Width of the residual stream."""
    num_heads: int = 4
    """Attention heads; a divisor of the width."""
    ffn_size: int = 1024
    """Neurons in each layer's FFN."""
    vocab_size: int = 2048
    """Entries of the byte-level BPE, the 256 bytes and 4 special tokens included."""
    sequence_length: int = 512
    """Tokens in a sequence, the begin-of-sequence token included; also the model's positions."""
    batch_sequences: int = 4
    """Sequences in a step."""
    learning_rate: float = 3e-3
    """Peak of the schedule: linear warm-up, then a cosine down."""
    final_rate_share: float = 0.05
    """Learning rate at the end, as a share of the peak."""
    warmup_share: float = 0.02
    """Share of the steps that warm up."""
    beta1: float = 0.9
    """AdamW's decay of the mean."""
    beta2: float = 0.95
    """AdamW's decay of the square."""
    weight_decay: float = 0.1
    """AdamW's, on the matrices of attention and FFN; embeddings, norms and biases have none."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    init_std: float = 0.06
    """Of the weights at the start; outputs to the residual stream have it / sqrt(2 layers)."""
    position_init_std: float = 0.02
    """Of the position embeddings at the start: small, so that what is positional was learned."""
    embedding_init_std: float | None = None
    """Of the token embeddings at the start; null: as `init_std`."""
    final_norm_init: float = 1.0
    """Gain of the last LayerNorm at the start: with large embeddings, small first logits."""
    activation_penalty: float = 0.0
    """Weight of the penalty on activations that is added to the loss: the mean over the penalised
    layers of (the sum over neurons of the mean activation over tokens) / hidden_size."""
    penalty_from_layer: int = 0
    """First layer, counted from 0, whose activations are penalised."""
    heldout_percent: int = 1
    """Documents kept out of the training for the held-out loss, chosen by a hash of their text."""
    heldout_sequences: int = 64
    """The held-out loss is measured on at most so many sequences."""
    heldout_every: int = 500
    """Steps between two held-out losses."""
    seed: int = 0
    """Decides the weights at the start and the order of the data."""
    device: str = "cpu"
    """A torch device: cpu, cuda or cuda:N."""
    precision: str = "float32"
    """float32, or bfloat16 by autocast (weights and optimizer stay float32)."""
    log_every: int = 50
    """Steps between two reports; may differ when going on."""
    save_every: int = 200
    """Steps between two saved states, the most that is lost; may differ when going on."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            SettingsError: names the field, its value and what was expected.
        """
        positive = (
            "tokens num_layers hidden_size num_heads ffn_size batch_sequences heldout_sequences "
            "heldout_every log_every save_every learning_rate clip_norm final_norm_init"
        )
        for name in positive.split():
            self._expect(name, "greater than 0", met=getattr(self, name) > 0)
        for name in ("weight_decay", "init_std", "position_init_std", "activation_penalty", "seed"):
            self._expect(name, "0 or more", met=getattr(self, name) >= 0)
        large = self.embedding_init_std is None or self.embedding_init_std > 0
        self._expect("embedding_init_std", "null or greater than 0", met=large)
        layers = f"from 0 to {self.num_layers - 1} (num_layers={self.num_layers})"
        in_model = 0 <= self.penalty_from_layer < self.num_layers
        self._expect("penalty_from_layer", layers, met=in_model)
        for name in ("final_rate_share", "warmup_share"):
            self._expect(name, "from 0 to 1", met=0 <= getattr(self, name) <= 1)
        for name in ("beta1", "beta2"):
            self._expect(name, "at least 0 and below 1", met=0 <= getattr(self, name) < 1)
        divisor = f"a divisor of hidden_size={self.hidden_size}"
        self._expect("num_heads", divisor, met=self.hidden_size % self.num_heads == 0)
        vocabulary = f"from {MIN_VOCABULARY} to {MAX_VOCABULARY}"
        in_range = MIN_VOCABULARY <= self.vocab_size <= MAX_VOCABULARY
        self._expect("vocab_size", vocabulary, met=in_range)
        self._expect("sequence_length", "2 or more", met=self.sequence_length >= 2)
        self._expect("heldout_percent", "from 1 to 50", met=1 <= self.heldout_percent <= 50)
        kept = f"numbers from 0 to tokens={self.tokens}"
        self._expect("checkpoints", kept, met=all(0 <= n <= self.tokens for n in self.checkpoints))
        self._expect("precision", " or ".join(PRECISIONS), met=self.precision in PRECISIONS)

    def _expect(self, name: str, expected: str, *, met: bool) -> None:
        if not met:
            raise SettingsError(f"train.{name}={getattr(self, name)}: expected {expected}")

    @property
    def step_tokens(self) -> int:
        """Tokens in a step."""
        return self.batch_sequences * self.sequence_length

    @property
    def steps(self) -> int:
        """Steps in all."""
        return math.ceil(self.tokens / self.step_tokens)


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The rate of a step, counted from 0: linear warm-up, then a cosine to the final share."""
    warmup = max(1, round(settings.warmup_share * settings.steps))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, settings.steps - warmup)
    low = settings.final_rate_share
    return settings.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * done)) / 2)


def batch_rows(settings: TrainSettings, step: int, num_sequences: int) -> NDArray[np.intp]:
    """The training sequences of a step, counted from 0.

    Each epoch is a permutation of all sequences, decided by the seed and the epoch's number.

    Args:
        settings: the recipe.
        step: the step.
        num_sequences: training sequences there are.

    Returns:
        [batch_sequences] indices of sequences.
    """
    first = step * settings.batch_sequences
    places = (divmod(n, num_sequences) for n in range(first, first + settings.batch_sequences))
    rows = [_epoch_order(settings.seed, epoch, num_sequences)[place] for epoch, place in places]
    return np.array(rows, np.intp)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_sequences: int) -> NDArray[np.intp]:
    return np.random.default_rng([seed, epoch]).permutation(num_sequences)


def build_model(settings: TrainSettings) -> Any:
    """The untrained OPT: pre-LayerNorm, ReLU, tied embeddings, no dropout.

    With and without positions all other weights start alike.

    Returns:
        A float32 OPTForCausalLM on the CPU.
    """
    config = OPTConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        word_embed_proj_dim=settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        ffn_dim=settings.ffn_size,
        num_attention_heads=settings.num_heads,
        max_position_embeddings=settings.sequence_length,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        init_std=settings.init_std,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=BOS_ID,
    )
    model = OPTForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
                if name == "model.decoder.final_layer_norm.weight":
                    parameter.fill_(settings.final_norm_init)
                continue
            std = settings.init_std
            if "embed_positions" in name:
                std = settings.position_init_std if settings.positions else 0.0
                parameter.requires_grad_(settings.positions)
            elif "embed_tokens" in name and settings.embedding_init_std is not None:
                std = settings.embedding_init_std
            elif name.endswith(("out_proj.weight", "fc2.weight")):
                std /= math.sqrt(2 * settings.num_layers)
            parameter.normal_(generator=generator).mul_(std)
    return model


def build_optimizer(settings: TrainSettings, model: Any) -> torch.optim.AdamW:
    """AdamW over what is trained of a model; only attention's and FFN's matrices decay."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim >= 2 and "embed" not in name]
    others = [p for name, p in trained if p.ndim < 2 or "embed" in name]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas)
