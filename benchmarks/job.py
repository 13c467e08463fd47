"""The benchmark: how fast it is here, as ratios against what one would use instead."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from benchmarks.parts import PARTS
from benchmarks.report import Report, around_section
from benchmarks.rounds import Rounds
from benchmarks.settings import FULL, SHORT, THREADS, WARMUPS, BenchJob, Sizes
from benchmarks.subject import make_subject
from neuronstats.console import PLAIN_SECONDS, Console
from neuronstats.errors import DONE, FAILED, expect


def bench(settings: BenchJob, console: Console) -> int:
    """Do the job; return its exit code: 1 where two paths differ in their results."""
    report = measure(settings, console, SHORT if settings.bench.short else FULL)
    return FAILED if any(report.mismatches.values()) else DONE


def measure(settings: BenchJob, console: Console, sizes: Sizes) -> Report:
    """Measure part after part; after each, print its section and write it to the pages.

    Raises:
        SettingsError: the model, the device or the page is not there.
    """
    device = _device(settings.bench.device)
    pages = [] if settings.page is None else [Path(settings.page).expanduser()]
    for page in pages:  # before anything is measured
        for name in settings.bench.parts:
            around_section(page, name)
    out = Path(settings.out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.disable_progress_bar()
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with tempfile.TemporaryDirectory(dir=out.resolve()) as scratch:  # for commands elsewhere
            subject = make_subject(settings, sizes, device, Path(scratch))
            report = Report(device)
            for name in settings.bench.parts:
                console.say(f"measuring: {name}")
                rounds = Rounds(
                    settings.bench.rounds, WARMUPS, subject.on_gpu, _slowly(console.say)
                )
                report.add(name, PARTS[name](sizes, subject, rounds, Path(scratch)))
                console.say(report.section(name))
                report.write(out / "bench.md")  # what is measured stays, whatever comes
                for page in pages:
                    report.update(page)
    finally:
        torch.set_num_threads(before)
    console.say(f"measured: {out}/bench.md; {report.equal_results}")
    return report


def _device(name: str) -> torch.device:
    there = torch.cuda.is_available()
    expect("bench.device", name, "cpu or auto: there is no GPU", met=there or name != "cuda")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def _slowly(say: Callable[[str], None]) -> Callable[[str], None]:
    """Pass on one line in PLAIN_SECONDS at most."""
    last = time.monotonic()

    def pass_on(words: str) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            say(f"  {words}")

    return pass_on
