"""A run of format 1, collected and reduced before tables had a manifest: it is read for ever."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from helpers.serial import collect_job, quiet, serial

from neuronstats.collect.job import collect
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.report.notebook import LoadedRun

DATA = Path(__file__).parent / "data" / "format1"
TABLES = sorted(path.name for path in (DATA / "run" / "tables").glob("*.parquet"))


@pytest.fixture
def run(tmp_path):
    """A copy whose run.yaml names where the model and the tokens are here."""
    shutil.copytree(DATA / "run", tmp_path / "run")
    path = tmp_path / "run" / "run.yaml"
    text = path.read_text()
    for word, place in {"MODEL": DATA / "model", "TOKENS": DATA / "odd.npy"}.items():
        text = text.replace(word, str(place))
    path.write_text(text)
    return tmp_path / "run"


def test_it_is_read(run):
    loaded = LoadedRun(str(run))
    assert len(loaded.neurons) == 300
    assert (loaded.token_ids == np.load(DATA / "odd.npy")).all()
    neurons = loaded.neurons.to_pandas()
    for layer in range(loaded.num_layers):
        counts = loaded.position_counts(layer, slice(None)).sum(axis=0)
        assert (counts == neurons[neurons["layer"] == layer]["activations"]).all()
    activated = loaded.activated(0, 7).sum()
    assert activated == neurons[(neurons["layer"] == 0) & (neurons["neuron"] == 7)].activations[7]


def test_it_reduces_to_the_tables_it_came_with(run, monkeypatch):
    with serial(monkeypatch):
        assert reduce(ReduceJob(run=str(run)), quiet()) == 0
    for name in TABLES:
        old, new = (pq.read_table(place / "tables" / name) for place in (DATA / "run", run))
        assert new.select(old.column_names).equals(old), name  # columns may be added
    old, new = (
        zarr.open_group(place / "tables" / "positions.zarr", mode="r")
        for place in (DATA / "run", run)
    )
    for name in ("counts", "counts_by_domain"):
        assert (old[name][:] == new[name][:]).all()
    LoadedRun(str(run))


def test_collect_goes_on_with_it(run, tmp_path, monkeypatch):
    """A shard is computed again, on this processor's arithmetic; all else keeps its bytes."""
    shutil.copytree(run, tmp_path / "again")
    shard = "records/00000.json"
    before = json.loads((run / "activations.zarr" / shard).read_text())
    found = []
    for place in (run, tmp_path / "again"):
        store = place / "activations.zarr"
        old = contents(store)
        (store / shard).unlink()
        with serial(monkeypatch):
            assert collect(collect_job(place, DATA / "model", DATA / "odd.npy"), quiet()) == 0
        found.append(contents(store))
        assert set(found[-1]) == set(old)
        changed = {key for key in old if found[-1][key] != old[key]}
        assert changed <= {shard, *before["objects"]}
    assert found[0] == found[1]
    after = json.loads(found[0][shard])
    assert (after["shard"], after["fingerprint"]) == (before["shard"], before["fingerprint"])
    # 25 of the first layer's inputs are within 1e-6 of zero.
    assert np.allclose(after["activations"], before["activations"], rtol=25 / 1800)


def contents(store):
    """Every file's bytes, by its name below the store."""
    paths = (path for path in store.rglob("*") if path.is_file())
    return {str(path.relative_to(store)): path.read_bytes() for path in paths}
