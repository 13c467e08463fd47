"""Parity: every bit equals Hugging Face's own forward, whatever the files, batches and shards."""

import time
import weakref

import numpy as np
import pytest
import torch
from helpers import models

from neuronstats import bits
from neuronstats.collect import worker
from neuronstats.collect.sweep import Sweep
from neuronstats.collect.worker import ShardWorker
from neuronstats.errors import UserError
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.decoder import Decoder
from neuronstats.model.settings import ModelSettings
from neuronstats.model.shape import num_first_layers

NEAR_ZERO = 1e-5
FILES = [
    {"layout": "safetensors"},
    {"layout": "safetensors_sharded"},
    {"layout": "bin_sharded", "prefix": "decoder."},
    {"layout": "bin", "prefix": "model.decoder.", "tied_head": True},
]


def make_sweep(folder, **settings):
    checkpoint = Checkpoint(folder)
    defaults = {
        "num_layers": checkpoint.config.num_hidden_layers,
        "num_bitmaps": checkpoint.config.num_hidden_layers,
        "batch_sequences": 4,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    return Sweep(checkpoint, **(defaults | settings))


def swept_bits(sweep, tokens, cuts=()):
    """All layers' bits, bool [neuron, sequence, position], of the shards between the cuts."""
    parts = []
    for first, last in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
        records = list(sweep(tokens[first:last]))
        for record in records:
            unpacked = bits.unpack(record.bitmap, tokens.shape[1])
            assert (record.position_counts == unpacked.sum(axis=1).T).all()
        parts.append([bits.unpack(record.bitmap, tokens.shape[1]) for record in records])
    return [np.concatenate(layer, axis=1) for layer in zip(*parts, strict=True)]


def assert_equal_bits(found, outputs, record_property):
    """Equal everywhere except where |fc1 output| < 1e-5; those are counted, and printed."""
    near = flipped = 0
    for bit, output in zip(found, outputs, strict=True):
        value = output.transpose(2, 0, 1)
        close = np.abs(value) < NEAR_ZERO
        near += int(close.sum())
        flipped += int((bit != (value > 0)).sum())
        assert ((bit == (value > 0)) | close).all()
    record_property("near_zero", near)
    print(f"{sum(b.size for b in found)} bits, {near} near zero, {flipped} of these differ")


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("files", FILES, ids=lambda f: f["layout"])
def test_bits_equal_hugging_face(
    order, files, resident, tiny_model, tiny_checkpoint, record_property
):
    tokens = models.random_tokens(11, 61, seed=1)
    outputs = models.hf_fc1_outputs(tiny_model(order), tokens, 4)
    sweep = make_sweep(tiny_checkpoint(order, **files), resident=resident)
    assert_equal_bits(swept_bits(sweep, tokens), outputs, record_property)


@pytest.mark.parametrize(("batch", "cuts"), [(1, ()), (3, (5,)), (16, (1, 2, 10))])
def test_batches_and_shards_change_no_bit(
    order, batch, cuts, tiny_model, tiny_checkpoint, record_property
):
    tokens = models.random_tokens(11, 64, seed=2)
    outputs = models.hf_fc1_outputs(tiny_model(order), tokens, 11)
    sweep = make_sweep(tiny_checkpoint(order), batch_sequences=batch)
    assert_equal_bits(swept_bits(sweep, tokens, cuts), outputs, record_property)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_two_shards_through_streamed_layers(num_layers, tiny_checkpoint, monkeypatch):
    """The same bits; the next shard's first layer is read before that shard is begun."""
    tokens, reads = models.random_tokens(6, 16, seed=3), []
    resident = make_sweep(tiny_checkpoint("pre"), num_layers=num_layers)
    whole = swept_bits(resident, tokens)
    stored = Decoder.stored_layer
    monkeypatch.setattr(Decoder, "stored_layer", lambda self, i: reads.append(i) or stored(self, i))
    streamed = make_sweep(tiny_checkpoint("pre"), num_layers=num_layers, resident=False)
    for number, shard in enumerate([slice(2), slice(2, None)], start=1):
        for found, expected in zip(swept_bits(streamed, tokens[shard]), whole, strict=True):
            assert (found == expected[:, shard]).all()
        end = time.monotonic() + 10
        while len(reads) <= number * num_layers and time.monotonic() < end:
            time.sleep(0.01)
    assert reads == [*range(num_layers), *range(num_layers), 0]
    layer_bytes = 4 * Decoder(Checkpoint(tiny_checkpoint("pre"))).shape.layer_weights
    assert resident.layers.bytes_read == num_layers * layer_bytes  # once, however many shards


def test_first_layers_alone_give_the_same_bits(tiny_checkpoint, tiny_model, order):
    tokens = models.random_tokens(3, 16, seed=4)
    all_layers = swept_bits(make_sweep(tiny_checkpoint(order)), tokens)
    first = swept_bits(make_sweep(tiny_checkpoint(order), num_layers=2), tokens)
    assert len(first) == 2
    for a, b in zip(first, all_layers, strict=False):
        assert (a == b).all()


def test_bitmaps_of_first_layers_only(tiny_checkpoint, tiny_model):
    tokens = models.random_tokens(3, 16, seed=4)
    records = list(make_sweep(tiny_checkpoint("pre"), num_bitmaps=1)(tokens))
    assert [record.bitmap is None for record in records] == [False, True, True]


def test_embeddings_on_the_device_change_no_bit(tiny_checkpoint, order):
    tokens = models.random_tokens(5, 16, seed=4)
    rows = swept_bits(make_sweep(tiny_checkpoint(order)), tokens)
    whole = swept_bits(make_sweep(tiny_checkpoint(order), table_on_device=True), tokens)
    for a, b in zip(rows, whole, strict=True):
        assert (a == b).all()


def test_numbers_are_looked_at_once_a_shard(tiny_checkpoint, monkeypatch):
    """Each look is a pass over memory: the last layer's alone shows all that went wrong before."""
    looks = []
    for name in ("aminmax", "isfinite"):
        look = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *a, look=look, **k: (looks.append(look), look(*a, **k))[1]
        )
    list(make_sweep(tiny_checkpoint("pre"))(models.random_tokens(11, 16, seed=4)))
    assert len(looks) == 2 * 3  # three batches


