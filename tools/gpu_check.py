"""What tools/gpu_check.sh asks a GPU: gpu_check.py STEP [SHAPE LAYERS TOKENS] [stream] [aside].

Each prints what it finds, and ends with 1 where that is not right.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.forward import Bare, Bitmaps, mismatches
from benchmarks.store import Written
from benchmarks.subject import SHAPES, Subject, opt_config, random_tokens, write_random
from neuronstats.bits import tensors
from neuronstats.collect import transfer
from neuronstats.collect.choose import batch_tokens
from neuronstats.collect.plan import CUDA_DEVICE_BYTES, CorpusSize, Work, make_plan
from neuronstats.collect.sweep import Sweep
from neuronstats.collect.worker import matmul_flops
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.decoder import Decoder
from neuronstats.units import short, size

DEVICE = torch.device(os.environ.get("DEVICE", "cuda"))
ON_GPU = DEVICE.type == "cuda"
DTYPE = torch.float16 if ON_GPU else torch.float32
PLACEMENTS = [(r, near) for r in (True, False) for near in ((True, False) if ON_GPU else (True,))]
SHARDS = 150 if ON_GPU else 5  # torch deals out 32 streams in turn
FLIPPED = 1e-5  # of all bits: what another choice of matrix kernels may turn near 0
ACTIVE = [0.05]


def main(step: str, shape: str = "tiny", layers: str = "3", tokens: str = "8192", *how: str) -> int:
    """Do a step; return the exit code."""
    if ON_GPU and not torch.cuda.is_available():
        say("no GPU: torch has no CUDA here, or the driver is too old for it")
        return 1
    if step == "environment":
        return environment()
    with tempfile.TemporaryDirectory(dir=os.environ.get("SCRATCH")) as scratch:
        subject = make_subject(Path(scratch), shape, int(layers), int(tokens))
        say(f"-- {shape}, {layers} layers, {subject.tokens.shape} tokens {' '.join(how)}")
        if step == "race":
            return race(subject)
        if step == "parity":
            return parity(subject)
        return sweep(subject, Path(scratch), how)


def make_subject(scratch: Path, shape: str, layers: int, num_tokens: int) -> Subject:
    """Write random weights, if no step before has; draw tokens."""
    _, hidden, heads, vocabulary = SHAPES[shape]
    positions = 64 if shape == "tiny" else 2048
    folder = Path(os.environ.get("SCRATCH", scratch), f"{shape}-{layers}")
    if not folder.exists():
        write_random(folder, opt_config(layers, hidden, heads, vocabulary), ACTIVE, DTYPE)
    found = Decoder(Checkpoint(folder)).shape
    ids = random_tokens(num_tokens // positions, positions, vocabulary)
    batch = min(len(ids), max(1, batch_tokens(hidden, on_gpu=ON_GPU) // positions))
    return Subject(folder, found, DTYPE, DEVICE, ids, batch)


def make_sweep(subject: Subject, *, resident: bool, near: bool) -> Sweep:
    """Make ready a sweep with the token table on the device."""
    return Sweep(
        Checkpoint(subject.folder),
        num_layers=subject.shape.num_layers,
        num_bitmaps=subject.shape.num_layers,
        batch_sequences=subject.batch_sequences,
        dtype=DTYPE,
        device=DEVICE,
        resident=resident,
        hidden_on_device=near,
        table_on_device=True,
    )


def bitmaps(swept: Sweep, subject: Subject) -> Bitmaps:
    """Sweep the tokens; return a copy of each layer's bits."""
    return [np.array(record.bitmap) for record in swept(subject.tokens)]


def environment() -> int:
    """Print what is here; Triton must run on a GPU."""
    say(f"torch {torch.__version__}, cuda {torch.version.cuda}, device {DEVICE}")
    if not ON_GPU:
        return 0
    total = torch.cuda.get_device_properties(0).total_memory
    say(f"{torch.cuda.get_device_name()}, {size(total)}")
    rows = torch.zeros((1, 1, 128), dtype=torch.uint8, device=DEVICE)
    if tensors._triton(rows) is None:
        say("Triton does not run here (a C compiler and Python.h?): slower kernels are taken")
        return 1
    return 0


