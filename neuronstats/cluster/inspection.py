"""What a machine of the cluster says of itself, and in what it differs from the driver."""

import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import xxhash

from neuronstats.machine import MISSING, Machine, installed_version, probe

PACKAGE = Path(__file__).parents[1]
# What computes the numbers, or stores them.
LIBRARIES = ("torch", "transformers", "numpy", "numba", "zarr")


@dataclass(frozen=True)
class NodeReport:
    """One machine, as a process of Ray's there sees it."""

    machine: Machine
    code: str
    """Hash of the package's files that are imported there."""
    versions: dict[str, str]
    no_cuda: str
    """Why torch cannot use the GPUs there; empty if it can, or there is none."""
    niceness: int


def look(*, gpus: bool) -> NodeReport:
    """Describe the machine on which this runs.

    Args:
        gpus: whether work on its GPUs is to be expected.
    """
    return NodeReport(
        probe(), code_hash(), versions(), missing_cuda() if gpus else "", lowest_niceness()
    )


@functools.cache
def code_hash() -> str:
    """Return a hash over names and contents of the package's Python files."""
    digest = xxhash.xxh3_128()
    for path in sorted(PACKAGE.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE)} {len(content)} ".encode() + content)
    return str(digest.hexdigest())


def versions() -> dict[str, str]:
    """Return the versions of what computes the numbers; without the kind of build."""
    libraries = {name: installed_version(name).split("+")[0] for name in LIBRARIES}
    return {"python": platform.python_version().rpartition(".")[0], **libraries}


def missing_cuda() -> str:
    """Return why torch cannot use the GPUs of this machine; empty if it can."""
    # Ask the driver's library: a CUDA context would take memory on the GPU.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install a CUDA build of torch"
    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} finds no GPU it can use: its CUDA {torch.version.cuda} may"
            " need a newer driver (nvidia-smi shows the driver's)"
        )
    return ""


def lowest_niceness() -> int:
    """Raise this process's priority to the usual one if it may; return its niceness."""
    niceness = os.nice(0)
    if niceness > 0:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        except OSError:
            return niceness
    return 0


def differences(report: NodeReport) -> str:
    """Return in what a machine differs from this one; empty where it computes the same."""
    words = []
    for name, mine in versions().items():
        theirs = report.versions.get(name, MISSING)
        if theirs != mine:
            words.append(f"{name} {theirs} instead of {mine}")
    if report.code != code_hash():
        words.append("another neuronstats than this one: its files differ")
    if report.no_cuda:
        words.append(report.no_cuda)
    return ", ".join(words)
