"""Bitmaps damaged after they were reduced: a report names the damage, wherever it lies."""

import shutil

import numpy as np
import pytest
from helpers.run_job import run_job

from neuronstats.errors import FAILED, UserError
from neuronstats.report.notebook import LoadedRun
from neuronstats.store.layout import ZARR

KEY = f"{ZARR}/bitmaps/000/c/0/1/0/0"


@pytest.fixture
def run(run_folder, tmp_path):
    return shutil.copytree(run_folder, tmp_path / "run")


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_bit_flipped_anywhere_in_an_object_that_is_read_whole(run):
    """At 300 places: a single neuron's bits are never read from an object that has changed."""
    loaded, path = LoadedRun(str(run)), run / KEY
    good, rng = path.read_bytes(), np.random.default_rng(3)
    assert loaded.layout.reads_whole_objects
    assert loaded.bits(0, slice(5, 6)).any()
    for bit in np.linspace(0, 8 * len(good) - 1, 300).astype(int) ^ rng.integers(8, size=300):
        path.write_bytes(flipped(good, int(bit)))
        with pytest.raises(UserError, match=r"layer 0 of shard 1 .*bitmaps/000.*repair=true"):
            loaded.bits(0, slice(5, 6))
    for worse in (b"", good[:-1], good + b"\0", None):
        path.unlink() if worse is None else path.write_bytes(worse)
        with pytest.raises(UserError, match=r"layer 0 of shard 1 .*repair=true"):
            loaded.bits(0, slice(5, 6))


SLOW = [pytest.param(share, marks=pytest.mark.slow) for share in (0, 0.3, 0.999)]


@pytest.mark.parametrize("share", [0.6, *SLOW])
@pytest.mark.usefixtures("no_figures")
def test_the_report_ends_with_the_damages_name(share, run, tmp_path):
    path = run / KEY
    data = path.read_bytes()
    path.write_bytes(flipped(data, int(share * 8 * len(data))))
    code, _, err = run_job("report", f"runs=[{run}]", f"out={tmp_path / 'out'}", "report.sample=4")
    assert code == FAILED, err
    assert err.startswith("error: ")
    for word in ("layer 0 of shard 1", KEY, "collect again with repair=true"):
        assert word in err
    assert len(err.splitlines()) == 1
