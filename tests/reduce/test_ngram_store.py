"""N-gram ids kept in a run: the same after reading, made once, never trusted when damaged."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import models
from helpers.desk import contents
from helpers.run_job import run_job
from helpers.serial import make_run, serial

from neuronstats.errors import DONE, UserError
from neuronstats.reduce.ngram_cache import ARRAYS, NgramStore
from neuronstats.stats.ngram_ids import build_ngram_ids
from neuronstats.store.run import Run


@pytest.fixture(scope="module")
def made(tiny_checkpoint, tmp_path_factory):
    tokens, domains = models.random_tokens(9, 21, seed=4), ["a"] * 4 + ["b"] * 5
    checkpoint, shards = tiny_checkpoint("pre"), {"collect__shard_sequences": 2}
    return make_run(tmp_path_factory.mktemp("made") / "run", checkpoint, tokens, domains, **shards)


@pytest.fixture
def run(made, tmp_path):
    return Run.open(str(shutil.copytree(made, tmp_path / "run")))


def objects(run):
    folder = Path(run.folder.location) / "ngrams"
    return {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}


def assert_as_built(run, shards, lengths):
    tokens = np.concatenate([run.corpus().tokens[shard.sequences] for shard in shards])
    built = build_ngram_ids(tokens, models.BOS, lengths)
    found = NgramStore(run, shards).read(lengths)
    assert list(found) == sorted(lengths)
    for n, ngrams in found.items():
        for name in (*ARRAYS, "holes", "frequent"):
            ours, expected = getattr(ngrams, name), getattr(built[n], name)
            assert ours.dtype == expected.dtype, (n, name)
            np.testing.assert_array_equal(ours, expected, err_msg=f"{n} {name}")


def test_what_is_read_is_what_was_built(run):
    shards = run.layout.shards
    NgramStore(run, shards).prepare([3, 1, 21, 22])  # 22: longer than a sequence, so there is none
    assert_as_built(run, shards, [1, 3, 21, 22])


def test_it_is_made_once_and_added_to(run):
    kept = NgramStore(run, run.layout.shards)
    kept.prepare([1, 2])
    before = {name: path.stat().st_mtime_ns for name, path in objects(run).items()}
    kept.prepare([2])
    kept.prepare([1, 2, 3])
    after = {name: path.stat().st_mtime_ns for name, path in objects(run).items()}
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) * 3 // 2


def test_another_state_of_the_run_is_another_corpus(run):
    NgramStore(run, run.layout.shards[:2]).prepare([1, 2])
    first = set(objects(run))
    NgramStore(run, run.layout.shards).prepare([2])
    assert not first & set(objects(run))
    assert_as_built(run, run.layout.shards, [2])


@pytest.mark.parametrize("name", [*ARRAYS, "json"])
def test_a_lost_object_is_made_again_and_never_read_as_something(run, name):
    kept = NgramStore(run, run.layout.shards)
    kept.prepare([2])
    (path,) = [path for path in objects(run).values() if path.name == f"2.{name}"]
    path.unlink()
    with pytest.raises(UserError, match=rf"2\.{name} is missing or has changed: delete .*ngrams"):
        kept.read([2])
    kept.prepare([2])
    assert_as_built(run, run.layout.shards, [2])


@pytest.mark.parametrize("name", ARRAYS)
def test_a_changed_byte_is_found(run, name):
    kept = NgramStore(run, run.layout.shards)
    kept.prepare([2])
    (path,) = [path for path in objects(run).values() if path.name == f"2.{name}"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="is missing or has changed"):
        kept.read([2])


@pytest.mark.parametrize("name", ARRAYS)
def test_a_whole_reduction_numbers_them_anew(run, name, monkeypatch):
    """And makes the same tables."""
    tables = Path(run.folder.location) / "tables"
    with serial(monkeypatch):
        assert run_job("reduce", f"run={run.folder.location}")[0] == DONE
        before = contents(tables)
        (path,) = [path for path in objects(run).values() if path.name == f"2.{name}"]
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        code, _, err = run_job("reduce", f"run={run.folder.location}")
    assert (code, err) == (DONE, "")
    assert contents(tables) == before
    assert path.read_bytes() == good
