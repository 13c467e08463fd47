"""The reduce job: what changes no result, unfinished and changed runs, refusals, several runs."""

import contextlib
import io
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from helpers import models
from helpers.reduced import COLLECT_ALL, TABLES, read, run_jobs
from helpers.serial import collect_job, make_run, quiet, save_tokens, serial

from neuronstats.cluster.nodes import Node, place
from neuronstats.cluster.settings import RaySettings
from neuronstats.console import Console
from neuronstats.errors import SettingsError
from neuronstats.machine import Machine, Term
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.report.notebook import LoadedRun
from neuronstats.stats.curves import TYPES
from neuronstats.stats.settings import ReduceSettings
from neuronstats.store import tables
from neuronstats.store.run import Run


def test_shards_batches_blocks_and_order_change_nothing(tiny_checkpoint, tmp_path, monkeypatch):
    tokens = models.random_tokens(10, 24, seed=7)
    file = save_tokens(tmp_path / "tokens.npy", tokens, ["x", "y"] * 5)
    found = []
    for index, (shard, reverse, block) in enumerate(
        [(10, False, 96 << 20), (1, True, 1), (3, True, 2000)]
    ):
        monkeypatch.setattr("neuronstats.reduce.block.PART_BYTES", block)
        monkeypatch.setattr("neuronstats.store.layout.CHUNK_BYTES", 64)
        job = collect_job(
            tmp_path / f"run{index}",
            tiny_checkpoint("pre"),
            file,
            collect__shard_sequences=shard,
            **COLLECT_ALL,
        )
        run = run_jobs(monkeypatch, job, reverse)
        found.append({name: read(run, name).replace_schema_metadata(None) for name in TABLES})
    for other in found[1:]:
        for name in TABLES:
            assert other[name].equals(found[0][name]), name


def test_reduce_again_replaces_the_tables(tiny_checkpoint, tmp_path, monkeypatch):
    file = save_tokens(tmp_path / "tokens.npy", models.random_tokens(6, 16))
    job = collect_job(tmp_path / "run", tiny_checkpoint("pre"), file)
    run = run_jobs(monkeypatch, job)
    (tmp_path / "run" / "tables" / "stale.parquet").write_bytes(b"")
    run_jobs(monkeypatch, job, positional_mi=0.5)
    assert not (tmp_path / "run" / "tables" / "stale.parquet").exists()
    metadata = tables.table_metadata(read(run, "neurons"))
    assert metadata["settings"]["positional_mi"] == 0.5
    assert not (tmp_path / "run" / "tables.partial").exists()


@pytest.fixture(scope="module")
def made(tiny_checkpoint, tmp_path_factory):
    folder, tokens = tmp_path_factory.mktemp("made"), models.random_tokens(8, 24, seed=2)
    for order in ("pre", "post"):
        make_run(folder / order, tiny_checkpoint(order), tokens, **COLLECT_ALL)
    return folder


@pytest.fixture
def collected(made, tmp_path):
    """Two runs that are not reduced."""
    return [str(shutil.copytree(made / order, tmp_path / order)) for order in ("pre", "post")]


def test_the_first_layers_alone_are_the_whole_s_first_rows(collected, monkeypatch):
    run = Run.open(collected[0])
    with serial(monkeypatch):
        assert reduce(ReduceJob(run=collected[0]), quiet()) == 0
        whole = {name: read(run, name) for name in (*TABLES, "dead_curve")}
        assert reduce(ReduceJob(run=collected[0], layers=1), quiet()) == 0
    for name, table in whole.items():
        rows = [row for row in table.to_pylist() if row["layer"] == 0]
        found = read(run, name)
        assert found.to_pylist() == rows, name
        assert tables.table_metadata(found)["layers"] == 1
    loaded = LoadedRun(collected[0])
    assert (loaded.num_layers, loaded.depth.tolist()) == (1, [0.0])
    assert loaded.curve(0, 3).tolist() == loaded.activated(0, 3).mean(axis=0).tolist()


def test_run_and_runs_exclude_each_other():
    with pytest.raises(SettingsError, match=r"run=a, runs=\['b'\]"):
        reduce(ReduceJob(run="a", runs=["b"]), quiet())


def test_nothing_is_touched_where_one_of_several_runs_is_none(collected, tmp_path, monkeypatch):
    with serial(monkeypatch), pytest.raises(SettingsError, match="does not exist"):
        reduce(ReduceJob(runs=[collected[0], str(tmp_path / "none")]), quiet())
    assert not (Path(collected[0]) / "tables").exists()


