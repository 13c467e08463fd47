"""neuronstats' sweep, in this process: what a worker of `jobs/collect.py` does, without Ray."""

from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.measure import Counts, measure
from neuronstats.collect.sweep import Sweep
from neuronstats.model.checkpoint import Checkpoint


def count(folder: str, tokens: Counts, out: Path) -> Counts:
    """Return activations int64 [layer, neuron]."""
    checkpoint = Checkpoint(Path(folder))
    layers = checkpoint.config.num_hidden_layers
    sweep = Sweep(
        checkpoint,
        num_layers=layers,
        num_bitmaps=layers,
        batch_sequences=4,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    counts = []
    for record in sweep(tokens):
        assert record.bitmap is not None
        np.savez_compressed(out / f"{record.layer}", record.bitmap)
        counts.append(record.position_counts.sum(0, dtype=np.int64))
    return np.stack(counts)


if __name__ == "__main__":
    measure("neuronstats", "neuronstats", count)
