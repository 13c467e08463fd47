"""collect and reduce in this process, and their tables against the oracle's."""

import math

import pyarrow.parquet as pq
from helpers.serial import quiet, serial

from neuronstats.collect.job import collect
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.stats.settings import ReduceSettings
from neuronstats.store.run import Run

TABLES = ("neurons", "domains", "ngrams", "triggers", "layers", "suppression")

COLLECT_ALL = {"collect__bitmaps": "all"}


def run_jobs(monkeypatch, job, reverse=False, **reduce_settings):
    partial = reduce_settings.pop("partial", False)
    with serial(monkeypatch, reverse):
        assert collect(job, quiet()) == 0
        settings = ReduceSettings(**reduce_settings)
        assert reduce(ReduceJob(run=job.run, reduce=settings, partial=partial), quiet()) == 0
    return Run.open(job.run)


def read(run, name):
    return pq.read_table(f"{run.folder.location}/tables/{name}.parquet")


def check_tables(one, other):
    """Two run folders have the same tables."""
    for name in TABLES:
        mine, theirs = (pq.read_table(run / "tables" / f"{name}.parquet") for run in (one, other))
        assert mine.equals(theirs), name


def assert_same(found, expected, keys):
    """Every column of the oracle's rows, floats to rounding."""
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        for key in keys:
            value, want = row[key], wanted[key]
            floats = want if isinstance(want, list) else [want]
            if floats and all(isinstance(number, float) for number in floats):
                values = value if isinstance(want, list) else [value]
                pairs = zip(values, floats, strict=True)
                close = all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in pairs)
                assert close, (key, row, wanted)
            else:
                value = tuple(value) if isinstance(value, list) else value
                want = tuple(want) if isinstance(want, list) else want
                assert value == want, (key, row, wanted)


def assert_equals_oracle(run, expected, skip=()):
    by = {"domains": lambda row: (row["layer"], row["neuron"], row["domain"])}
    for name in TABLES:
        rows = read(run, name).to_pylist()
        wanted = expected[name]
        if name in by:
            rows, wanted = sorted(rows, key=by[name]), sorted(wanted, key=by[name])
        assert_same(rows, wanted, [k for k in (wanted or [{}])[0] if k not in skip])
