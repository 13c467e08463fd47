"""Compiled loops on disk: used by the next process; compiled again where they cannot be."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

import neuronstats
from neuronstats.bits import compiled as module
from neuronstats.bits.compiled import compiled

COUNT = """
import numpy as np
from neuronstats.stats.ngram_kernels import count_bits
print(count_bits(np.array([[7, 1], [0, 2]], np.uint64)), len(count_bits.stats.cache_hits))
"""
IGNORED = shutil.ignore_patterns("embedded", "__pycache__")


def count(folder, root=Path(neuronstats.__file__).parents[1], before=""):
    """Count bits in a process of its own; return how often the folder's code was used."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", before + COUNT],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    *counts, hits = done.stdout.split()
    assert " ".join(counts) == "[4 1]"
    return int(hits)


def test_the_next_process_uses_what_was_compiled_unless_it_is_damaged(tmp_path):
    assert [count(tmp_path), count(tmp_path)] == [0, 1]
    [path] = tmp_path.rglob("*count_bits*.nbc")
    good = path.read_bytes()
    flips = [bytes([*good[:at], good[at] ^ 1, *good[at + 1 :]]) for at in (0, 40, len(good) - 1)]
    for worse in (*flips, good[:100]):
        path.write_bytes(worse)
        assert count(tmp_path) == 0
        assert path.read_bytes() != worse
    assert count(tmp_path) == 1


def test_a_full_disk(tmp_path):
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))"
    assert [count(tmp_path, before=full), count(tmp_path, before=full)] == [0, 0]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def twice(values):
    return 2 * values


def test_no_folder_at_all(monkeypatch):
    """As numba finds where neither the package nor the home can be written."""

    def refuse(*_):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(module._Kept, "__init__", refuse)
    assert compiled(twice)(np.arange(3)).tolist() == [0, 2, 4]


def test_code_is_kept_by_the_source_of_all_loops(tmp_path):
    """A loop may call those of other files, whose change numba would not notice."""
    root = tmp_path / "package"
    shutil.copytree(Path(neuronstats.__file__).parent, root / "neuronstats", ignore=IGNORED)
    kept = tmp_path / "kept"
    assert [count(kept, root), count(kept, root)] == [0, 1]
    with (root / "neuronstats" / "stats" / "ngram_rules.py").open("a") as file:
        file.write("# another loop has changed")
    assert [count(kept, root), count(kept, root)] == [0, 1]
    assert len(list(kept.rglob("*count_bits*"))) == 1  # what is stale was removed
