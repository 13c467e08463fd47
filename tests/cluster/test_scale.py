"""What many shards, workers and objects cost the driver: pretended bits, all else is real."""

import gc
import io
import time
from types import SimpleNamespace

import numpy as np
import obstore
import psutil
import pytest
from helpers.pretended import PretendedRay
from obstore.store import MemoryStore

from neuronstats.collect.job import _run_shards, remaining
from neuronstats.collect.settings import CollectJob, CollectSettings
from neuronstats.collect.worker import ShardSummary
from neuronstats.console import Console
from neuronstats.corpus.corpus import Corpus
from neuronstats.errors import DONE
from neuronstats.store.commit import ShardWriter
from neuronstats.store.create import new_run
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import ZARR, Layout, Record, make_shards
from neuronstats.store.run import Run

SHARDS, POSITIONS, NEURONS = 10_000, 8, 8

pytestmark = pytest.mark.slow


def make_run(folder, num_shards, num_layers=1):
    corpus = Corpus(
        tokens=np.zeros((num_shards, POSITIONS), np.uint16),
        domain=np.zeros(num_shards, np.int16),
        row=np.arange(num_shards),
        domains=("text",),
    )
    layout = Layout(
        num_layers=num_layers,
        num_bitmaps=num_layers // 2,
        num_neurons=NEURONS,
        num_positions=POSITIONS,
        shard_sequences=1,
        domains=corpus.domains,
        shards=make_shards(corpus, 1),
    )
    info = {"fingerprint": "f", "identity": {"data.tokens": corpus.fingerprint}, "model": {}}
    return new_run(folder, corpus, layout, info | {"settings": {}, "versions": {}})


class PretendedWorker:
    """Writes and commits a shard that nothing was computed for, in three steps."""

    def __init__(self, run):
        self._run = run

    def __call__(self, shard):
        writer = ShardWriter(self._run, shard)
        yield 0
        writer.write_layer(0, None, np.ones((POSITIONS, NEURONS), np.uint8))
        yield 1
        writer.commit()
        return ShardSummary(POSITIONS, 1.0, 0, 0.0, 0.0, 1e9, 1 << 30)


def test_ten_thousand_shards_on_a_hundred_workers(tmp_path, monkeypatch):
    run = make_run(RunFolder(str(tmp_path / "run"), create=True), SHARDS)
    ray = PretendedRay(num_nodes=25)
    pool = ray.pool(workers_per_node=4)
    process, sizes = psutil.Process(), []
    settings = CollectJob(run=str(tmp_path / "run"), collect=CollectSettings(verify=False))
    console = Console(io.StringIO())
    work = SimpleNamespace(num_layers=1, flop_per_token=1)
    plan = SimpleNamespace(work=work, host_bytes=1 << 30)

    def make(*_):
        return PretendedWorker(run)

    monkeypatch.setattr("neuronstats.collect.job.ShardWorker", make)
    todo = remaining(run, settings, console)
    finished = iter(range(SHARDS))
    original = ShardWriter.commit

    def commit(self):
        if next(finished) % (SHARDS // 10) == 0:
            gc.collect()
            sizes.append(process.memory_info().rss)
        return original(self)

    monkeypatch.setattr(ShardWriter, "commit", commit)
    begun, wall = time.process_time(), time.monotonic()
    assert _run_shards(run, todo, pool, settings, plan, console) == DONE
    driver = time.process_time() - begun - ray.seconds
    print(
        f"{SHARDS} shards: driver {1000 * driver / SHARDS:.2f} ms of CPU a shard, workers"
        f" {1000 * ray.seconds / SHARDS:.2f}, {time.monotonic() - wall:.0f} s;"
        f" RSS {[size >> 20 for size in sizes]} MB"
    )
    assert driver / SHARDS < 0.005
    assert max(sizes[1:]) < 1.05 * sizes[1]
    begun = time.monotonic()
    again = Run.open(str(tmp_path / "run"))
    assert remaining(again, settings, console) == []
    print(f"resumed in {time.monotonic() - begun:.1f} s")


def test_a_million_objects_are_opened_in_a_minute():
    """As opt-66b's 64 layers: a hundred objects a shard."""
    num_layers, per_shard = 64, 100
    store = MemoryStore()
    folder = RunFolder("s3://pretended/run", store=store)
    run = make_run(folder, SHARDS, num_layers)
    for shard in run.layout.shards:
        keys = [f"position_counts/{n % 64:03d}/c/{shard.index}/{n}/0" for n in range(per_shard - 1)]
        objects = dict.fromkeys(keys, (1, "0" * 32))
        for key in keys:
            obstore.put(store, f"{ZARR}/{key}", b"x")
        record = Record(shard, run.fingerprint, objects, [1] * num_layers)
        obstore.put(store, f"{ZARR}/{Record.key(shard.index)}", record.dumps())
    del objects
    gc.collect()
    before = psutil.Process().memory_info().rss
    begun = time.monotonic()
    again = Run(folder, run.info)
    assert again.damaged_layout(contents=False) == {}
    listed = time.monotonic()
    records = again.records()
    read = time.monotonic()
    assert len(records) == SHARDS
    assert again.damaged(records.values(), contents=False) == {}
    end = time.monotonic()
    grown = (psutil.Process().memory_info().rss - before) >> 20
    print(
        f"{SHARDS * per_shard} objects: {end - begun:.1f} s (layout {listed - begun:.1f}, records"
        f" {read - listed:.1f}, objects {end - read:.1f}), {grown} MB"
    )
    assert end - begun < 60
