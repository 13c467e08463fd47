"""The benchmark's parts: which ways of doing the work are measured together, with goals."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from benchmarks.flips import flips
from benchmarks.forward import Bare, Bitmaps, Swept, mismatches
from benchmarks.growth import growth
from benchmarks.merge import merging
from benchmarks.packing import packing
from benchmarks.page import page
from benchmarks.reduction import reduction
from benchmarks.rounds import Contestant, Findings, Rounds, Timing
from benchmarks.settings import Sizes
from benchmarks.start import starting
from benchmarks.store import Written
from benchmarks.stream import measure
from benchmarks.subject import Subject
from benchmarks.whole import whole
from benchmarks.workers import scaling
from neuronstats import bits
from neuronstats.model.shape import Shape, num_first_layers
from neuronstats.units import size

# Tokens of Hugging Face's batches, of which the best is sought; 1: a single sequence.
BATCH_TOKENS = {"cpu": (1, 2048, 4096, 8192), "cuda": (4096, 16384, 65536)}
BATCH_ROUNDS = 2
COUNTED_SEQUENCES = 64
START_ROUNDS = 3


def forward(_sizes: Sizes, subject: Subject, rounds: Rounds, scratch: Path) -> Findings:
    """Measure bare forwards, hooks, the sweep and the store, in turn."""
    bare, swept = Bare(subject), Swept(subject)
    num_half = num_first_layers("first_half", subject.shape.num_layers, "collect.layers")
    half = Swept(subject, num_layers=num_half)
    batch, tried = _best_batch(bare, subject, rounds)
    written = Written(subject, swept, scratch / "run")
    calls: dict[str, Callable[[], object]] = {
        "bare": lambda: bare.forward(batch),
        "bare with head": lambda: bare.forward(batch, head=True),
        "hooks": lambda: bare.hooked(counts=False),
        "hooks and counts": lambda: bare.hooked(counts=True),
        "sweep": swept.carry,
        "recorded": swept.record,
        "written": written.with_thread,
        "first half": half.record,
    }
    contestants = [Contestant(name, subject.num_tokens, call) for name, call in calls.items()]
    timings = rounds.measure(contestants, "tokens")
    findings = Findings(timings=list(timings.values()), facts=[*subject.facts, tried])
    _compare(findings, rounds, timings, subject, num_half)
    reference = bare.hooked(counts=True)
    paths: dict[str, Bitmaps] = {"sweep": swept.record(), "first half": half.record()}
    written.with_thread()
    paths["store"] = written.read()
    written.close()
    findings.mismatches = {path: mismatches(bitmaps, reference) for path, bitmaps in paths.items()}
    fired = sum(int(bits.count(bitmap).sum()) for bitmap in reference)
    cells = sum(8 * bitmap.size for bitmap in reference)
    stored = written.stored_bytes()
    findings.facts += [
        ("activated", f"{fired / cells:.2%} of all neurons and tokens"),
        (
            "stored, all layers",
            f"{size(stored)}, {stored / subject.num_tokens:.0f} B a token",
        ),
    ]
    return findings


def _best_batch(bare: Bare, subject: Subject, rounds: Rounds) -> tuple[int, tuple[str, str]]:
    """Find Hugging Face's fastest batch; return it, and what was tried."""
    num_sequences, num_positions = subject.tokens.shape
    tokens = BATCH_TOKENS[subject.device.type]
    sizes = {min(num_sequences, max(1, number // num_positions)) for number in tokens}
    contestants = [
        Contestant(str(n), subject.num_tokens, lambda n=n: bare.forward(n))  # type: ignore[misc]
        for n in sorted(sizes)
    ]
    few = Rounds(min(BATCH_ROUNDS, rounds.rounds), 1, rounds.on_gpu, lambda _: None)
    timings = few.measure(contestants, "tokens")
    best = max(timings.values(), key=lambda timing: timing.rate)
    tried = ", ".join(f"{t.name}: {t.rate / best.rate:.2f}" for t in timings.values())
    return int(best.name), (
        "bare forward's batch",
        f"{best.name} sequences; speed by batch, relative to the best: {tried}",
    )


def _compare(
    findings: Findings, rounds: Rounds, timings: Mapping[str, Timing], subject: Subject, half: int
) -> None:
    """Add the ratios of the forward part, with the goals for this type and width."""
    shape, positions = subject.shape, subject.tokens.shape[1]
    low = subject.dtype != torch.float32
    share = 0.02 if shape.hidden < 2048 else 0.01
    bare = _flop(shape, shape.num_layers, positions)
    fc2 = 2 * shape.hidden * shape.neurons
    limit = f"{bare / (_flop(shape, half, positions) - fc2):.2f} by FLOP"
    left_out = f"the last fc2 left out: {bare / (bare - fc2):.3f} by FLOP"
    for ours, theirs, goal, note in (
        ("recorded", "bare", 0.98 if low else 0.90, left_out),
        ("sweep", "bare", None, left_out),
        ("recorded", "sweep", 1 - share, "the share of recording"),
        ("written", "bare", 0.98, ""),
        ("hooks", "bare", None, ""),
        ("hooks and counts", "bare", None, ""),
        ("recorded", "hooks", 1.1 if low else None, "these hooks keep bits alone"),
        ("recorded", "hooks and counts", 1.8 if low else 1.08, ""),
        ("first half", "bare", 1.95, limit),
        ("first half", "bare with head", 2.6, ""),
    ):
        ratio = rounds.ratio(
            f"{ours} / {theirs}", timings[ours], timings[theirs], goal=goal, note=note
        )
        findings.ratios.append(ratio)


def _flop(shape: Shape, num_layers: int, positions: int) -> int:
    """Count the floating-point operations of a token in the first layers."""
    return num_layers * (2 * shape.layer_weights + 2 * positions * shape.hidden)


def pack(_sizes: Sizes, subject: Subject, rounds: Rounds, _scratch: Path) -> Findings:
    """Measure packing and counting alone."""
    return packing(
        rounds,
        num_positions=subject.tokens.shape[1],
        num_neurons=subject.shape.neurons,
        num_sequences=COUNTED_SEQUENCES,
        device=subject.device,
    )


def flip(_sizes: Sizes, subject: Subject, _rounds: Rounds, _scratch: Path) -> Findings:
    """Count the bits that half precision flips; nothing is timed."""
    return flips(subject)


def start(sizes: Sizes, _subject: Subject, rounds: Rounds, scratch: Path) -> Findings:
    """Measure how soon a collect run starts, and its memory against its plan."""
    few = dataclasses.replace(rounds, rounds=min(START_ROUNDS, rounds.rounds))
    return starting(few, scratch, sizes.start_tokens)


def _fresh(scratch: Path, name: str) -> Path:
    """Make an empty folder."""
    (scratch / name).mkdir()
    return scratch / name


# The n-grams and the merge are always measured on the CPU.
PARTS: dict[str, Callable[[Sizes, Subject, Rounds, Path], Findings]] = {
    "forward": forward,
    "pack": pack,
    "reduce": lambda sizes, _, rounds, __: reduction(rounds, sizes),
    "merge": lambda sizes, _, rounds, scratch: merging(rounds, sizes, _fresh(scratch, "merge")),
    "stream": lambda _, subject, rounds, scratch: measure(subject, rounds, scratch / "stream"),
    "start": start,
    "workers": lambda sizes, _, rounds, scratch: scaling(rounds, sizes, _fresh(scratch, "workers")),
    "whole": lambda sizes, _, rounds, scratch: whole(rounds, sizes, _fresh(scratch, "whole")),
    "growth": lambda sizes, _, rounds, scratch: growth(rounds, sizes, _fresh(scratch, "growth")),
    "flips": flip,
    "page": lambda sizes, _, rounds, scratch: page(
        rounds, sizes.page_layers, _fresh(scratch, "page")
    ),
}
