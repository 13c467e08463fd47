"""A command as a user starts it: how long it takes, and the memory of it and of all it starts."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from neuronstats.errors import UserError

ROOT = Path(__file__).parent.parent
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Ran:
    """What a command took."""

    seconds: float
    own_bytes: int
    """Memory that its process held at most, looked at now and then."""
    all_bytes: int
    """The same of it and all processes below it, shared pages counted in each."""


def run(*command: str | Path) -> Ran:
    """Run a Python script of this repository with arguments.

    Raises:
        UserError: it fails.
    """
    start = time.monotonic()
    words = [sys.executable, *map(str, command)]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    own = total = 0
    while process.poll() is None:
        held = _held(process.pid)
        own, total = max(own, held[0]), max(total, sum(held))
        time.sleep(SAMPLE_SECONDS)
    said = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise UserError(f"{' '.join(words)} failed: {said.strip()}")
    return Ran(time.monotonic() - start, own, total)


def _held(pid: int) -> list[int]:
    """Return the memory of a process and of those below it, in bytes."""
    held = [0]
    try:
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return held
    for number, process in enumerate(processes):
        try:
            size = process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        if number:
            held.append(size)
        else:
            held[0] = size
    return held
