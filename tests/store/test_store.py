"""The store: whole objects, the record last, damage found and named, any split merges alike."""

import contextlib
import itertools
import json
import threading
import time
from errno import EINVAL
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import obstore
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuronstats import bits
from neuronstats.corpus.corpus import Corpus
from neuronstats.errors import UserError
from neuronstats.store import layout as layout_module
from neuronstats.store.commit import ShardWriter
from neuronstats.store.create import new_run
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import Layout, Record, make_shards
from neuronstats.store.run import PAGE, READERS, Run, in_pages

NEURONS, POSITIONS, LAYERS = 20, 13, 2


def make_corpus(num_sequences=9, domains=("a", "b"), seed=0):
    rng = np.random.default_rng(seed)
    domain = np.sort(rng.integers(0, len(domains), num_sequences)).astype(np.int16)
    domain[: len(domains)] = np.arange(len(domains))
    return Corpus(
        tokens=rng.integers(0, 50, (num_sequences, POSITIONS)).astype(np.uint16),
        domain=np.sort(domain),
        row=np.arange(num_sequences),
        domains=tuple(domains),
    )


def make_run(folder, corpus, shard_sequences=4, num_bitmaps=LAYERS):
    layout = Layout(
        num_layers=LAYERS,
        num_bitmaps=num_bitmaps,
        num_neurons=NEURONS,
        num_positions=POSITIONS,
        shard_sequences=shard_sequences,
        domains=corpus.domains,
        shards=make_shards(corpus, shard_sequences),
    )
    info = {"fingerprint": "f", "identity": {"data.tokens": corpus.fingerprint}}
    return new_run(RunFolder(str(folder), create=True), corpus, layout, info)


def random_bits(num_sequences, seed=0, layer=0):
    rng = np.random.default_rng([seed, layer])
    rates = rng.choice([0, 0, 0.1, 0.7, 1], NEURONS)
    return rng.random((NEURONS, num_sequences, POSITIONS)) < rates[:, None, None]


def write_shard(run, shard, layers, commit=True):
    writer = ShardWriter(run, shard)
    for layer, values in enumerate(layers):
        part = values[:, shard.sequences]
        bitmap = bits.pack(part) if layer < run.layout.num_bitmaps else None
        writer.write_layer(layer, bitmap, part.sum(axis=1).T)
    return writer.commit() if commit else None


@pytest.fixture
def written(tmp_path):
    corpus = make_corpus()
    run = make_run(tmp_path / "run", corpus)
    layers = [random_bits(9, layer=layer) for layer in range(LAYERS)]
    for shard in run.layout.shards:
        write_shard(run, shard, layers)
    return Run.open(str(tmp_path / "run")), layers


def test_reads_what_was_written(written):
    run, layers = written
    assert run.corpus().fingerprint == make_corpus().fingerprint
    for layer, values in enumerate(layers):
        found = run.read_bits(layer, slice(3, 17), run.layout.shards)
        assert (bits.unpack(found, POSITIONS) == values[3:17]).all()
        for shard, counts in run.read_position_counts(layer, slice(3, 17), run.layout.shards):
            assert (counts == values[3:17, shard.sequences].sum(axis=1).T).all()
    records = run.records()
    assert sorted(records) == [shard.index for shard in run.layout.shards]
    for record in records.values():
        expected = [int(values[:, record.shard.sequences].sum()) for values in layers]
        assert record.activations == expected
    assert run.damaged(records.values()) == {}


def test_records_are_read_many_at_a_time_and_in_pages(written, monkeypatch):
    """One after another, 10 000 records of an object store took as many of its answers' times."""
    run, _ = written
    at_once, most = 0, 0
    mutex = threading.Lock()

    def slow(key):
        nonlocal at_once, most
        with mutex:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.01)
        with mutex:
            at_once -= 1
        return key

    asked = []
    keys = (asked.append(number) or number for number in range(1000))
    found = in_pages(slow, keys)
    assert next(found) == (0, 0)
    assert len(asked) <= PAGE
    assert list(found) == [(number, number) for number in range(1, 1000)]
    assert 4 <= most <= READERS
    monkeypatch.setattr("neuronstats.store.run.PAGE", 1)
    assert list(run.records()) == [shard.index for shard in run.layout.shards]


