"""Objects that are valid and as long as those committed, with another content: reduce refuses."""

import itertools

import pytest
from helpers import models
from helpers.serial import make_run, quiet, serial

from neuronstats.errors import UserError
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import ZARR
from neuronstats.store.run import Run


@pytest.fixture
def run(smallest_checkpoint, tmp_path, monkeypatch):
    location = make_run(tmp_path / "run", smallest_checkpoint, models.random_tokens(6, 16, seed=3))
    with serial(monkeypatch):
        yield location


@pytest.mark.parametrize("kind", ["bitmaps", "position_counts"])
def test_rows_exchanged_within_an_object(kind, run):
    """Sums over sequences and positions stay, so that the checksum alone tells."""
    folder = RunFolder(run)
    (key,) = (key for key in folder.sizes(f"{ZARR}/{kind}/000/") if "/c/" in key)
    before = folder.read(key)
    array = Run.open(run).zarr(writable=True)[f"{kind}/000"]
    values = array[...]
    axis = {"bitmaps": 2, "position_counts": 1}[kind]  # of sequences, of positions
    for pair in itertools.combinations(range(values.shape[axis]), 2):
        order = list(range(values.shape[axis]))
        order[pair[0]], order[pair[1]] = reversed(pair)
        array[...] = values.take(order, axis)
        if folder.read(key) != before and len(folder.read(key)) == len(before):
            break
    else:
        pytest.fail("no exchange keeps the object's length")
    with pytest.raises(UserError, match=rf"object {key} of shard 0 .*repair=true"):
        reduce(ReduceJob(run=run), quiet())
    assert not folder.sizes("tables/")
