"""The benchmark: how fast it is here, as ratios against what one would use instead."""

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from benchmarks import subject as bench_model
from benchmarks.parts import PARTS, Sizes
from benchmarks.report import Report, around_section, describe_machine
from benchmarks.rounds import Rounds
from benchmarks.settings import BenchJob
from benchmarks.subject import Subject
from neuronstats.console import PLAIN_SECONDS, Console
from neuronstats.errors import DONE, FAILED, SettingsError
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.decoder import Decoder
from neuronstats.model.settings import Dtype, ModelSettings
from neuronstats.model.source import locate
from neuronstats.store.run import Run

FULL = Sizes(
    layers=None,
    sequences=8,
    reduce_tokens=5_000_000,
    reduce_neurons=120,
    merge_layers=6,
    merge_neurons=3072,
    start_tokens=200_000,
)
SHORT = Sizes(
    layers=2,
    sequences=4,
    reduce_tokens=500_000,
    reduce_neurons=20,
    merge_layers=3,
    merge_neurons=100,
    start_tokens=50_000,
)
GPU_TIMES = 32  # as many sequences on a GPU


def bench(settings: BenchJob, console: Console) -> int:
    """Do the job; return its exit code: 1 where two paths differ in their results."""
    device = _device(settings.bench.device)
    unknown = set(settings.bench.parts) - set(PARTS)
    if unknown or not settings.bench.parts:
        raise SettingsError(
            f"bench.parts={settings.bench.parts}: expected some of {', '.join(PARTS)}."
        )
    if settings.page is not None:
        for name in settings.bench.parts:  # before anything is measured
            around_section(Path(settings.page).expanduser(), name)
    out = Path(settings.out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.disable_progress_bar()
    before = torch.get_num_threads()
    torch.set_num_threads(settings.bench.threads)
    try:
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            report = _measure(settings, console, device, Path(scratch))
    finally:
        torch.set_num_threads(before)
    report.show(console)
    console.say(f"measured: {out}/bench.md, {out}/bench.json")
    return FAILED if any(report.mismatches.values()) else DONE


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise SettingsError(
            f"bench.device={name}: expected auto, cpu, or cuda where there is a GPU."
        )
    return torch.device(name)


def _measure(settings: BenchJob, console: Console, device: torch.device, scratch: Path) -> Report:
    """Make the subject, and measure part by part."""
    machine = describe_machine(settings.bench.threads, device)
    subject = make_subject(settings, device, scratch)
    report = Report(machine, _described(settings, subject), _plain(settings))
    sizes = _sizes(settings)
    console.table("bench", [(k, str(v)) for k, v in (report.subject | machine).items()])
    for name in settings.bench.parts:
        console.say(f"measuring: {name}")
        rounds = Rounds(
            settings.bench.rounds,
            settings.bench.warmups,
            on_gpu=subject.on_gpu,
            tell=_slowly(lambda words, name=name: console.say(f"  {name}: {words}")),  # type: ignore[misc]
        )
        report.parts[name] = PARTS[name](sizes, subject, rounds, scratch)
        machine["load_average_end"] = list(os.getloadavg())
        report.write(Path(settings.out).expanduser())  # what is measured stays, whatever comes
        if settings.page is not None:
            report.update_page(Path(settings.page).expanduser())
    return report


def _slowly(tell: Callable[[str], None]) -> Callable[[str], None]:
    """Pass on one line in PLAIN_SECONDS at most."""
    last = time.monotonic()

    def pass_on(words: str) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            tell(words)

    return pass_on


def _plain(settings: BenchJob) -> dict[str, object]:
    plain = dataclasses.asdict(settings)
    plain["model"]["dtype"] = settings.model.dtype.value
    return plain


def _sizes(settings: BenchJob) -> Sizes:
    """Resolve the sizes that are left to the form."""
    form = SHORT if settings.bench.short else FULL
    names = [item.name for item in dataclasses.fields(form)]
    given = {name: getattr(settings.bench, name) for name in names}
    return dataclasses.replace(form, **{n: v for n, v in given.items() if v is not None})


def make_subject(settings: BenchJob, device: torch.device, scratch: Path) -> Subject:
    """Load the model's shape, or write random weights; draw the tokens."""
    on_gpu = device.type == "cuda"
    chosen, options = settings.model.dtype, settings.bench
    auto = torch.float16 if on_gpu else torch.float32
    dtype: torch.dtype = auto if chosen is Dtype.auto else getattr(torch, chosen.value)
    sizes = _sizes(settings)
    run = None if options.run is None else Run.open(options.run)
    model = settings.model
    if run is not None:
        model = ModelSettings(**{**run.info["settings"]["model"], "dtype": chosen})
        options = dataclasses.replace(options, positions=run.layout.num_positions)
    if model.path is None:
        folder = scratch / "model"
        bench_model.write_random(folder, options.shape, sizes.layers, options.active, dtype)
    else:
        folder = locate(model)
    shape = Decoder(Checkpoint(folder)).shape
    if options.positions % 8 or not 0 < options.positions <= shape.positions:
        raise SettingsError(
            f"bench.positions={options.positions}: expected a multiple of 8, at most the model's"
            f" {shape.positions}."
        )
    batch = options.batch_sequences or bench_model.batch_sequences(options.positions, on_gpu=on_gpu)
    wanted = sizes.sequences * (GPU_TIMES if on_gpu and options.sequences is None else 1)
    num_sequences = -(-wanted // batch) * batch
    if run is None:
        tokens = bench_model.random_tokens(num_sequences, options.positions, shape.vocabulary)
    else:
        tokens = bench_model.spread_tokens(run.corpus().tokens, num_sequences)
    return Subject(folder, shape, dtype, device, tokens, batch)


def _described(settings: BenchJob, subject: Subject) -> dict[str, object]:
    shape = subject.shape
    random, run = f"random weights in the shape of {settings.bench.shape}", settings.bench.run
    model, ids = (random if settings.model.path is None else settings.model.name), "random ids"
    if run is not None:
        model, ids = f"the model of {run}", "spread over its text"
    return {
        "model": model,
        "layers": f"{shape.num_layers} of d={shape.hidden}, {shape.neurons} neurons each",
        "type": str(subject.dtype).removeprefix("torch."),
        "tokens": f"{subject.tokens.shape[0]} sequences of {subject.tokens.shape[1]}, {ids}",
        "our_batch": f"{subject.batch_sequences} sequences",
        "rounds": f"{settings.bench.rounds}, after {settings.bench.warmups} to warm up",
    }