def test_shards_never_mix_domains():
    corpus = make_corpus(40, ("a", "b", "c"))
    shards = make_shards(corpus, 7)
    covered = np.concatenate([np.arange(40)[shard.sequences] for shard in shards])
    assert (covered == np.arange(40)).all()
    for shard in shards:
        assert {corpus.domains[d] for d in corpus.domain[shard.sequences]} == {shard.domain}
        assert 1 <= shard.num_sequences <= 7


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(shard_sequences=st.integers(1, 10), seed=st.integers(0, 100))
def test_any_split_into_shards_merges_to_the_same(tmp_path_factory, shard_sequences, seed):
    corpus = make_corpus(seed=seed)
    run = make_run(tmp_path_factory.mktemp("run"), corpus, shard_sequences)
    layers = [random_bits(9, seed, layer) for layer in range(LAYERS)]
    for shard in run.layout.shards:
        write_shard(run, shard, layers)
    for layer, values in enumerate(layers):
        bitmap = run.read_bits(layer, slice(None), run.layout.shards)
        counts = sum(c for _, c in run.read_position_counts(layer, slice(None), run.layout.shards))
        assert (bits.unpack(bitmap, POSITIONS) == values).all()
        assert (counts == values.sum(axis=1).T).all()
        # The sum of the counts is the popcount of the bitmaps.
        assert (bits.count(bitmap) == counts.sum(axis=0)).all()
        recorded = sum(record.activations[layer] for record in run.records().values())
        assert recorded == values.sum()


def test_writing_twice_writes_the_same_bytes(written):
    run, layers = written
    before = {key: run.folder.read(key) for key in run.folder.sizes()}
    for shard in run.layout.shards:
        write_shard(run, shard, layers)
    assert {key: run.folder.read(key) for key in run.folder.sizes()} == before


def test_without_its_record_a_shard_does_not_count(tmp_path):
    run = make_run(tmp_path / "run", make_corpus())
    write_shard(run, run.layout.shards[0], [random_bits(9)] * LAYERS, commit=False)
    assert run.records() == {}


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_damage_is_found_and_named(written, damage):
    run, _ = written
    record = run.records()[1]
    key = next(key for key in record.objects if key.startswith("bitmaps/001"))
    path = f"{layout_module.ZARR}/{key}"
    data = run.folder.read(path)
    if damage == "missing":
        run.folder.remove(path)
    elif damage == "cut":
        run.folder.write(path, data[:-1])
    else:
        run.folder.write(path, bytes([data[0] ^ 1]) + data[1:])
    found = run.damaged(run.records().values())
    assert list(found) == [1]
    assert key in found[1]
    assert run.damaged([record], contents=False) == ({} if damage == "flipped" else found)


def read_all(run, key, layer):
    if key.startswith("bitmaps"):
        run.read_bits(layer, slice(None), run.layout.shards)
    else:
        list(run.read_position_counts(layer, slice(None), run.layout.shards))


