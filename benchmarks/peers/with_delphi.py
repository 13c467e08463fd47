"""delphi: its cache of latents, the neurons taken for latents; firing counts are its own.

The package's own __init__ is passed over: it imports scorers and explainers, and dozens of packages
for them, none of which the cache needs.
"""

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import torch
from transformers import OPTForCausalLM

from benchmarks.peers.measure import Counts, measure

_folder = importlib.util.find_spec("delphi")
if _folder is None or not _folder.submodule_search_locations:
    raise SystemExit("delphi is not here: PYTHONPATH must name where eai-delphi is installed.")
_latents = types.ModuleType("delphi.latents")
_latents.__path__ = [f"{_folder.submodule_search_locations[0]}/latents"]
sys.modules["delphi.latents"] = _latents
LatentCache = importlib.import_module("delphi.latents.cache").LatentCache


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
