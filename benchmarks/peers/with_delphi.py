"""delphi: its cache of latents, the neurons taken for latents; firing counts are its own."""

from pathlib import Path

import torch
from delphi.latents.cache import LatentCache  # type: ignore[import-not-found]
from transformers import OPTForCausalLM

from benchmarks.peers.measure import Counts, measure


def count(folder: str, tokens: Counts, out: Path) -> Counts:
    """Return activations int64 [layer, neuron]."""
    model = OPTForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    length = tokens.shape[1]
    places = [
        f"model.decoder.layers.{i}.activation_fn" for i in range(len(model.model.decoder.layers))
    ]
    encode = dict.fromkeys(places, lambda values: values.reshape(-1, length, values.shape[-1]))
    cache = LatentCache(model, encode, batch_size=4)
    cache.save_firing_counts = lambda: None  # it writes into the current folder
    cache.run(tokens.size, torch.from_numpy(tokens))
    cache.save_splits(1, out)
    return torch.stack([cache.hookpoint_firing_counts[place] for place in places]).numpy()


if __name__ == "__main__":
    measure("delphi", "eai-delphi", count)
