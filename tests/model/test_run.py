"""A model of another family through the jobs: collect, reduce; BOS or none; long models."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import families, models, oracle, serial

from neuronstats.collect.inspect import inspect, read_text
from neuronstats.collect.job import collect
from neuronstats.corpus.packing import load_tokenizer, read_corpus
from neuronstats.corpus.settings import DataSettings
from neuronstats.corpus.tokenizer import first_token
from neuronstats.errors import SettingsError
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.report.figures.frame import NamedRun
from neuronstats.report.notebook import LoadedRun
from neuronstats.report.page.html import key_numbers
from neuronstats.store import tables
from neuronstats.store.run import Run


def test_a_gated_model_without_a_begin_of_sequence_token(tmp_path, monkeypatch):
    kind, settings, activation, _ = families.FAMILIES["qwen3"]
    model = families.build(kind, {**settings, "bos_token_id": None})
    model.save_pretrained(tmp_path / "model")
    tokens = np.random.default_rng(1).integers(2, families.VOCABULARY, (4, 16))
    file = serial.save_tokens(tmp_path / "tokens.npy", tokens)
    job = serial.collect_job(tmp_path / "run", tmp_path / "model", file, collect__bitmaps="all")
    with serial.serial(monkeypatch):
        assert collect(job, serial.quiet()) == 0
        assert reduce(ReduceJob(run=str(tmp_path / "run")), serial.quiet()) == 0
    run = Run.open(str(tmp_path / "run"))
    about = run.info["model"]
    assert about["bos_token_id"] is None
    assert run.about.bos_id == about["separator_id"] == 2
    name, gated = about["activation"]["name"], about["activation"]["gated"]
    assert (name, gated, about["activation"]["exact_zeros"]) == ("SiLUActivation", True, False)
    gates, _ = families.seen(model, activation, tokens, 4)
    table = pq.read_table(tmp_path / "run" / "tables" / "neurons.parquet")
    counts = np.concatenate([(gate > 0).sum((0, 1)) for gate in gates])
    assert table["activations"].to_numpy().tolist() == counts.tolist()
    assert table["suppresses"].null_count == len(table)
    assert tables.table_metadata(table)["first_position"] == 1
    fires = [row for gate in gates for row in (gate > 0).transpose(2, 0, 1).tolist()]
    wanted = [oracle.position_information([row[1:] for row in neuron]) for neuron in fires]
    np.testing.assert_allclose(table["position_mi"].to_numpy(), wanted, atol=1e-12)
    corrected = np.array(wanted) - 14 / (2 * 4 * 15)
    np.testing.assert_allclose(table["position_mi_corrected"].to_numpy(), corrected, atol=1e-12)
    domains = pq.read_table(tmp_path / "run" / "tables" / "domains.parquet")
    np.testing.assert_allclose(domains["position_mi"].to_numpy(), wanted, atol=1e-12)
    numbers = key_numbers(NamedRun("a", LoadedRun(str(tmp_path / "run"))))
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
