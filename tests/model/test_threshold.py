"""Gates compared with another threshold than 0: bits, sums, tables; where it is refused."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import families, serial
from helpers.hooked import hooked, sign_cases
from transformers import AutoModelForCausalLM

from neuronstats import bits
from neuronstats.bits import quantities
from neuronstats.collect.job import collect
from neuronstats.collect.sweep import Sweep
from neuronstats.errors import SettingsError
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.report.figures.frame import NamedRun
from neuronstats.report.page.html import key_numbers
from neuronstats.store.reduced import ReducedRun
from neuronstats.store.run import Run

SEQUENCES, POSITIONS, BATCH = 5, 11, 2
UP = {"llama": "mlp.up_proj", "gpt2": None}


def model_of(name, folder):
    kind, settings, activation, down = families.FAMILIES[name]
    model = families.build(kind, settings)
    model.save_pretrained(folder)
    return model, activation, down


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0.3, -0.2])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_bits_and_sums_are_those_of_its_own_forward(name, threshold, dtype, tmp_path):
    _, activation, down = model_of(name, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    tokens = np.random.default_rng(1).integers(3, families.VOCABULARY, (SEQUENCES + 1, POSITIONS))
    tokens[-1] = tokens[0]  # what a batch is filled up with
    own = hooked(model, activation, down, UP[name], tokens, BATCH)
    limit = torch.tensor(threshold, dtype=dtype).item()
    for resident in (True, False):
        sweep = Sweep(
            Checkpoint(tmp_path),
            num_layers=len(own),
            num_bitmaps=len(own),
            batch_sequences=BATCH,
            dtype=dtype,
            device=torch.device("cpu"),
            resident=resident,
            sum_tokens=np.array([5, 7]),
            threshold=threshold,
        )
        for record, here in zip(sweep(tokens[:-1]), own, strict=True):
            compare(record, here, limit, gated=UP[name] is not None)


def compare(record, here, limit, *, gated):
    """Bits, counts and sums of a layer with what hooks have seen there."""
    g, a, u = (here[key][:-1].astype(np.float64) for key in "gau")
    is_open = g > limit
    assert (is_open != (g > 0)).sum() > 10
    found = bits.unpack(record.bitmap, POSITIONS)
    np.testing.assert_array_equal(found, is_open.transpose(2, 0, 1))
    np.testing.assert_array_equal(record.position_counts, is_open.sum(0))
    is_open, a, positive = is_open[:, 1:], a[:, 1:], u[:, 1:] > 0  # without position 0
    rows = dict(zip(quantities.names(gated=gated), record.sums, strict=True))
    fixed = np.rint(abs(a) * 2**24).astype(np.int64)
    np.testing.assert_array_equal(rows["absolute_open"], (fixed * is_open).sum((0, 1)))
    np.testing.assert_array_equal(rows["absolute"], fixed.sum((0, 1)))
    cases = sign_cases(is_open, positive, gated=gated)
    for case, where in cases.items():
        np.testing.assert_array_equal(rows[case], where.sum((0, 1)))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model, activation, down = model_of("llama", folder / "model")
    tokens = np.random.default_rng(3).integers(3, families.VOCABULARY, (SEQUENCES, POSITIONS))
    file = serial.save_tokens(folder / "tokens.npy", tokens, ["a"] * SEQUENCES)
    [layer, *_] = hooked(model, activation, down, UP["llama"], tokens, SEQUENCES)
    return folder / "model", file, layer["g"]


def stored(monkeypatch, inputs, run, **settings):
    fixed = {"collect__batch_sequences": SEQUENCES, "collect__bitmaps": "all"}
    job = serial.collect_job(run, *inputs[:2], **fixed, **settings)
    with serial.serial(monkeypatch):
        assert collect(job, serial.quiet()) == 0
    return Run.open(str(run))


def test_tables_and_page_say_it(inputs, tmp_path, monkeypatch):
    run = stored(monkeypatch, inputs, tmp_path, collect__threshold=1.5)
    assert run.info["identity"]["collect.threshold"] == 1.5
    assert run.about.threshold == 1.5
    with serial.serial(monkeypatch):
        assert reduce(ReduceJob(run=str(tmp_path)), serial.quiet()) == 0
    neurons = pq.read_table(tmp_path / "tables" / "neurons.parquet")
    is_open = inputs[2] > 1.5
    assert neurons["activations"].to_pylist()[: families.NEURONS] == is_open.sum((0, 1)).tolist()
    never = neurons["never_open"].to_pylist()[: families.NEURONS]
    assert never == (~is_open.any((0, 1))).tolist()
    assert any(never)
    reduced = ReducedRun(str(tmp_path))
    assert reduced.metadata["threshold"] == 1.5
    assert "never open: no gate above 1.5, which is not dead" in key_numbers(NamedRun("x", reduced))
    with pytest.raises(SettingsError, match=r"threshold: the run has 1\.5, asked for is 0\.0"):
        stored(monkeypatch, inputs, tmp_path)


def test_zero_is_what_runs_were_before(inputs, tmp_path, monkeypatch):
    plain = stored(monkeypatch, inputs, tmp_path / "plain")
    given = stored(monkeypatch, inputs, tmp_path / "given", collect__threshold=-0.0)
    assert "collect.threshold" not in plain.info["identity"]
    assert plain.fingerprint == given.fingerprint
    assert plain.info["layout"] == given.info["layout"]
    assert [r.objects for r in plain.records().values()] == [
        r.objects for r in given.records().values()
    ]
    with serial.serial(monkeypatch):
        assert reduce(ReduceJob(run=str(tmp_path / "plain")), serial.quiet()) == 0
    assert "threshold" not in ReducedRun(str(tmp_path / "plain")).metadata
    with pytest.raises(SettingsError, match=r"threshold: the run has 0\.0, asked for is 0\.5"):
        stored(monkeypatch, inputs, tmp_path / "plain", collect__threshold=0.5)


@pytest.mark.parametrize("name", ["opt", "llama_relu", "nemotron"])
def test_where_the_function_says_what_is_activated_it_is_refused(
    name, inputs, tmp_path, monkeypatch
):
    model_of(name, tmp_path / "model")
    with pytest.raises(SettingsError, match=r"collect\.threshold=0\.1: .* is 0 exactly where"):
        stored(monkeypatch, (tmp_path / "model", inputs[1]), tmp_path / "r", collect__threshold=0.1)
    assert not (tmp_path / "r").exists()
