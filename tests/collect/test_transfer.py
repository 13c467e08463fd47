"""Copies beside the computation: the same bits, and no race, found without a GPU (streams.py)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import models
from helpers.streams import Streams

from neuronstats import bits
from neuronstats.bits import tensors
from neuronstats.collect import transfer, weights
from neuronstats.collect.sweep import Sweep
from neuronstats.errors import UserError
from neuronstats.model.checkpoint import Checkpoint

PLACEMENTS = [(True, True), (True, False), (False, True), (False, False)]
LINES = [line.split("  #")[0].strip() for line in Path(transfer.__file__).read_text().split("\n")]
WAITS = [line for line in LINES if ".wait_event(" in line or line.endswith(".synchronize()")]
ONLY_TIMED = "waits[-1][1].synchronize()"


def make_sweep(folder, *, num_bitmaps=3, **settings):
    checkpoint = Checkpoint(folder)
    return Sweep(
        checkpoint,
        num_layers=3,
        num_bitmaps=num_bitmaps,
        batch_sequences=2,
        dtype=torch.float32,
        device=torch.device("cpu"),
        **settings,
    )


def with_streams(patch, folder, tokens, *, forget=None, **settings):
    """Two shards' records, swept as on a GPU, and what the streams have seen."""
    streams = Streams(forget)
    patch.setattr(transfer, "cuda", streams)
    patch.setattr(transfer, "pinned", streams.pinned)
    patch.setattr(transfer, "has_copy_streams", lambda device: True)
    patch.setattr(transfer, "PIECE_BYTES", 1 << 12)  # a layer takes many
    patch.setattr(weights, "ThreadPoolExecutor", streams.executor)
    for name, reads, writes in [
        ("pack_rows", lambda a, _: [a[0]], lambda a, _: [a[2]]),
        ("relu_pack_rows_", lambda a, _: [], lambda a, _: [a[0], a[2]]),
        ("position_sums", lambda a, _: [a[0]], lambda _, result: [result]),
        ("neuron_major", lambda a, _: [a[0]], lambda _, result: [result]),
    ]:
        patch.setattr(tensors, name, seen(streams, getattr(tensors, name), reads, writes))
    records = []
    with streams:
        ours = make_sweep(folder, **settings)
        for half in (tokens[:5], tokens[5:]):
            for record in ours(half):
                arrays = [torch.from_numpy(record.position_counts)]
                if record.bitmap is not None:
                    arrays.append(torch.from_numpy(record.bitmap))
                streams.access(arrays)  # as the writer reads them
                records.append(record)
            assert ours.layers.pop_wait_seconds() == 0.0
    return records, streams


def seen(streams, function, reads, writes):
    """A kernel that torch does not tell of."""

    def call(*args):
        result = function(*args)
        fresh = isinstance(result, torch.Tensor)
        if fresh:
            streams._gpu[result.untyped_storage().data_ptr()] = result
        streams.access(reads(args, result), writes(args, result))
        return result

    return call


@pytest.mark.parametrize(("resident", "near"), PLACEMENTS)
def test_same_bits_and_no_race(resident, near, order, tiny_checkpoint):
    tokens = models.random_tokens(12, 21, seed=6)
    plain = make_sweep(tiny_checkpoint(order), num_bitmaps=2)
    expected = [record for half in (tokens[:5], tokens[5:]) for record in plain(half)]
    with pytest.MonkeyPatch.context() as patch:
        found, streams = with_streams(
            patch,
            tiny_checkpoint(order),
            tokens,
            num_bitmaps=2,
            resident=resident,
            hidden_on_device=near,
            table_on_device=near,
        )
    assert streams.races == []
    assert len(found) == len(expected) == 6
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.layer == theirs.layer
        np.testing.assert_array_equal(ours.position_counts, theirs.position_counts)
        assert (ours.bitmap is None) == (theirs.bitmap is None)
        if ours.bitmap is not None:
            np.testing.assert_array_equal(ours.bitmap, theirs.bitmap)


@pytest.mark.parametrize("forgotten", [wait for wait in WAITS if wait != ONLY_TIMED])
def test_without_any_one_wait_something_races(forgotten, tiny_checkpoint):
    tokens = models.random_tokens(12, 21, seed=6)
    with pytest.MonkeyPatch.context() as patch:
        _, streams = with_streams(
            patch,
            tiny_checkpoint("pre"),
            tokens,
            forget=forgotten,
            resident=False,
            hidden_on_device=False,
        )
    assert streams.waits == set(WAITS)
    assert streams.races


def test_not_a_number_is_told_where_it_came_in(tmp_path):
    tokens = models.random_tokens(12, 16, seed=5)
    damaged = models.tiny_opt("pre", seed=0)
    rare = int(tokens[3, 3])
    tokens[:3] = np.where(tokens[:3] == rare, rare - 1, tokens[:3])
    with torch.no_grad():
        damaged.model.decoder.embed_tokens.weight[rare] = float("nan")
    models.save_checkpoint(damaged, tmp_path)
    message = "NaN or infinity in layer 0, sequence 3 of shard"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=message):
        with_streams(patch, tmp_path, tokens, resident=False, hidden_on_device=False)


def test_pinned_memory_is_planned_as_torch_takes_it():
    assert [transfer.pinned_bytes(n) for n in (1, 2, 3, 4096, 4097)] == [1, 2, 4, 4096, 8192]


@pytest.mark.parametrize("near", [True, False])
def test_a_short_shard_pins_no_memory_of_its_own(near, tiny_checkpoint, monkeypatch):
    """torch keeps what it has pinned, each size for itself."""
    asked = []
    tokens = models.random_tokens(8, 21, seed=6)  # shards of five and three
    pinned = Streams.pinned

    def noted(streams, shape, dtype):
        asked.append(int(np.prod(shape)) * dtype.itemsize)
        return pinned(streams, shape, dtype)

    monkeypatch.setattr(Streams, "pinned", noted)
    with pytest.MonkeyPatch.context() as patch:
        found, _ = with_streams(
            patch, tiny_checkpoint("pre"), tokens, hidden_on_device=near, table_on_device=True
        )
    assert [len(record.bitmap[0]) for record in found] == [5] * 3 + [3] * 3
    assert set(asked[len(asked) // 2 + 2 :]) <= set(asked[: len(asked) // 2 + 2])
    assert len(set(asked)) == 5 + (not near)  # weights, ids, bits, counts, finite; hidden states


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and -m gpu")
@pytest.mark.parametrize(("resident", "near"), PLACEMENTS)
def test_every_placement_on_a_gpu(resident, near, planted_checkpoint, planted_corpus):
    from helpers import planted

    tokens, _ = planted_corpus
    checkpoint = Checkpoint(planted_checkpoint)
    layers = checkpoint.config.num_hidden_layers
    swept = Sweep(
        checkpoint,
        num_layers=layers,
        num_bitmaps=layers,
        batch_sequences=4,
        dtype=torch.float32,
        device=torch.device("cuda"),
        resident=resident,
        hidden_on_device=near,
        table_on_device=near,
    )
    for _ in range(3):  # the second and third pass use memory again
        for record in swept(tokens):
            expected = planted.expected_bits(record.layer, tokens)
            assert record.bitmap is not None
            assert (bits.unpack(record.bitmap, tokens.shape[1]) == expected).all()
    assert swept.layers.pop_wait_seconds() >= 0.0
