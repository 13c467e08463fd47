"""What this machine has: cores, memory (of the container, where there is one), GPUs."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from neuronstats.units import size

PROCESS_BYTES = 640 << 20  # a worker before it loads anything: Python, torch, transformers, ray
SLACK_BYTES, SLACK_SHARE = 112 << 20, 0.08  # see allocator()
SPARE = 0.9  # of the memory that is free may be planned with

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """One machine, in bytes."""

    cores: int
    host_bytes: int
    """Memory that is free now."""
    gpus: int
    gpu_bytes: int
    """Memory of the smallest GPU that is free now; 0 without one."""


def probe() -> Machine:
    """Look at this machine, without touching a GPU."""
    gpus = _free_gpu_bytes()
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        host_bytes=_free_host_bytes(),
        gpus=len(gpus),
        gpu_bytes=min(gpus, default=0),
    )


def _free_host_bytes() -> int:
    free = psutil.virtual_memory().available
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        if limit != "max":
            free = min(free, int(limit) - used)
    except (OSError, ValueError):
        pass  # no container, or an older kind of one
    return int(free)


def _free_gpu_bytes() -> list[int]:
    """Ask the driver's own tool: torch would take memory on the GPU to answer."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    lines = [line.strip() for line in answer.stdout.splitlines() if line.strip().isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        chosen = [int(i) for i in visible.split(",") if i.strip().isdigit()]
        lines = [lines[i] for i in chosen if i < len(lines)]
    return [int(line) << 20 for line in lines]


def free_disk_bytes(path: str) -> int | None:
    """Return the free bytes where a folder is or will be; None for an object store."""
    if "://" in path:
        return None
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def peak_host_bytes() -> int:
    """Return the most memory this process has held (resident, in bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM in /proc/self/status")


@dataclass(frozen=True)
class Term:
    """One named part of a sum."""

    name: str
    bytes: int


def allocator(host: Sequence[Term]) -> Term:
    """What the allocator and the libraries hold on top of a process and its other terms."""
    return Term("allocator", SLACK_BYTES + int(SLACK_SHARE * sum(term.bytes for term in host[1:])))


def written(terms: Sequence[Term]) -> str:
    """Write a sum of terms for people, the largest first."""
    parts = [
        f"{term.name} {size(term.bytes)}"
        for term in sorted(terms, key=lambda term: -term.bytes)
        if term.bytes
    ]
    return f"{size(sum(term.bytes for term in terms))} = {' + '.join(parts)}"