def race(subject: Subject) -> int:
    """Sweep many shards, streamed, weights in small pieces; the bits must stay the same."""
    transfer.PIECE_BYTES = 1 << 14
    subject = replace(subject, batch_sequences=4)
    want = bitmaps(make_sweep(subject, resident=True, near=True), subject)
    swept = make_sweep(subject, resident=False, near=not ON_GPU)
    wrong = 0
    for _ in range(SHARDS):
        found = bitmaps(swept, subject)
        wrong += sum(not np.array_equal(*pair) for pair in zip(found, want, strict=True))
    say(f"{SHARDS} shards, layers that differ: {wrong}")
    return int(wrong > 0)


def parity(subject: Subject) -> int:
    """Hold the bits of all placements, twice each, against Hugging Face's forward."""
    bare = Bare(subject)
    expected = bare.hooked(counts=False)
    bits = 8 * sum(bitmap.size for bitmap in expected)
    found = {"Hugging Face again": mismatches(bare.hooked(counts=False), expected)}
    del bare
    for resident, near in PLACEMENTS:
        swept = make_sweep(subject, resident=resident, near=near)
        for turn in (1, 2):
            own = bitmaps(swept, subject)
            name = f"resident {resident}, hidden states on the device {near}, pass {turn}"
            found[name] = mismatches(own, expected)
        del swept
    for name, number in found.items():
        say(f"{name}: {number} of {bits} bits differ")
    return int(max(found.values()) > FLIPPED * bits)


def sweep(subject: Subject, scratch: Path, how: Sequence[str]) -> int:
    """Time a shard, recorded and written; its memory must lie within the plan."""
    resident, near = "stream" not in how, "aside" not in how
    swept = make_sweep(subject, resident=resident, near=near)
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    work = Work(
        shape=subject.shape,
        corpus=CorpusSize((len(subject.tokens),), subject.tokens.shape[1]),
        num_layers=subject.shape.num_layers,
        num_bitmaps=subject.shape.num_layers,
        shard_sequences=len(subject.tokens),
        batch_sequences=subject.batch_sequences,
        dtype_bytes=DTYPE.itemsize,
        stored_bytes=DTYPE.itemsize,
        on_gpu=True,
        resident=resident,
        hidden_on_device=near,
        table_on_device=True,
    )
    embedding = timed(lambda: swept._embedded(subject.tokens))
    swept.layers.pop_wait_seconds()
    recorded = timed(lambda: list(swept(subject.tokens)))
    waited = swept.layers.pop_wait_seconds() / 4
    rate = subject.num_tokens * work.flop_per_token / recorded
    say(f"recorded: {short(subject.num_tokens / recorded)} tokens/s, {short(rate)}FLOP/s,")
    say(f"  {rate / matmul_flops(DTYPE, DEVICE):.0%} of a matrix product's")
    say(f"embedding {embedding / recorded:.1%}, weights waited for {waited / recorded:.1%}")
    written = Written(subject, _Swept(swept, work.num_layers), scratch / "run")  # type: ignore[arg-type]
    seconds = timed(written.with_thread)
    written.close()
    raw = work.num_layers * work.packed_layer
    say(f"written: {recorded / seconds:.2f} of that; {raw / seconds / 1e9:.2f} GB/s of raw bits")
    if not ON_GPU:
        return 0
    peak, planned = torch.cuda.max_memory_allocated(), make_plan(work).device_bytes
    planned -= CUDA_DEVICE_BYTES  # which torch does not count
    say(f"peak {size(peak)} of {size(planned)}; reserved {size(torch.cuda.max_memory_reserved())}")
    return int(peak > planned)


class _Swept:
    """What benchmarks.store wants of a sweep."""

    def __init__(self, sweep: Sweep, num_layers: int) -> None:
        self.sweep, self.num_layers = sweep, num_layers


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")


def timed(call: Callable[[], Any], times: int = 3) -> float:
    """Return the median seconds of a call, after one that does not count."""
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        call()
        if ON_GPU:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
