"""A crash at every single write of collect and reduce; then the same command again.

Every change of what is stored goes through `RunFolder._step`. The steps of an undisturbed job are
counted; then, for each, the job dies there (nothing that follows is written, not even by its
cleaning up), and the same command must end with the same bytes. What is stored after one step is
what is stored before the next, so before each step and after the last are all moments there are.
"""

import pytest
from helpers import models
from helpers.memory import memory_stores
from helpers.serial import collect_job, quiet, save_tokens, serial
from helpers.steps import Steps

from neuronstats.collect.job import collect
from neuronstats.errors import UserError
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.stats.settings import ReduceSettings
from neuronstats.store import lock
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import LOCK, LOGS, NGRAMS, RUN_FILE
from neuronstats.store.reduced import ReducedRun

KINDS = ("local", "object store")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, smallest_checkpoint):
    file, tokens = tmp_path_factory.mktemp("crash") / "t.npy", models.random_tokens(6, 16, seed=3)
    return smallest_checkpoint, save_tokens(file, tokens, list("aaabbb"))


@pytest.fixture(params=KINDS)
def place(request, tmp_path, monkeypatch):
    """place(name): a location of that name, local or in an object store in this process."""
    memory_stores(monkeypatch)
    # A dead job's lock: its process is gone, and with it the thread that renews.
    monkeypatch.setattr(lock.Lease, "_keep", lambda self: None)
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.0)
    local = request.param == "local"
    return lambda name: str(tmp_path / name) if local else f"s3://bucket/{name}"


@pytest.fixture
def steps(monkeypatch):
    with serial(monkeypatch):
        yield Steps(monkeypatch)


def contents(location):
    """Every object but locks, logs and run.yaml, which says the run folder's own name."""
    folder = RunFolder(location)
    keys = [k for k in folder.sizes() if not k.startswith((LOCK, LOGS, RUN_FILE))]
    return {key: folder.read(key) for key in keys}


def collecting(location, inputs):
    settings = {"collect__shard_sequences": 3, "collect__bitmaps": 1}
    return lambda: collect(collect_job(location, *inputs, **settings), quiet())


def reducing(location, share=0.95):
    settings = ReduceSettings(cover_share=share, ngrams=[1])
    return lambda: reduce(ReduceJob(run=location, reduce=settings), quiet())


ONCE = pytest.mark.parametrize(
    "once", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["dies", "fails once"]
)


@ONCE
def test_collect_dies_at_every_step(inputs, place, steps, once):
    number = steps.run(collecting(place("whole"), inputs))
    whole = contents(place("whole"))
    assert number > 20
    for step in range(number):
        location = place(f"run{step}")
        steps.run(collecting(location, inputs), step, once=once)
        steps.run(collecting(location, inputs))
        assert contents(location) == whole, f"died before step {step}"
    steps.run(collecting(place("whole"), inputs))
    assert contents(place("whole")) == whole


def read_all(location):
    """All that a report can read, or None where it is refused."""
    run = ReducedRun(location)
    names = ("neurons", "ngrams", "triggers", "domains", "layers", "suppression", "dead_curve")
    found = [run.table(name) for name in names]
    counts = [run.position_counts(layer, slice(None)) for layer in range(run.num_layers)]
    return [*found, *(c.tobytes() for c in counts)]


def restore(location, objects):
    folder = RunFolder(location)
    folder.remove(*(key for key in contents(location) if key not in objects))
    for key, data in objects.items():
        folder.write(key, data)


@ONCE
def test_reduce_dies_at_every_step(inputs, place, steps, once):
    location = place("run")
    steps.run(collecting(location, inputs))
    steps.run(reducing(location, 0.5))
    old = read_all(location)
    RunFolder(location).clear(f"{NGRAMS}/")  # they are numbered anew, step by step
    before = contents(location)
    number = steps.run(reducing(location))
    new, whole = read_all(location), contents(location)
    assert old != new
    assert number > 15
    refused = 0
    for step in range(number):
        restore(location, before)
        steps.run(reducing(location), step, once=once)
        try:
            found = read_all(location)
        except UserError:
            refused += 1
        else:
            assert found in (old, new), f"a mixture before step {step}"
        steps.run(reducing(location))
        assert contents(location) == whole, f"died before step {step}"
    if not once:
        assert bool(refused) == ("://" in location)  # where tables are exchanged in one step: never


def test_a_worker_that_outlived_its_job_changes_nothing(inputs, place, steps):
    import numpy as np

    from neuronstats.store.commit import ShardWriter
    from neuronstats.store.run import Run

    location = place("run")
    steps.run(collecting(location, inputs))
    run, before = Run.open(location), contents(location)
    for shard in run.layout.shards:
        writer = ShardWriter(run, shard)
        for layer in range(run.layout.num_layers):
            counts = np.ones((run.layout.num_positions, run.layout.num_neurons), np.int64)
            bitmap = np.ones((run.layout.num_neurons, shard.num_sequences, 2), np.uint8)
            writer.write_layer(layer, bitmap if layer < run.layout.num_bitmaps else None, counts)
        writer.commit()
    assert contents(location) == before
