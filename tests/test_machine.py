"""What a machine has, on systems that do not say it as Linux does, and of GPUs by their names."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from neuronstats import machine

ROWS = "0, GPU-11aa, 1000\n1, GPU-22bb, 2000\n2, GPU-22cc, 3000\n"


@pytest.mark.parametrize(
    ("visible", "mebibytes"),
    [
        (None, [1000, 2000, 3000]),
        ("1,0", [2000, 1000]),
        ("GPU-22cc", [3000]),
        ("GPU-11aa,GPU-22bb", [1000, 2000]),
        ("MIG-GPU-22bb/1/0", [2000]),
        ("GPU-22", []),  # two of them begin so
        ("", []),
        ("-1", []),
        ("0,7,1", [1000]),  # CUDA stops at the first that is none
    ],
)
def test_gpus_that_are_visible(monkeypatch, tmp_path, visible, mebibytes):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{ROWS}'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine._free_gpu_bytes() == [number << 20 for number in mebibytes]


def test_gpus_are_hidden_from_these_tests(monkeypatch, tmp_path):
    """Their numbers are a CPU's: jobs here took a GPU where there was one."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{ROWS}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert machine.probe().gpus == 0


def test_a_system_without_proc_control_groups_and_affinities(monkeypatch, tmp_path):
    before = machine.peak_host_bytes()
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "none")
    monkeypatch.setattr(machine, "STATUS", tmp_path / "none")
    here = machine.probe()
    assert here.cores == os.cpu_count()
    assert here.host_bytes > 0
    assert machine.peak_host_bytes() * 1024 >= before // 2  # Linux counts it in KiB


def test_torch_is_not_imported_to_look_at_a_machine_to_connect_or_to_hand_out_a_reduction():
    code = "import sys, neuronstats.machine, neuronstats.cluster.start, neuronstats.reduce.job\n"
    code += "sys.exit(bool({'torch', 'transformers', 'ray'} & {*sys.modules}))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(("folder", "limit", "used"), machine.CGROUP_FILES)
def test_a_container_s_memory(folder, limit, used, tmp_path, monkeypatch):
    """Its limit less what it holds; pages of files that were read count as free."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    (place / limit).write_text("1000000000\n")
    (place / used).write_text("900000000\n")
    stat = "anon 100000000\ninactive_file 500000000\nactive_file 200000000\n"
    (place / "memory.stat").write_text(stat)
    assert machine.probe().host_bytes == 800_000_000
    (place / limit).write_text("max\n" if not folder else f"{(1 << 63) - 4096}\n")
    assert machine.probe().host_bytes > 1_000_000_000


def test_version_of_a_library_that_is_not_here():
    """The sweep runs where Ray is not installed; a run then says so."""
    assert machine.installed_version("pytest") == pytest.__version__
    assert machine.installed_version("no-such-library") == "missing"
