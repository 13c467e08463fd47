"""What a sweep sums beside the bits, against the model's own forward with hooks; and its store."""

import itertools

import numpy as np
import pytest
import torch
from helpers import families, serial
from helpers.hooked import hooked, sign_cases
from transformers import AutoModelForCausalLM

from neuronstats import bits
from neuronstats.bits import quantities
from neuronstats.collect.job import collect
from neuronstats.collect.sweep import Sweep
from neuronstats.errors import SettingsError, UserError
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.store.run import Run

BATCH, SEQUENCES, POSITIONS = 2, 5, 11
SOME = (5, 7, 9)
NAMES = ("llama", "phi3", "llama_relu", "gemma2", "gpt2", "mpt", "falcon_rw")
UP = {"phi3": "mlp.gate_up_proj"}


CASES = [(name, 0.0, torch.float32) for name in NAMES]
CASES += itertools.product(("llama", "gpt2"), (0.3, -0.2), (torch.float32, torch.bfloat16))


@pytest.mark.parametrize(("name", "threshold", "dtype"), CASES)
def test_bits_and_sums_are_those_of_its_own_forward(name, threshold, dtype, tmp_path):
    kind, settings, activation, down = families.FAMILIES[name]
    families.build(kind, settings).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    gated = name not in ("gpt2", "mpt", "falcon_rw")
    up = UP.get(name, "mlp.up_proj") if gated else None
    tokens = np.random.default_rng(1).integers(3, families.VOCABULARY, (SEQUENCES, POSITIONS))
    full = np.concatenate([tokens, tokens[:1]])  # what a batch is filled up with
    wanted = hooked(model, activation, down, up, full, BATCH)
    limit = torch.tensor(threshold, dtype=dtype).item()
    for resident in (True, False):
        sweep = Sweep(
            Checkpoint(tmp_path),
            num_layers=len(wanted),
            num_bitmaps=len(wanted),
            batch_sequences=BATCH,
            dtype=dtype,
            device=torch.device("cpu"),
            resident=resident,
            sum_tokens=np.array(SOME),
            threshold=threshold,
        )
        for record, want in zip(sweep(tokens), wanted, strict=True):
            g, a, u = (want[key][:SEQUENCES].astype(np.float64) for key in "gau")
            is_open = g > limit
            assert not threshold or (is_open != (g > 0)).sum() > 10
            found = bits.unpack(record.bitmap, POSITIONS)
            np.testing.assert_array_equal(found, is_open.transpose(2, 0, 1))
            np.testing.assert_array_equal(record.position_counts, is_open.sum(0))
            is_open, a, positive = is_open[:, 1:], a[:, 1:], u[:, 1:] > 0  # without position 0
            fixed = np.rint(a * 2**24).astype(np.int64)
            rows = dict(zip(quantities.names(gated=gated), record.sums, strict=True))
            for case, where in sign_cases(is_open, positive, gated=gated).items():
                np.testing.assert_array_equal(rows[case], where.sum((0, 1)))
            np.testing.assert_array_equal(rows["sum"], fixed.sum((0, 1)))
            np.testing.assert_array_equal(rows["absolute"], abs(fixed).sum((0, 1)))
            np.testing.assert_array_equal(rows["absolute_open"], (abs(fixed) * is_open).sum((0, 1)))
            np.testing.assert_array_equal(rows["maximum"], abs(fixed).max((0, 1)))
            squares = rows["square_high"] / 2**8 + rows["square_low"] / 2**40
            np.testing.assert_allclose(squares, (a**2).sum((0, 1)))
            for token, own in zip(SOME, record.token_sums, strict=True):
                here = (tokens[:, 1:] == token)[..., None]
                np.testing.assert_array_equal(own, (fixed * here).sum((0, 1)))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    kind, settings, _, _ = families.FAMILIES["llama"]
    families.build(kind, settings).save_pretrained(folder / "model")
    tokens = np.random.default_rng(3).integers(3, families.VOCABULARY, (9, 16))
    domains = ["a"] * 4 + ["b"] * 5
    file = serial.save_tokens(folder / "tokens.npy", tokens, domains)
    return folder / "model", file


