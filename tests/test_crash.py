"""A death at every single write of collect and reduce; then the same command again.

Every change of what is stored goes through `RunFolder._step`. On the local file system a process
exits before and after each (see helpers/exits.py). An object store in this process would die with
it: there the steps of an undisturbed job are counted; then, for each, the job dies there (nothing
that follows is written, not even by its cleaning up). What is stored after one step is what is
stored before the next, so before each step and after the last are all moments there are.
The same command then ends with the same bytes.
"""

import json
import shutil
from functools import partial

import pytest
from helpers.memory import memory_stores
from helpers.serial import quiet, serial
from helpers.steps import Steps

from neuronstats.collect.job import collect
from neuronstats.collect.settings import CollectJob, CollectSettings
from neuronstats.corpus.settings import DataSettings
from neuronstats.errors import UserError
from neuronstats.model.settings import ModelSettings
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.stats.settings import ReduceSettings
from neuronstats.store import lock
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import LOCK, LOGS, NGRAMS, RUN_FILE, TOKENS
from neuronstats.store.reduced import ReducedRun

KINDS = ("local", "object store")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, smallest_checkpoint):
    """A model, and text of two domains, each of which is kept once it is tokenised."""
    file = tmp_path_factory.mktemp("crash") / "text.jsonl"
    rows = [
        {"text": f"{kind} {n} of many words. " * 9, "kind": kind} for kind in "ab" for n in "12"
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return smallest_checkpoint, file


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
    return Steps(monkeypatch)


def contents(location):
    """Every object but locks, logs and run.yaml, which says the run folder's own name."""
    folder = RunFolder(location)
    keys = [k for k in folder.sizes() if not k.startswith((LOCK, LOGS, RUN_FILE))]
    return {key: folder.read(key) for key in keys}


def collecting(location, inputs):
    checkpoint, text = map(str, inputs)
    job = CollectJob(
        model=ModelSettings(name="local", path=checkpoint),
        data=DataSettings(
            name="local",
            kind="local",
            path=text,
            domain="kind",
            shares={"a": 1.0, "b": 1.0},
            sequence_length=16,
            max_tokens=6 * 16,
        ),
        collect=CollectSettings(shard_sequences=3, bitmaps=1),
        run=location,
    )
    with pytest.MonkeyPatch.context() as patch, serial(patch):
        patch.setattr("neuronstats.collect.inspect.ESTIMATE_FROM_BYTES", 0)
        return collect(job, quiet())


def reducing(location, share=0.95):
    settings = ReduceSettings(cover_share=share, ngrams=[1])
    with pytest.MonkeyPatch.context() as patch, serial(patch):
        return reduce(ReduceJob(run=location, reduce=settings), quiet())


ONCE = pytest.mark.parametrize(
    ("place", "once"),
    [
        ("object store", False),
        pytest.param("object store", True, marks=pytest.mark.slow),
        pytest.param("local", True, marks=pytest.mark.slow),
    ],
    indirect=["place"],
    ids=["object store-dies", "object store-fails once", "local-fails once"],
)


def test_collect_exits_at_every_moment(inputs, tmp_path, forks):
    def job(name):
        return partial(collecting, str(tmp_path / str(name)), inputs)

    moments = forks.moments(job("whole"), tmp_path / "whole")
    whole = contents(str(tmp_path / "whole"))
    assert len(moments) > 25
    for moment in forks.exits(moments, job):
        assert job(moment)() == 0
        assert contents(str(tmp_path / str(moment))) == whole, f"exited at moment {moment}"
        assert not (tmp_path / str(moment) / TOKENS).exists()


@ONCE
def test_collect_dies_at_every_step(inputs, place, steps, once):
    number = steps.run(partial(collecting, place("whole"), inputs))
    whole = contents(place("whole"))
    assert number > 20
    for step in range(number):
        location = place(f"run{step}")
        steps.run(partial(collecting, location, inputs), step, once=once)
        steps.run(partial(collecting, location, inputs))
        assert contents(location) == whole, f"died before step {step}"
    steps.run(partial(collecting, place("whole"), inputs))
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


def test_reduce_exits_at_every_moment(inputs, tmp_path, forks):
    """Over old tables; readers see these, the new ones, and never a mixture or nothing."""
    before = str(tmp_path / "before")
    assert collecting(before, inputs) == reducing(before, 0.5) == 0
    old = read_all(before)
    RunFolder(before).clear(f"{NGRAMS}/")  # they are numbered anew, step by step

    def job(name):
        return partial(reducing, str(shutil.copytree(before, tmp_path / str(name))))

    moments = forks.moments(job("whole"), tmp_path / "whole")
    new, whole = read_all(str(tmp_path / "whole")), contents(str(tmp_path / "whole"))
    assert old != new
    assert len(moments) > 15
    for moment in forks.exits(moments, job):
        location = str(tmp_path / str(moment))
        assert read_all(location) in (old, new), f"a mixture at moment {moment}"
        assert reducing(location) == 0
        assert contents(location) == whole, f"exited at moment {moment}"


@ONCE
def test_reduce_dies_at_every_step(inputs, place, steps, once):
    location = place("run")
    steps.run(partial(collecting, location, inputs))
    steps.run(partial(reducing, location, 0.5))
    old = read_all(location)
    RunFolder(location).clear(f"{NGRAMS}/")  # they are numbered anew, step by step
    before = contents(location)
    number = steps.run(partial(reducing, location))
    new, whole = read_all(location), contents(location)
    assert old != new
    assert number > 15
    refused = 0
    for step in range(number):
        restore(location, before)
        steps.run(partial(reducing, location), step, once=once)
        try:
            found = read_all(location)
        except UserError:
            refused += 1
        else:
            assert found in (old, new), f"a mixture before step {step}"
        steps.run(partial(reducing, location))
        assert contents(location) == whole, f"died before step {step}"
    if not once:
        assert bool(refused) == ("://" in location)  # where tables are exchanged in one step: never


def test_a_worker_that_outlived_its_job_changes_nothing(inputs, place, steps):
    import numpy as np

    from neuronstats.store.commit import ShardWriter
    from neuronstats.store.run import Run

    location = place("run")
    steps.run(partial(collecting, location, inputs))
    run, before = Run.open(location), contents(location)
    for shard in run.layout.shards:
        writer = ShardWriter(run, shard)
        for layer in range(run.layout.num_layers):
            counts = np.ones((run.layout.num_positions, run.layout.num_neurons), np.int64)
            bitmap = np.ones((run.layout.num_neurons, shard.num_sequences, 2), np.uint8)
            writer.write_layer(layer, bitmap if layer < run.layout.num_bitmaps else None, counts)
        writer.commit()
    assert contents(location) == before
