"""The benchmark: how fast it is here, as ratios against what one would use instead."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from neuronstats import bench_model
from neuronstats.bench_forward import Bare, Swept, mismatches
from neuronstats.bench_model import Subject
from neuronstats.bench_pack import packing
from neuronstats.bench_reduce import GROUP, reduction
from neuronstats.bench_report import Report, describe_machine
from neuronstats.bench_rounds import Contestant, Findings, Rounds
from neuronstats.bench_store import Written
from neuronstats.bench_stream import Offloaded, Streamed, disk_bytes_read
from neuronstats.checkpoint import Checkpoint, Dtype, locate
from neuronstats.config import DONE, FAILED, BenchJob
from neuronstats.console import Console
from neuronstats.errors import SettingsError
from neuronstats.opt import Shape, num_first_layers
from neuronstats.plan import size

FULL = {"layers": 0, "sequences": 16, "reduce_tokens": 5_000_000, "reduce_neurons": 2 * GROUP}
SHORT = {"layers": 2, "sequences": 4, "reduce_tokens": 500_000, "reduce_neurons": GROUP}
BATCHES = (2048, 4096, 8192)  # tokens, of which Hugging Face's best is sought
BATCH_ROUNDS = 2
HALF = torch.bfloat16, torch.float16


def bench(settings: BenchJob, console: Console) -> int:
    """Do the job; return its exit code: 1 where two paths differ in their results."""
    device = _device(settings.bench.device)
    unknown = set(settings.bench.parts) - set(PARTS)
    if unknown or not settings.bench.parts:
        raise SettingsError(
            f"bench.parts={settings.bench.parts}: expected some of {', '.join(PARTS)}."
        )
    out = Path(settings.out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    before = torch.get_num_threads()
    torch.set_num_threads(settings.bench.threads)
    try:
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            report = _measure(settings, console, device, Path(scratch))
    finally:
        torch.set_num_threads(before)
    report.show(console)
    report.write(out)
    console.say(f"measured: {out}/bench.md, {out}/bench.json")
    return FAILED if any(report.mismatches.values()) else DONE


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise SettingsError(f"bench.device={name}: expected auto, cpu, or cuda where there is a GPU.")
    return torch.device(name)


def _measure(
    settings: BenchJob, console: Console, device: torch.device, scratch: Path
) -> Report:
    """Make the subject, and measure part by part."""
    machine = describe_machine(settings.bench.threads, device)
    subject = make_subject(settings, device, scratch)
    report = Report(machine, _described(settings, subject), _plain(settings))
    console.table("bench", [(k, str(v)) for k, v in (report.subject | machine).items()])
    for name in settings.bench.parts:
        console.say(f"measuring: {name}")
        rounds = Rounds(
            settings.bench.rounds,
            settings.bench.warmups,
            on_gpu=subject.on_gpu,
            tell=lambda words, name=name: console.say(f"  {name}: {words}"),  # type: ignore[misc]
        )
        report.parts[name] = PARTS[name](settings, subject, rounds, scratch)
    machine["load_average_end"] = list(os.getloadavg())
    return report


def _plain(settings: BenchJob) -> dict[str, object]:
    plain = dataclasses.asdict(settings)
    plain["model"]["dtype"] = settings.model.dtype.value
    return plain


def _sizes(settings: BenchJob) -> dict[str, int]:
    """Resolve the sizes that are left to the form."""
    form = SHORT if settings.bench.short else FULL
    given = {name: getattr(settings.bench, name) for name in form}
    return {name: value if given[name] is None else given[name] for name, value in form.items()}


def make_subject(settings: BenchJob, device: torch.device, scratch: Path) -> Subject:
    """Load the model's shape, or write random weights; draw the tokens."""
    on_gpu = device.type == "cuda"
    chosen, options = settings.model.dtype, settings.bench
    auto = torch.float16 if on_gpu else torch.float32
    dtype: torch.dtype = auto if chosen is Dtype.auto else getattr(torch, chosen.value)
    sizes = _sizes(settings)
    if settings.model.path is None:
        folder = scratch / "model"
        layers = sizes["layers"] or None
        bench_model.write_random(folder, options.shape, layers, options.active, dtype)
    else:
        folder = locate(settings.model)
    shape = Shape.of(Checkpoint(folder).config)
    if options.positions % 8 or not 0 < options.positions <= shape.positions:
        raise SettingsError(
            f"bench.positions={options.positions}: expected a multiple of 8, at most the model's"
            f" {shape.positions}."
        )
    batch = options.batch_sequences or bench_model.batch_sequences(options.positions, on_gpu=on_gpu)
    num_sequences = -(-sizes["sequences"] // batch) * batch
    tokens = bench_model.random_tokens(num_sequences, options.positions, shape.vocabulary)
    return Subject(folder, shape, dtype, device, tokens, batch)


def _described(settings: BenchJob, subject: Subject) -> dict[str, object]:
    shape = subject.shape
    random = f"random weights in the shape of {settings.bench.shape}"
    return {
        "model": random if settings.model.path is None else settings.model.name,
        "layers": f"{shape.num_layers} of d={shape.hidden}, {shape.neurons} neurons each",
        "type": str(subject.dtype).removeprefix("torch."),
        "tokens": f"{subject.tokens.shape[0]} sequences of {subject.tokens.shape[1]}, random ids",
        "our_batch": f"{subject.batch_sequences} sequences",
        "rounds": f"{settings.bench.rounds}, after {settings.bench.warmups} to warm up",
    }


def forward(settings: BenchJob, subject: Subject, rounds: Rounds, scratch: Path) -> Findings:
    """Measure bare forwards, hooks and the sweep, in turn."""
    bare, swept = Bare(subject), Swept(subject)
    half = Swept(subject, num_layers=num_first_layers("first_half", subject.shape.num_layers, ""))
    batch, trial = _best_batch(bare, subject, rounds)
    work = subject.num_tokens
    with _written(subject, swept, scratch / "run") as written:
        calls: dict[str, Callable[[], object]] = {
            "bare": lambda: bare.forward(batch),
            "bare with head": lambda: bare.forward(batch, head=True),
            "hooks": lambda: bare.hooked(counts=False),
            "hooks and counts": lambda: bare.hooked(counts=True),
            "sweep": swept.carry,
            "recorded": swept.record,
            "written, thread": written.with_thread,
            "written, one core": written.on_one_core,
            "first half": half.record,
        }
        contestants = [Contestant(name, work, call) for name, call in calls.items()]
        timings = rounds.measure(contestants, "tokens")
        findings = Findings(timings=list(timings.values()))
        reference = bare.hooked(counts=True)
        paths = {"sweep, recorded": swept.record(), "store, one core": written.read()}
        paths["first half"] = half.record()
        written.with_thread()
        paths["store, thread"] = written.read()
        stored = written.stored_bytes()
    for path, bitmaps in paths.items():
        findings.mismatches[path] = mismatches(bitmaps, reference)
    is_half = subject.dtype in HALF
    full, part = _flop(subject.shape, None), _flop(subject.shape, half.num_layers)
    limit = f"{full / part:.2f} by FLOP"
    rest = f"without the last layer's fc2, {1 - _flop(subject.shape, subject.shape.num_layers) / full:.1%} of the FLOP"
    share = 0.02 if subject.shape.hidden < 2048 else 0.01
    for what, ours, theirs, goal, note in (
        ("sweep, nothing recorded / bare", "sweep", "bare", None, rest),
        ("recorded / bare", "recorded", "bare", 0.98 if is_half else 0.90, rest),
        ("recorded / sweep, nothing recorded", "recorded", "sweep", 1 - share, ""),
        ("written, in a thread / bare", "written, thread", "bare", 0.98, ""),
        ("written, all on one core / bare", "written, one core", "bare", 0.95, ""),
        ("hooks / bare", "hooks", "bare", None, ""),
        ("hooks and counts / bare", "hooks and counts", "bare", None, ""),
        ("recorded / hooks", "recorded", "hooks", None, "hooks keep bits alone"),
        ("recorded / hooks and counts", "recorded", "hooks and counts", 1.8 if is_half else 1.08, ""),
        ("first half / bare", "first half", "bare", 1.95, limit),
        ("first half / bare with head", "first half", "bare with head", 2.6, ""),
    ):
        ratio = rounds.ratio(what, timings[ours], timings[theirs], goal=goal, note=note)
        findings.ratios.append(ratio)
    active = sum(int(b.sum()) for b in [])  # placeholder
    del active
    findings.facts = [trial, ("stored", f"{size(stored)} for {work} tokens, {stored / work:.0f} B a token")]
    return findings