def test_a_flipped_bit_never_reads_as_a_number(written):
    run, _ = written
    record = run.records()[0]
    for key in record.objects:
        path = f"{layout_module.ZARR}/{key}"
        data = run.folder.read(path)
        for place in {len(data) // 2, len(data) - 1}:
            run.folder.write(path, data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
            layer = int(key.split("/")[1])
            with pytest.raises(UserError, match="repair=true"):
                read_all(run, key, layer)
        run.folder.write(path, data)


def test_dead_neurons_take_hardly_any_space(tmp_path):
    run = make_run(tmp_path / "run", make_corpus())
    dead = np.zeros((NEURONS, 9, POSITIONS), bool)
    record = write_shard(run, run.layout.shards[0], [dead] * LAYERS)
    assert all(size < 30 for size, _ in record.objects.values())
    assert record.activations == [0, 0]
    assert not run.read_bits(0, slice(None), run.layout.shards[:1]).any()


def test_changed_tokens_are_refused(written):
    run, _ = written
    tokens = run.zarr(writable=True)["tokens"]
    tokens[0, 0] = tokens[0, 0] + 1
    with pytest.raises(UserError, match=r"tokens cannot be read .*changed"):
        run.corpus()


def test_a_record_of_another_run_is_refused(written):
    run, _ = written
    key = f"{layout_module.ZARR}/{Record.key(0)}"
    raw = json.loads(run.folder.read(key))
    run.folder.write(key, json.dumps({**raw, "fingerprint": "other"}).encode())
    with pytest.raises(UserError, match="belongs to another run"):
        run.records()
    run.folder.write(key, b"{")
    with pytest.raises(UserError, match=r"is damaged .*repair=true"):
        run.records()


def test_creation_that_was_cut_off_starts_again(tmp_path):
    corpus = make_corpus()
    make_run(tmp_path / "run", corpus)
    (tmp_path / "run" / layout_module.RUN_FILE).unlink()
    run = make_run(tmp_path / "run", corpus)
    assert run.corpus().fingerprint == corpus.fingerprint


@pytest.mark.parametrize(("neurons", "positions"), [(36864, 2048), (64, 8), (1000, 2048), (3, 1)])
@pytest.mark.parametrize("shard_sequences", [1, 128, 255, 256, 100_000])
def test_objects_are_whole_chunks_of_bounded_size(neurons, positions, shard_sequences):
    layout = Layout(1, 1, neurons, positions, shard_sequences, ("a",), ())
    chunk, whole = layout.neurons_per_chunk, layout.neurons_per_object
    assert whole % chunk == 0
    assert whole * layout.row_bytes <= max(layout_module.OBJECT_BYTES, layout.row_bytes)
    assert np.iinfo(layout.count_dtype).max >= shard_sequences


def test_replace_exchanges_folders(tmp_path):
    folder = RunFolder(str(tmp_path))
    for number in ("1", "2"):
        folder.write("new/x", number.encode())
        folder.write(f"new/only-{number}", b"")
        folder.replace("new", "old", first="x")
        assert folder.read("old/x") == number.encode()
        assert not (tmp_path / "new").exists()
    assert set(folder.sizes("old")) == {"old/x", "old/only-2"}


@pytest.mark.parametrize("renames", range(4))
def test_a_death_while_folders_are_replaced_where_they_cannot_be_exchanged(
    tmp_path, monkeypatch, renames
):
    """As on NFS; the process dies after so many of three renames, and another does it all again."""
    without = SimpleNamespace(
        CDLL=lambda *_, **__: SimpleNamespace(renameat2=lambda *_: -1), get_errno=lambda: EINVAL
    )
    monkeypatch.setattr("neuronstats.store.folder.ctypes", without)
    folder, rename, taken = RunFolder(str(tmp_path)), Path.rename, itertools.count()

    def dying(path, target):
        if next(taken) >= renames:
            raise OSError("died")
        return rename(path, target)

    folder.write("old/x", b"1")
    folder.write("new/x", b"2")
    with monkeypatch.context() as patch, contextlib.suppress(UserError):
        patch.setattr(Path, "rename", dying)
        folder.replace("new", "old", first="x")
    assert next(taken) == min(renames + 1, 3)
    folder.clear("new/")
    folder.write("new/x", b"3")
    folder.replace("new", "old", first="x")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == {
        tmp_path / "old" / "x": b"3"
    }


def test_what_a_dead_process_left_of_a_write_is_cleared(tmp_path):
    folder, there = RunFolder(str(tmp_path)), []

    def data():
        yield b"a part"
        there.extend(path.name for path in tmp_path.rglob("*") if path.is_file())

    obstore.put(folder._store, "made/key", data())
    assert there == ["key#1"]  # where the local store writes
    (tmp_path / "made" / there[0]).write_bytes(b"a part")
    folder.clear("made/")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
