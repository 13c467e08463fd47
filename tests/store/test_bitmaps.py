"""Bitmaps read object by object are what Zarr reads, and damage never passes as bits."""

import contextlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronstats import bits
from neuronstats.corpus.corpus import Corpus
from neuronstats.errors import UserError
from neuronstats.store import layout as layouts
from neuronstats.store.bitmaps import BitmapReader
from neuronstats.store.commit import ShardWriter
from neuronstats.store.create import new_run
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import ZARR, Layout, make_shards

NEURONS, POSITIONS, SHARD = 22, 13, 4  # 2 bytes a row: 8 bytes of a neuron in a shard
INFO = {"fingerprint": "f", "identity": {}}
DOMAINS = np.repeat([0, 1], [9, 6]).astype(np.int16)  # shards of 4, 4, 1 and 4, 2


def make_run(folder, chunk, whole):
    """A run of random bits in objects of so many neurons and chunks; its array, read by Zarr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "CHUNK_BYTES", 8 * chunk)
        patch.setattr(layouts, "OBJECT_BYTES", 8 * whole)
        rng = np.random.default_rng(5)
        tokens = rng.integers(0, 50, (len(DOMAINS), POSITIONS)).astype(np.uint16)
        rows = np.arange(len(DOMAINS))
        corpus = Corpus(tokens=tokens, domain=DOMAINS, domains=("a", "b"), row=rows)
        shards = make_shards(corpus, SHARD)
        layout = Layout(1, 1, NEURONS, POSITIONS, SHARD, corpus.domains, shards)
        INFO["identity"] = {"data.tokens": corpus.fingerprint}
        run = new_run(RunFolder(str(folder), create=True), corpus, layout, dict(INFO))
        active = rng.random((NEURONS, len(DOMAINS), POSITIONS)) < 0.3
        active[3:9] = False  # chunks of zeros, which Zarr leaves out
        packed = bits.pack(active)
        array = run.zarr(writable=True)["bitmaps/000"]
        write_by_zarr(array, shards, packed)
        return run, layout, packed


def write_by_zarr(array, shards, packed):
    for shard in shards:
        padded = np.zeros((NEURONS, SHARD, packed.shape[2]), np.uint8)
        padded[:, : shard.num_sequences] = packed[:, shard.sequences]
        array[:, shard.index] = padded


@pytest.fixture(scope="module", params=[(1, 1), (3, 3), (2, 6), (4, 64)], ids=str)
def made(request, tmp_path_factory):
    chunk, whole = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "CHUNK_BYTES", 8 * chunk)
        patch.setattr(layouts, "OBJECT_BYTES", 8 * whole)
        run, layout, packed = make_run(tmp_path_factory.mktemp("run") / "run", chunk, whole)
        yield run, layout, packed


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_neurons_of_any_shards(made, data):
    run, layout, packed = made
    first, last = sorted(data.draw(st.tuples(st.integers(0, NEURONS), st.integers(0, NEURONS))))
    shards = data.draw(st.lists(st.sampled_from(layout.shards), unique=True))
    counts = np.zeros((len(shards), last - first), np.int64)

    def count(index, start, part):
        counts[index, start : start + len(part)] += bits.count(part)

    reader = BitmapReader(run.folder, layout)
    found = reader.read(0, slice(first, last), shards, on_part=count)
    parts = [packed[first:last, shard.sequences] for shard in shards]
    assert found.shape == (last - first, sum(s.num_sequences for s in shards), packed.shape[2])
    assert (found == np.concatenate([found[:, :0], *parts], axis=1)).all()
    for own, part in zip(counts, parts, strict=True):
        assert (own == bits.count(part)).all()
    assert (reader.read(0, slice(first, last), shards) == found).all()  # with the places known


def test_a_shard_is_written_with_the_bytes_that_zarr_writes(made, tmp_path):
    run, layout, packed = made
    own = new_run(RunFolder(str(tmp_path / "own"), create=True), run.corpus(), layout, dict(INFO))
    bitmaps, position_counts = (
        run.zarr(writable=True)[f"{kind}/000"].with_config({"write_empty_chunks": True})
        for kind in ("bitmaps", "position_counts")
    )
    write_by_zarr(bitmaps, layout.shards, packed)
    for shard in layout.shards:
        bitmap = np.ascontiguousarray(packed[:, shard.sequences])
        counts = bits.unpack(bitmap, POSITIONS).sum(axis=1).T
        position_counts[shard.index] = counts
        writer = ShardWriter(own, shard)
        writer.write_layer(0, bitmap, counts)
        record = writer.commit()
        for key, written in record.objects.items():
            assert run.folder.checksum(f"{ZARR}/{key}") == written, key
        assert record.activations == [counts.sum()]
    own_keys, keys = (set(folder.sizes(f"{ZARR}/")) for folder in (own.folder, run.folder))
    assert {key for key in own_keys if "records" not in key} == keys
    assert (own.read_bits(0, slice(None), layout.shards) == packed).all()


def test_bits_that_are_flipped_cut_or_exchanged_are_refused(made):
    """Each object at eight places: zstd's and the index's own checksums tell."""
    run, layout, packed = made
    folder, shards = run.folder, layout.shards
    keys = [key for key in folder.sizes(f"{ZARR}/bitmaps/000/") if "/c/" in key]
    assert len(keys) > 4
    passed = tried = 0
    for key in keys:
        data = folder.read(key)
        for place in {len(data) * part // 8 for part in range(8)} | {len(data) - 1}:
            for worse in (
                data[:place],
                data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :],
            ):
                folder.write(key, worse)
                with contextlib.suppress(UserError):  # bits of a header may decide nothing
                    found = BitmapReader(folder, layout).read(0, slice(None), shards)
                    assert (found == packed).all()
                    passed += 1
                tried += 1
        folder.write(key, data)
    assert passed < tried / 20
    assert (BitmapReader(folder, layout).read(0, slice(None), shards) == packed).all()


def test_a_bit_flipped_anywhere_in_a_part_that_is_read(tmp_path, monkeypatch):
    """Chunks of two neurons, objects of six: what is returned is right, or it is refused."""
    run, layout, packed = make_run(tmp_path / "run", 2, 6)
    monkeypatch.setattr(layouts, "CHUNK_BYTES", 16)
    monkeypatch.setattr(layouts, "OBJECT_BYTES", 48)
    assert not layout.reads_whole_objects
    path = tmp_path / "run" / ZARR / "bitmaps/000/c/2/1/0/0"  # neurons 12 to 17
    good, refused, same = path.read_bytes(), 0, 0
    for bit in range(8 * len(good)):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(changed))
        try:
            found = run.read_bits(0, slice(12, 18), layout.shards)
        except UserError as error:
            refused += {"layer 0 of shard 1", "repair=true"} <= set(
                re.findall(r"layer 0 of shard 1\b|repair=true", str(error))
            )
        else:
            assert (found == packed[12:18]).all()
            same += 1
    assert same <= 3  # one bit of each frame's header says nothing
    assert refused + same == 8 * len(good)
