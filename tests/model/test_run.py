"""A model of another family through the jobs: collect, reduce; BOS or none; long models."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import families, models, oracle, serial

from neuronstats.collect.inspect import inspect, read_text
from neuronstats.collect.job import collect
from neuronstats.corpus.packing import read_corpus
from neuronstats.corpus.settings import DataSettings
from neuronstats.corpus.tokenizer import first_token, load_tokenizer
from neuronstats.errors import SettingsError
from neuronstats.reduce.compare import summary
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.report.figures.catalogue import all_figures
from neuronstats.report.figures.frame import NamedRun
from neuronstats.report.notebook import LoadedRun
from neuronstats.report.page.html import key_numbers
from neuronstats.store import tables
from neuronstats.store.run import Run

NUM_SEQUENCES, NUM_POSITIONS = 4, 16


@dataclass
class Gated:
    """A run of a SiLU model whose tokenizer prepends nothing, and its gates' signs by layer."""

    folder: Path
    fires: list[np.ndarray]
    """Of each layer, bool [neuron, sequence, position]."""

    def table(self, name):
        return pq.read_table(self.folder / "tables" / f"{name}.parquet")


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gated")
    kind, settings, activation, _ = families.FAMILIES["qwen3"]
    model = families.build(kind, {**settings, "bos_token_id": None})
    gate = families.layers_of(model)[1].mlp.gate_proj
    with torch.no_grad():
        gate.weight[7] = 0  # its gate is never above 0
    model.save_pretrained(folder / "model")
    rng = np.random.default_rng(1)
    tokens = rng.integers(2, families.VOCABULARY, (NUM_SEQUENCES, NUM_POSITIONS))
    file = serial.save_tokens(folder / "tokens.npy", tokens)
    job = serial.collect_job(folder / "run", folder / "model", file, collect__bitmaps="all")
    with pytest.MonkeyPatch.context() as patch, serial.serial(patch):
        assert collect(job, serial.quiet()) == 0
        assert reduce(ReduceJob(run=str(folder / "run")), serial.quiet()) == 0
    gates, _ = families.seen(model, activation, tokens, NUM_SEQUENCES)
    return Gated(folder / "run", [(gate > 0).transpose(2, 0, 1) for gate in gates])


def test_a_gated_model_without_a_begin_of_sequence_token(gated):
    run = Run.open(str(gated.folder))
    about = run.info["model"]
    assert about["bos_token_id"] is None
    assert run.about.bos_id == about["separator_id"] == 2
    activation = about["activation"]
    assert (activation["name"], activation["gated"]) == ("SiLUActivation", True)
    assert not activation["exact_zeros"]
    table = gated.table("neurons")
    counts = np.concatenate([fires.sum((1, 2)) for fires in gated.fires])
    assert table["activations"].to_numpy().tolist() == counts.tolist()
    assert table["suppresses"].null_count == len(table)


def test_what_never_opened_is_not_called_dead(gated):
    counts = np.concatenate([fires.sum((1, 2)) for fires in gated.fires])
    table, layers, curve = map(gated.table, ("neurons", "layers", "dead_curve"))
    assert table["never_open"].to_pylist() == (counts == 0).tolist()
    assert table["never_open"][families.NEURONS + 7].as_py()
    by_layer = [int((fires.sum((1, 2)) == 0).sum()) for fires in gated.fires]
    assert layers["never_open"].to_pylist() == by_layer
    assert layers["never_open_share"].to_pylist() == [n / families.NEURONS for n in by_layer]
    total = NUM_SEQUENCES * NUM_POSITIONS
    assert layers["never_open_frequency_bound"].to_pylist() == [3 / total] * len(by_layer)
    opened = [
        fires.sum() / total / (len(fires) - n)
        for fires, n in zip(gated.fires, by_layer, strict=True)
    ]
    np.testing.assert_allclose(layers["open_frequency"].to_numpy(), opened)
    assert curve["never_open"].to_pylist() == by_layer  # of one shard
    names = {
        n for name in ("neurons", "layers", "dead_curve") for n in gated.table(name).schema.names
    }
    assert not {n for n in names if n.startswith(("dead", "alive"))}
    named = NamedRun("a", LoadedRun(str(gated.folder)))
    numbers = key_numbers(named)
    assert [n for n in numbers if n.startswith("never open")]
    assert not [n for n in numbers if n.startswith(("dead", "a dead"))]
    assert summary(named.run, "a")["never_open_share"] == sum(by_layer) / len(table)
    figures = {drawing.name: drawing for drawing in all_figures([named])}
    assert "can be dead" in figures["1a"].reason
    assert len(figures["contributions"].figure.axes[0].lines) == 2
    assert figures["dead_curve"].title == "Never-open neurons against tokens seen"


