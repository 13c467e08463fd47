"""What this machine has: cores, memory (of the container, where there is one), GPUs.

Made for Linux; elsewhere what /proc, control groups and the like would say is asked of psutil.
"""

import contextlib
import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from neuronstats.units import size

PROCESS_BYTES = 640 << 20  # a worker before it loads anything: Python, torch, transformers, ray
SLACK_BYTES, SLACK_SHARE = 160 << 20, 0.08  # see allocator()
SPARE = 0.9  # of the memory that is free may be planned with

CGROUP = Path("/sys/fs/cgroup")
CGROUP_FILES = (  # where a control group says its limit and what it holds, of both kinds of groups
    ("", "memory.max", "memory.current"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
MISSING = "missing"  # instead of a version


def installed_version(library: str) -> str:
    """Return a library's version here, or MISSING."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


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
        cores=num_cores(),
        host_bytes=_free_host_bytes(),
        gpus=len(gpus),
        gpu_bytes=min(gpus, default=0),
    )


def num_cores() -> int:
    """Return the cores that this process may use; all where the system does not restrict them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _free_host_bytes() -> int:
    """Return the bytes that are free here, in the container if it is one.

    Pages of files count as free: the kernel takes them back.
    """
    free = psutil.virtual_memory().available
    for folder, limit, used in CGROUP_FILES:
        try:
            most = (CGROUP / folder / limit).read_text().strip()
            held = int((CGROUP / folder / used).read_text())
            lines = (CGROUP / folder / "memory.stat").read_text().splitlines()
        except (OSError, ValueError):
            continue  # no container, or another kind of one, or no Linux
        stat = dict(line.split() for line in lines)
        files = sum(int(stat.get(name, 0)) for name in ("inactive_file", "active_file"))
        if most != "max":
            free = min(free, int(most) - held + files)
    return int(free)


def _free_gpu_bytes() -> list[int]:
    """Ask the driver's own tool: torch would take memory on the GPU to answer."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    rows = [[part.strip() for part in line.split(",")] for line in answer.stdout.splitlines()]
    gpus = {(row[0], row[1]): int(row[2]) << 20 for row in rows if row[-1].isdigit()}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(gpus.values())
    found = []
    for name in visible.split(","):  # CUDA too stops at the first name that is none
        matches = [free for gpu, free in gpus.items() if _names(name.strip(), *gpu)]
        if len(matches) != 1:
            break
        found += matches
    return found


def gpu_name() -> str:
    """Return what the driver calls the first GPU; empty without its tool."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.partition("\n")[0].strip()


def _names(name: str, index: str, uuid: str) -> bool:
    """Return whether CUDA_VISIBLE_DEVICES means a GPU: by its number, or the beginning of its UUID.

    A part of a GPU (MIG-GPU-UUID/...) counts as the GPU: its own memory is not asked for here.
    """
    if name.isdigit():
        return name == index
    return bool(name) and uuid.startswith(name.removeprefix("MIG-").split("/")[0])


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
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes where there is no /proc


def reset_peak() -> None:
    """Reset `peak_host_bytes`, where the system can."""
    with contextlib.suppress(OSError):
        CLEAR_REFS.write_text("5")


@dataclass(frozen=True)
class Term:
    """One named part of a sum."""

    name: str
    bytes: int


def allocator(host: Sequence[Term]) -> Term:
    """Return what allocator and libraries hold on top of a process and its other terms."""
    return Term("allocator", SLACK_BYTES + int(SLACK_SHARE * sum(term.bytes for term in host[1:])))


def total(terms: Sequence[Term]) -> int:
    """Return the sum of terms, in bytes."""
    return sum(term.bytes for term in terms)


def written(terms: Sequence[Term]) -> str:
    """Write a sum of terms for people, the largest first."""
    parts = [
        f"{term.name} {size(term.bytes)}"
        for term in sorted(terms, key=lambda term: -term.bytes)
        if term.bytes
    ]
    return f"{size(total(terms))} = {' + '.join(parts)}"