def test_a_plan_reduces_nothing(collected, monkeypatch):
    said = io.StringIO()
    with serial(monkeypatch):
        assert reduce(ReduceJob(run=collected[0], plan=True), Console(said)) == 0
    assert "memory, merging" in said.getvalue()
    assert {path.name for path in Path(collected[0]).iterdir()} & {"tables", "ngrams"} == set()


def test_a_plan_on_a_cluster_names_its_machines_and_refuses_what_does_not_fit(
    collected, monkeypatch
):
    """Asked of the cluster: it never connected, and showed no workers."""
    said, nodes = io.StringIO(), [Node("a", 4, 0, 4 << 30), Node("b", 8, 0, 64 << 30)]

    @contextlib.contextmanager
    def connect(settings, on_message, worker_bytes):
        workers = place(settings, nodes, memory=worker_bytes, per_core=True)
        yield SimpleNamespace(workers=workers)

    monkeypatch.setattr("neuronstats.reduce.job.connect", connect)
    job = ReduceJob(run=collected[0], plan=True, ray=RaySettings(address="head:6379"))
    assert reduce(job, Console(said)) == 0
    assert re.search(r"^workers: \d+: a [1-4], b 8$", said.getvalue(), re.MULTILINE)
    nodes[:] = [Node("a", 64, 0, 1 << 20)]
    with pytest.raises(SettingsError, match="of memory each do not fit"):
        reduce(job, quiet())
    assert {path.name for path in Path(collected[0]).iterdir()} & {"tables", "ngrams"} == set()


def test_too_little_memory_is_said_before_anything_starts(collected, monkeypatch):
    machine = Machine(cores=2, host_bytes=600 << 20, gpus=0, gpu_bytes=0)
    monkeypatch.setattr("neuronstats.reduce.job.probe", lambda: machine)
    with serial(monkeypatch), pytest.raises(SettingsError, match="of memory each do not fit"):
        reduce(ReduceJob(run=collected[0]), quiet())
    assert not (Path(collected[0]) / "ngrams").exists()


def test_too_little_memory_for_the_driver_is_said_before_anything_starts(collected, monkeypatch):
    monkeypatch.setattr(
        "neuronstats.reduce.job.gather_memory", lambda *sizes: [Term("rows", 1 << 60)]
    )
    with (
        serial(monkeypatch),
        pytest.raises(SettingsError, match=r"gathering takes .* here, in"),
    ):
        reduce(ReduceJob(run=collected[0]), quiet())
    assert not (Path(collected[0]) / "ngrams").exists()


def test_several_runs_are_compared(collected, monkeypatch):
    said = io.StringIO()
    with serial(monkeypatch):
        settings = ReduceSettings(detect_rate=0.3, cover_share=0.3, positional_mi=0.02)
        assert reduce(ReduceJob(runs=collected, reduce=settings), Console(said)) == 0
    rows = pq.read_table(f"{collected[0]}/comparison.parquet").to_pylist()
    assert len(rows) == 2
    for row, location in zip(rows, collected, strict=True):
        assert row["location"] == location
        assert row["run"] in said.getvalue()
        neurons = read(Run.open(location), "neurons").to_pylist()
        assert row["neurons"] == len(neurons)
        assert row["dead_share"] == sum(r["dead"] for r in neurons) / len(neurons)
        for n in (1, 2, 3):
            assert row[f"detectors_{n}"] == sum(r[f"detector_{n}"] for r in neurons)
        judged = [r["suppresses"] for r in neurons if r["suppresses"] is not None]
        assert len(judged) == row["detectors_1"] > 0
        assert row["suppressing_share"] == sum(judged) / len(judged)
        kinds = [r["position_type"] for r in neurons if r["position_type"] is not None]
        assert row["positional"] == len(kinds) > 0
        assert {kind: row[kind] for kind in TYPES} == {k: kinds.count(k) for k in TYPES}
        shares = [
            (layer["suppressing_control_share"], layer["detectors_1"])
            for layer in read(Run.open(location), "layers").to_pylist()
            if layer["suppressing_control_share"] is not None
        ]
        mean = sum(share * count for share, count in shares) / sum(count for _, count in shares)
        assert row["suppressing_control_share"] == pytest.approx(mean)
