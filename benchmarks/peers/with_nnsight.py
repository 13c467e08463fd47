"""nnsight: trace the model, save what each fc1 gives, count and pack by hand."""

from pathlib import Path

import numpy as np
import torch
from nnsight import LanguageModel  # type: ignore[import-not-found]

from benchmarks.peers.measure import Counts, measure


def count(folder: str, tokens: Counts, out: Path) -> Counts:
    """Return activations int64 [layer, neuron]."""
    model = LanguageModel(folder, device_map="cpu", dispatch=True, dtype=torch.float32)
    layers = model.model.decoder.layers
    counts = np.zeros((len(layers), model.config.ffn_dim), np.int64)
    for number, batch in enumerate(torch.split(torch.from_numpy(tokens), 4)):
        saved = []
        with torch.no_grad(), model.trace(batch.tolist()):
            for layer in layers:
                saved.append(layer.fc1.output.save())
        for index, values in enumerate(saved):
            fires = (values > 0).reshape(*batch.shape, -1).numpy()
            counts[index] += fires.sum((0, 1))
            packed = np.packbits(fires, axis=1, bitorder="little")
            np.savez_compressed(out / f"{number}-{index}", packed)
    return counts


if __name__ == "__main__":
    measure("nnsight", "nnsight", count)