@pytest.mark.parametrize("sequences", [255, 256])
def test_position_counts_are_as_narrow_as_they_are_stored(sequences, tiny_checkpoint):
    tokens = models.random_tokens(sequences, 8, seed=4)
    for record in make_sweep(tiny_checkpoint("pre"))(tokens):
        assert record.position_counts.dtype == (np.uint8 if sequences < 256 else np.uint16)
        unpacked = bits.unpack(record.bitmap, 8)
        assert (record.position_counts == unpacked.sum(axis=1).T).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_not_a_number_is_never_counted(layer, value, tmp_path):
    tokens = models.random_tokens(7, 16, seed=5)
    damaged = models.tiny_opt("pre", seed=0)
    rare = int(tokens[5, 3])
    others = np.arange(7) != 5
    tokens[others] = np.where(tokens[others] == rare, rare - 1, tokens[others])
    with torch.no_grad():
        if layer == 0:
            damaged.model.decoder.embed_tokens.weight[rare] = value
        elif layer == 1:
            damaged.model.decoder.layers[1].fc2.bias[3] = value
        else:  # only the last layer's fc1 is wrong
            damaged.model.decoder.layers[2].fc1.bias[3] = value
    models.save_checkpoint(damaged, tmp_path)
    with pytest.raises(UserError, match=f"NaN or infinity in layer {layer}, ") as caught:
        list(make_sweep(tmp_path)(tokens, "shard 4"))
    if layer == 0:
        assert "sequence 5 of shard 4" in str(caught.value)


def test_a_shard_that_fails_is_held_once(tmp_path, monkeypatch):
    """On a GPU with room for one, the message was that there is too little memory."""
    damaged = models.tiny_opt("pre", seed=0)
    with torch.no_grad():
        damaged.model.decoder.layers[1].fc2.bias[3] = float("nan")
    models.save_checkpoint(damaged, tmp_path)
    embed, held = Sweep._embedded, []

    def noted(sweep, tokens):
        assert not any(hidden() is not None for hidden in held)
        hidden = embed(sweep, tokens)
        held.append(weakref.ref(hidden))
        return hidden

    monkeypatch.setattr(Sweep, "_embedded", noted)
    with pytest.raises(UserError, match="NaN or infinity in layer 1"):
        list(make_sweep(tmp_path)(models.random_tokens(7, 16, seed=5)))
    assert len(held) == 2


def test_the_first_product_is_not_measured(monkeypatch):
    """On a GPU it loads cuBLAS, and nothing else was measured in that time."""
    now, costs = [0.0], iter([1.0])

    def mm(*_, **__):
        now[0] += next(costs, 1e-3)
        return torch.empty(0)

    monkeypatch.setattr(worker.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch, "mm", mm)
    flops = worker.matmul_flops(torch.float32, torch.device("cpu"))
    assert flops == pytest.approx(2 * worker.MATMUL_SIDE["cpu"] ** 3 / 1e-3)


@pytest.mark.parametrize(
    ("setting", "layers", "expected"),
    [
        ("all", 12, 12),
        ("first_half", 12, 6),
        ("first_half", 3, 1),
        ("first_half", 1, 1),
        ("none", 12, 0),
        (4, 12, 4),
        ("4", 12, 4),
    ],
)
def test_first_layers(setting, layers, expected):
    assert num_first_layers(setting, layers, "collect.layers") == expected


@pytest.mark.parametrize("setting", ["half", 13, -1, "-1"])
def test_first_layers_that_are_none(setting):
    with pytest.raises(UserError, match=r"collect\.layers=.*at most 12"):
        num_first_layers(setting, 12, "collect.layers")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and -m gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gpu_equals_the_planted_truth(dtype, planted_checkpoint, planted_corpus):
    from helpers import planted

    tokens, _ = planted_corpus
    sweep = make_sweep(planted_checkpoint, dtype=dtype, device=torch.device("cuda"))
    for layer, found in enumerate(swept_bits(sweep, tokens)):
        assert (found == planted.expected_bits(layer, tokens)).all()


def test_a_run_folder_that_this_machine_does_not_see(tmp_path):
    """The log was opened first: a FileNotFoundError, and no word of what to do."""
    with pytest.raises(UserError, match=r"none does not exist.* looked for it: on a cluster"):
        ShardWorker(str(tmp_path / "none"), ModelSettings(), None)