def test_position_zero_is_left_out(gated):
    table, domains = gated.table("neurons"), gated.table("domains")
    assert tables.table_metadata(table)["first_position"] == 1
    neurons = [row for fires in gated.fires for row in fires.tolist()]
    wanted = [oracle.position_information([row[1:] for row in rows]) for rows in neurons]
    np.testing.assert_allclose(table["position_mi"].to_numpy(), wanted, atol=1e-12)
    bias = (NUM_POSITIONS - 2) / (2 * NUM_SEQUENCES * (NUM_POSITIONS - 1))
    corrected = np.array(wanted) - bias
    np.testing.assert_allclose(table["position_mi_corrected"].to_numpy(), corrected, atol=1e-12)
    np.testing.assert_allclose(domains["position_mi"].to_numpy(), wanted, atol=1e-12)
    numbers = key_numbers(NamedRun("a", LoadedRun(str(gated.folder))))
    assert "attention sink" in numbers["positions"].value


def tokenizer_of(folder, *, prepends):
    tokenizer = models.save_tokenizer if prepends else models.save_word_tokenizer
    tokenizer(folder, *([] if prepends else [models.VOCABULARY]))
    return load_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("prepends", "setting", "always", "expected"),
    [
        (True, "auto", False, models.BOS),
        (False, "auto", False, None),
        (False, "auto", True, models.BOS),
        (False, "true", False, models.BOS),
        (True, "false", True, None),
    ],
)
def test_sequences_start_as_the_tokenizer_does(prepends, setting, always, expected, tmp_path):
    tokenizer = tokenizer_of(tmp_path, prepends=prepends)
    assert first_token(tokenizer, setting, models.BOS, always=always) == expected


def test_without_a_first_token_a_sequence_is_all_text(tmp_path):
    tokenizer_of(tmp_path, prepends=False)
    (tmp_path / "text.txt").write_text(" ".join(f"w{i}" for i in range(3, 35)))
    found = {}
    for bos in ("true", "false"):
        data = DataSettings(
            name="t", kind="local", path=str(tmp_path / "text.txt"), sequence_length=8, bos=bos
        )
        found[bos] = read_corpus(
            data,
            tokenizer=str(tmp_path),
            revision=None,
            bos_id=models.BOS,
            separator_id=models.BOS,
            vocab_size=models.VOCABULARY,
            max_positions=64,
        )
    assert found["true"].tokens[0].tolist() == [2, *range(3, 10)]
    assert found["false"].tokens[0].tolist() == list(range(3, 11))
    assert (found["true"].bos_id, found["false"].bos_id) == (2, None)


def test_a_long_model_needs_a_length(tmp_path):
    kind, settings, _, _ = families.FAMILIES["llama"]
    model = families.build(kind, {**settings, "max_position_embeddings": 131072})
    model.save_pretrained(tmp_path / "model")
    job = serial.collect_job(tmp_path / "run", tmp_path / "model", tmp_path / "none.npy")
    job.data = DataSettings()
    with pytest.raises(SettingsError, match=r"sequence_length is not set.*131072 positions"):
        read_text(inspect(job, lambda line: None))
