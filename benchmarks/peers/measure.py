"""What a way of counting needs: lines, seconds, memory, disk; and whether its counts are exact."""

import inspect
import json
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Count = Callable[[str, NDArray[np.int64], Path], Counts]


def measure(name: str, package: str, count: Count) -> None:
    """Run one way on the arguments of the command line, and print one line of JSON.

        PYTHONPATH=.:PKGS python -m benchmarks.peers.NAME MODEL TOKENS.npy OUT

    Args:
        name: of the way.
        package: whose version is written.
        count: given the model's folder, token ids [sequence, position] and an empty folder, which
            it leaves what it keeps of the bits in, returns activations int64 [layer, neuron].
    """
    folder, file, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    tokens = np.load(file).astype(np.int64)
    torch.set_num_threads(1)
    out.mkdir(parents=True)
    start, cpu = time.monotonic(), time.process_time()
    found = count(folder, tokens, out)
    seconds, cpu = time.monotonic() - start, time.process_time() - cpu
    source = [line.strip() for line in inspect.getsource(count).splitlines()]
    expected = by_hooks(folder, tokens)
    row = {
        "way": name,
        "version": version(package),
        "lines": sum(1 for line in source if line and not line.startswith(("#", '"""'))),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_mb": round(_peak_before_check / 1e3),
        "disk_mb": round(sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e6, 2),
        "activations": int(found.sum()),
        "counts_that_differ": int((found != expected).sum()),
    }
    sys.stdout.write(json.dumps(row) + "\n")


_peak_before_check = 0


def by_hooks(folder: str, tokens: NDArray[np.int64]) -> Counts:
    """Return what transformers' own forward gives, by hooks; notes the peak so far."""
    global _peak_before_check
    _peak_before_check = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    from transformers import OPTForCausalLM

    model = OPTForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    layers = model.model.decoder.layers
    counts = torch.zeros(len(layers), model.config.ffn_dim, dtype=torch.int64)
    for index, layer in enumerate(layers):

        def keep(module: object, args: object, output: torch.Tensor, index: int = index) -> None:
            counts[index] += (output > 0).flatten(0, -2).sum(0)

        layer.fc1.register_forward_hook(keep)
    with torch.no_grad():
        for batch in torch.split(torch.from_numpy(tokens), 4):
            model.model(input_ids=batch, use_cache=False)
    return counts.numpy()
