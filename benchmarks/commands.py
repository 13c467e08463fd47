"""A command as a user starts it: how long it takes, and the memory of it and of all it starts."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from neuronstats.errors import UserError

ROOT = Path(__file__).parent.parent
SAMPLE_SECONDS = 0.1
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Ran:
    """What a command took."""

    seconds: float
    cpu_seconds: float
    """Processor time of its process and of all below it, looked at now and then."""
    own_bytes: int
    """Memory that its process held at most, looked at now and then."""
    all_bytes: int
    """The same of it and all processes below it, shared pages counted in each."""


def timed(*command: str | Path) -> float:
    """Run a Python script of this repository with arguments; return its seconds.

    Nothing looks at it meanwhile: to look takes processor time, which workers on all cores lack.

    Raises:
        UserError: it fails.
    """
    with _started(command) as process:
        start = time.monotonic()
        process.wait()
        return time.monotonic() - start


def run(*command: str | Path) -> Ran:
    """Run a Python script of this repository with arguments, looking at it now and then.

    Raises:
        UserError: it fails.
    """
    own = total = 0
    busy: dict[psutil.Process, float] = {}
    with _started(command) as process:
        start = time.monotonic()
        while process.poll() is None:
            held = _look(process.pid, busy)
            own, total = max(own, held[0]), max(total, sum(held))
            time.sleep(SAMPLE_SECONDS)
    return Ran(time.monotonic() - start, sum(busy.values()), own, total)


@contextlib.contextmanager
def _started(command: Sequence[str | Path]) -> Iterator[subprocess.Popen[str]]:
    """Start a script, on the CPU also where there is a GPU; inside, it is to come to its end.

    Raises:
        UserError: it fails.
    """
    words = [sys.executable, *map(str, command)]
    with tempfile.TemporaryFile("w+") as out:  # a pipe that nobody reads fills up
        process = subprocess.Popen(
            words,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=os.environ | NO_GPU,
        )
        yield process
        if process.returncode:
            out.seek(0)
            raise UserError(f"{' '.join(words)} failed: {out.read().strip()}")


def _look(pid: int, busy: dict[psutil.Process, float]) -> list[int]:
    """Return the memory of a process and of those below it, in bytes; note their time so far."""
    held = [0]
    try:
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return held
    for number, process in enumerate(processes):
        try:
            size, times = process.memory_info().rss, process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        busy[process] = times.user + times.system
        if number:
            held.append(size)
        else:
            held[0] = size
    return held
