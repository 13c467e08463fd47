"""What to train: the settings and what follows from them: rates, batches, the untrained model."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import OPTConfig, OPTForCausalLM

from neuronstats.training.data import BOS_ID, PAD_ID
from neuronstats.training.settings import TrainSettings


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Return the rate of a step, counted from 0: warm-up, then a cosine to the final share."""
    warmup = max(1, round(settings.warmup_share * settings.steps))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, settings.steps - warmup)
    low = settings.final_rate_share
    return settings.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * done)) / 2)


def batch_rows(settings: TrainSettings, step: int, num_sequences: int) -> NDArray[np.intp]:
    """Choose the training sequences of a step, counted from 0: indices [batch_sequences].

    Each epoch is a permutation of all sequences, decided by the seed and the epoch's number.
    """
    first = step * settings.batch_sequences
    places = (divmod(n, num_sequences) for n in range(first, first + settings.batch_sequences))
    rows = [_epoch_order(settings.seed, epoch, num_sequences)[place] for epoch, place in places]
    return np.array(rows, np.intp)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_sequences: int) -> NDArray[np.intp]:
    return np.random.default_rng([seed, epoch]).permutation(num_sequences)


def build_model(settings: TrainSettings) -> Any:
    """Build the untrained OPT: pre-LayerNorm, ReLU, tied embeddings, no dropout.

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
    """Build AdamW over what is trained of a model; only attention's and FFN's matrices decay."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim >= 2 and "embed" not in name]
    others = [p for name, p in trained if p.ndim < 2 or "embed" in name]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas)