def stored(monkeypatch, inputs, run, *, reverse=False, **settings):
    job = serial.collect_job(run, *inputs, **{"collect__batch_sequences": 2, **settings})
    with serial.serial(monkeypatch, reverse):
        assert collect(job, serial.quiet()) == 0
    return Run.open(str(run))


def merged(run, kind, layer):
    everything = slice(0, run.layout.num_neurons)
    parts = [p for _, p in run.read_sums(kind, layer, everything, run.layout.shards)]
    total = np.zeros_like(parts[0])
    for part in parts:
        if kind == "sums":
            quantities.merge(total, part)
        else:
            total += part
    return total


def test_shards_of_any_length_in_any_order_have_the_same_sums(inputs, tmp_path, monkeypatch):
    one = stored(monkeypatch, inputs, tmp_path / "1", collect__shard_sequences=2)
    back = stored(monkeypatch, inputs, tmp_path / "2", collect__shard_sequences=2, reverse=True)
    other = stored(monkeypatch, inputs, tmp_path / "3", collect__shard_sequences=5)
    for kind in ("sums", "token_sums"):
        for layer in range(one.layout.num_layers):
            assert (merged(one, kind, layer) == merged(other, kind, layer)).all()
    assert [r.objects for r in one.records().values()] == [
        r.objects for r in back.records().values()
    ]
    keys = one.records()[0].objects
    assert {key.split("/")[0] for key in keys} >= {"sums", "token_sums", "position_counts"}
    ids, counts = np.unique(np.load(inputs[1]), return_counts=True)
    order = sorted(zip(-counts, ids, strict=True))
    wanted = [int(token) for _, token in order if token != 2]
    assert list(one.layout.sum_tokens) == wanted  # fewer than 256: all, most frequent first


def test_open_gates_are_those_of_the_bits(inputs, tmp_path, monkeypatch):
    run = stored(monkeypatch, inputs, tmp_path / "run")
    for layer in range(run.layout.num_layers):
        counts = sum(
            c[1:] for _, c in run.read_position_counts(layer, slice(None), run.layout.shards)
        )
        total = merged(run, "sums", layer)
        assert (total[0] + total[1] == counts.sum(0)).all()
        assert (total[:4].sum(0) == 9 * 15).all()


def test_no_sums_where_they_are_not_asked_for(inputs, tmp_path, monkeypatch):
    run = stored(monkeypatch, inputs, tmp_path / "run", collect__sums=False)
    assert not run.layout.sums
    assert "sums" not in run.info["layout"]
    names = {path.name for path in (tmp_path / "run" / "activations.zarr").iterdir()}
    assert {"sums", "token_sums"}.isdisjoint(names)
    with pytest.raises(SettingsError, match=r"collect\.sum_tokens: the run has None, asked.*256"):
        stored(monkeypatch, inputs, tmp_path / "run")
    kept = stored(monkeypatch, inputs, tmp_path / "kept", collect__sum_tokens=3)
    assert len(kept.layout.sum_tokens) == 3
    with pytest.raises(SettingsError, match=r"collect\.sum_tokens: the run has 3, asked.*None"):
        stored(monkeypatch, inputs, tmp_path / "kept", collect__sums=False)


def test_values_beyond_what_adds_up_exactly_are_refused(tmp_path, monkeypatch, inputs):
    kind, settings, _, _ = families.FAMILIES["llama"]
    model = families.build(kind, settings)
    with torch.no_grad():
        families.layers_of(model)[1].mlp.up_proj.weight *= 1e6
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"layer 1 of shard 1 .* hands on .*collect\.sums=false"):
        stored(monkeypatch, (tmp_path / "model", inputs[1]), tmp_path / "run")
