"""TransformerLens: the bridge to transformers' model, its hook points, count and pack by hand."""

from pathlib import Path

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge  # type: ignore[import-not-found]

from benchmarks.peers.measure import Counts, measure


def count(folder: str, tokens: Counts, out: Path) -> Counts:
    """Return activations int64 [layer, neuron]."""
    model = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
    number_of_layers = model.cfg.n_layers
    counts = np.zeros((number_of_layers, model.original_model.config.ffn_dim), np.int64)
    names = [f"blocks.{layer}.mlp.in.hook_out" for layer in range(number_of_layers)]
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
    measure("TransformerLens", "transformer_lens", count)
