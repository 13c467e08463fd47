"""SAELens: its proxy of transformers' model, one hook a layer; counted and packed by hand."""

from pathlib import Path

import numpy as np
import torch
from sae_lens.load_model import load_model  # type: ignore[import-not-found]

from benchmarks.peers.measure import Counts, measure


def count(folder: str, tokens: Counts, out: Path) -> Counts:
    """Return activations int64 [layer, neuron]."""
    exact = {"dtype": torch.float32}
    model = load_model("AutoModelForCausalLM", folder, "cpu", exact)
    config = model.model.config
    counts = np.zeros((config.num_hidden_layers, config.ffn_dim), np.int64)
    names = [f"model.decoder.layers.{layer}.fc1" for layer in range(len(counts))]
    for number, batch in enumerate(torch.split(torch.from_numpy(tokens), 4)):
        with torch.no_grad():
            _, cache = model.run_with_cache(batch, names_filter=names)
        for index, name in enumerate(names):
            fires = (cache[name] > 0).reshape(*batch.shape, -1).numpy()
            counts[index] += fires.sum((0, 1))
            packed = np.packbits(fires, axis=1, bitorder="little")
            np.savez_compressed(out / f"{number}-{index}", packed)
    return counts


if __name__ == "__main__":
    measure("SAELens", "sae_lens", count)
