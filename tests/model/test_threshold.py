"""Gates compared with another threshold than 0: tables; where it is refused."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import families, serial
from helpers.hooked import hooked

from neuronstats.collect.job import collect
from neuronstats.errors import SettingsError
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.report.figures.frame import NamedRun
from neuronstats.report.page.html import key_numbers
from neuronstats.store.reduced import ReducedRun
from neuronstats.store.run import Run

SEQUENCES, POSITIONS = 5, 11


def model_of(name, folder):
    kind, settings, activation, down = families.FAMILIES[name]
    model = families.build(kind, settings)
    model.save_pretrained(folder)
    return model, activation, down


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model, activation, down = model_of("llama", folder / "model")
    tokens = np.random.default_rng(3).integers(3, families.VOCABULARY, (SEQUENCES, POSITIONS))
    file = serial.save_tokens(folder / "tokens.npy", tokens, ["a"] * SEQUENCES)
    [layer, *_] = hooked(model, activation, down, "mlp.up_proj", tokens, SEQUENCES)
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
