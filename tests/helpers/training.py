"""A tiny training, of seconds."""

import random

import torch
from safetensors.torch import load_file

from neuronstats.training.loop import TrainProgress, TrainSettings, train

WORDS = ["the", "king", "queen", "saw", "sent", "to", "and", "bold", "old", "city", "1", "2", "="]

SMALL = {
    "tokens": 32 * 4 * 40,
    "checkpoints": [0, 1000, 2000],
    "num_layers": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "ffn_size": 32,
    "vocab_size": 300,
    "sequence_length": 32,
    "batch_sequences": 4,
    "learning_rate": 1e-2,
    "heldout_percent": 20,
    "heldout_sequences": 8,
    "heldout_every": 20,
    "log_every": 10,
    "save_every": 8,
}


def make_documents(number=60, words=80):
    rng = random.Random(1)
    return [("prose", " ".join(rng.choices(WORDS, k=words))) for _ in range(number)]


def small(**changes):
    return TrainSettings(**{**SMALL, **changes})


def run(out, **changes):
    reports: list[TrainProgress] = []
    final = train(small(**changes), make_documents(), out, progress=reports.append)
    assert final == out / "final"
    return reports


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_equal_weights(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
