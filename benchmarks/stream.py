"""Weights that do not fit in memory: our sweep, accelerate's disk offload.

Each runs in a process of its own (bench_child). Where no memory cap can be set, and on a GPU, whose
driver holds host memory of its own, the weights' pages are dropped from the page cache before each
pass over them instead.
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.child import Cap, Child
from benchmarks.forward import Swept, batches, load_model, mismatches
from benchmarks.rounds import Contestant, Findings, Rounds, Value
from benchmarks.subject import Subject
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.units import size

ROOM = 0.6  # of the layers' weights, left for file pages above what a process holds by itself
KERNEL_BYTES = 32 << 20  # what a group counts besides, such as page tables
OURS, RESIDENT = "streamed, recorded", "resident, recorded"
WITHIN = 1.05  # of the weight bytes that a shard has to read


def measure(subject: Subject, rounds: Rounds, scratch: Path) -> Findings:
    """Measure weights read from disk against weights in memory, and against others' ways."""
    findings = Findings(facts=subject.facts)
    ways: dict[str, tuple[Callable[..., Any], bool]] = {
        RESIDENT: (_resident, False),
        OURS: (_streamed, True),
    }
    if importlib.util.find_spec("accelerate"):
        ways["accelerate"] = (_accelerate, True)
    else:
        findings.facts.append(("accelerate", "not installed, so not measured (extra: bench)"))
    stored = Checkpoint(subject.folder).dtype.itemsize
    weights = subject.shape.num_layers * subject.shape.layer_weights * stored
    with contextlib.ExitStack() as stack:
        may_cap = not subject.on_gpu
        caps = {n: Cap.make() if capped and may_cap else None for n, (_, capped) in ways.items()}
        for made in filter(None, caps.values()):
            stack.callback(made.close)  # after their processes
        hard = all(caps[name] is not None for name, (_, capped) in ways.items() if capped)
        children: dict[str, Child] = {}
        for name, (make, capped) in ways.items():
            folder = scratch / str(len(children))
            ready = partial(make, subject, folder, drop=capped and not hard)
            children[name] = Child(name, ready, caps[name])
            stack.callback(children[name].close)
        for name, child in children.items():
            peak, cap = max(child(), child()), caps[name]
            if hard and cap is not None:
                limit = peak + KERNEL_BYTES + int(ROOM * weights)
                cap.set(limit)
                told = f"{size(limit)} = {size(peak)} of its own + {ROOM:.0%} of the weights"
                findings.facts.append((f"memory cap, {name}", told))
        drop_pages(weight_files(subject.folder))  # they count for the group that reads them next
        timings = rounds.measure(
            [
                Contestant(name, subject.num_tokens, child, child.cpu_seconds)
                for name, child in children.items()
            ],
            "tokens",
        )
        findings.timings = list(timings.values())
        for name, child in children.items():
            before = child.disk_bytes_read()
            child()
            read = (child.disk_bytes_read() - before) / weights
            most = WITHIN if name == OURS else None
            what = f"read from disk, {name}"
            value = Value(what, read, "times weights / tokens of the shard", most=most)
            findings.values.append(value)
    how = "a control group's, file pages counted" if hard else "none: pages dropped before a pass"
    findings.facts.append(("hard memory cap", how))
    each = f"{size(weights)}, {weights / subject.num_tokens:.0f} B a token of the shard"
    findings.facts.append(("layers' weights", each))
    note = "which records nothing"
    for what, goal in [(RESIDENT, 0.90), ("accelerate", 1.5)]:
        if what in timings:
            ratio = rounds.ratio(
                f"{OURS} / {what}",
                timings[OURS],
                timings[what],
                goal=goal,
                note="" if what == RESIDENT else note,
            )
            findings.ratios.append(ratio)
    ours, theirs_bits = (Swept(subject, resident=kept).record() for kept in (False, True))
    findings.mismatches["streamed"] = mismatches(ours, theirs_bits)
    return findings


def _resident(subject: Subject, _scratch: Path, *, drop: bool) -> Callable[[], object]:
    assert not drop
    return Swept(subject).record


def _streamed(subject: Subject, _scratch: Path, *, drop: bool) -> Callable[[], object]:
    """Sweep with two layers in memory; each is read once for the shard."""
    swept, files = Swept(subject, resident=False), weight_files(subject.folder) if drop else []

    def record() -> None:
        drop_pages(files)
        swept.record()

    return record


def _accelerate(subject: Subject, scratch: Path, *, drop: bool) -> Callable[[], object]:
    """Offload the base model to disk by accelerate: every layer is read for every batch."""
    accelerate: Any = importlib.import_module("accelerate")
    model: Any = load_model(subject).model
    scratch.mkdir(parents=True)
    accelerate.disk_offload(model, str(scratch), execution_device=subject.device)
    return _by_batches(subject, model, weight_files(scratch) if drop else [])


def _by_batches(subject: Subject, model: Any, files: Iterable[Path]) -> Callable[[], object]:
    """Run over the shard's batches, recording nothing."""

    @torch.inference_mode()
    def forward() -> None:
        for ids in batches(subject, subject.batch_sequences):
            drop_pages(files)
            model(input_ids=ids, use_cache=False)

    return forward


def weight_files(folder: Path) -> list[Path]:
    """Find weights in a folder, in whatever form."""
    return sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".dat"))


def drop_pages(files: Iterable[Path]) -> None:
    """Drop files from the page cache, as far as they are not mapped."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages not yet written cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
