"""Bad input to the jobs: the message, the exit code, and that nothing is made or lost."""

import contextlib
import importlib.util
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from helpers import models
from helpers.desk import (
    DONE,
    FAILED,
    GB,
    INTERRUPTED,
    WRONG_SETTINGS,
    contents,
    cut,
    edit_config,
)
from helpers.serial import SerialPool, save_tokens

# Settings: exit code 2, before anything is looked at.

SAMPLE_DATA = "local, paper, sample, tokens"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model=opt-99", ["model=opt-99", "choose one of ", "opt-66b", "opt-mini"]),
        ("data=nope", ["data=nope", SAMPLE_DATA]),
        ("ray=nope", ["ray=nope", "cluster, local"]),
        ("data.pth=x", ["data.pth", "did you mean data.path?", "data.packing"]),
        ("+data.pth=x", ["data.pth", "did you mean data.path?"]),
        ("modle=opt-mini", ["modle", "did you mean model?", "collect, ray, run, plan, repair"]),
        ("data.max_tokens=abc", ["data.max_tokens=abc", "Integer", "Take whole sequences"]),
        ("plan=perhaps", ["plan=perhaps", "Print what it would take"]),
        ("model.dtype=float64", ["model.dtype=float64", "float32", "bfloat16"]),
        ("collect.shard_sequences=abc", ["collect.shard_sequences=abc", "a number from 1"]),
        ("collect.shard_sequences=0", ["collect.shard_sequences=0", "a number from 1"]),
        ("run=a(1)", ["run=a(1)", "cannot be read", "quotes"]),
        ("model=local", ["model.path is not set", "a hub id"]),
        ("model.path=nope", ["model.path=nope does not exist", "config.json"]),
        ("data=tokens", ["data.path", ".npy"]),
        ("data.path=x", ["data.path=x", "data=local"]),
        ("data.packing=tight", ["data.packing=tight", "concat, document"]),
        ("data.sequence_length=1", ["data.sequence_length=1", "2 or more"]),
        ("ray.workers=0", ["ray.workers=0", "a number from 1"]),
        ("ray.address=foo", ["ray.address=foo", "HOST:PORT"]),
        ("run=", ["run='': expected a folder"]),
    ],
)
def test_settings_that_cannot_be_meant(desk, override, words):
    desk.fails(WRONG_SETTINGS, *words, settings=[override])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("collect.layers=99", ["collect.layers=99", "at most 3"]),
        ("collect.layers=0", ["collect.layers=0", "no layer"]),
        ("collect.bitmaps=most", ["collect.bitmaps=most", "first_half"]),
        ("data.max_tokens=15", ["data.max_tokens=15", "one sequence of 16"]),
        ("data.sequence_length=12", ["data.sequence_length=12", "16 tokens"]),
        ("data.sequence_length=65", ["data.sequence_length=65", "64 positions"]),
        ("ray.workers=1000", ["ray.workers=1000", "cores", "lower"]),
        ("ray.cpus_per_worker=1000", ["1000 cores", "lower"]),
    ],
)
def test_settings_that_this_model_or_machine_cannot_have(desk, override, words):
    desk.fails(WRONG_SETTINGS, *words, settings=[*desk.settings, override])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ["run= is missing", "run folder"]),
        (["run=nope"], ["nope does not exist", "folder of a run"]),
        (["run=."], ["holds no run", "jobs/collect.py"]),
        (["run=tokens.npy"], ["tokens.npy is a file"]),
        (["run=.", "reduce.cover_share=2"], ["cover_share=2", "at most 1"]),
        (["run=.", "reduce.detect_rate=often"], ["reduce.detect_rate=often", "Float"]),
        (["run=.", "reduce.ngrams=[0]"], ["ngrams=[0]", "at least 1"]),
        (["run=.", "reduce.max_cover={1: 0}"], ["max_cover", "n=1"]),
        (["run=.", "reduce.min_count=0"], ["min_count=0", "at least 1"]),
        (["run=.", "reduce.min_count=" + "9" * 20], ["reduce.min_count=999", "at most 42949"]),
        (["run="], ["run='': expected a run folder"]),
        (["runs=[A,A/]"], ["runs=['A', 'A/']: expected different runs"]),
        (["run=.", "reduce.positional_mi=-1"], ["positional_mi=-1", "from 0 to 1"]),
        (
            ["run=.", "reduce.covershare=1"],
            ["reduce.covershare", "did you mean reduce.cover_share?"],
        ),
    ],
)
def test_reduce_settings(desk, overrides, words):
    desk.fails(WRONG_SETTINGS, *words, settings=overrides, job="reduce")


@pytest.mark.parametrize("port", [-1, 65536])
def test_ports(desk, port):
    words = [f"port={port}: expected a number from 0 to 65535"]
    desk.fails(WRONG_SETTINGS, *words, settings=[f"port={port}", "runs=[x]"], job="report")


# Models.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 4}, ["lacks the weight", "layers.3.", "complete"]),
        ({"ffn_dim": 96}, ["fc1.weight has shape (100, 32)", "(96, 32)"]),
        ({"num_attention_heads": 5}, ["config.json cannot be used", "num_heads"]),
        ({"vocab_size": 99}, ["embed_tokens.weight has shape (320, 32)", "(99, 32)"]),
        ({"max_position_embeddings": 128}, ["embed_positions.weight has shape (66, 32)"]),
    ],
)
def test_configurations_that_are_not_understood(desk, own_checkpoint, changes, words):
    (own_checkpoint / "code.py").write_text("raise SystemExit('code of the model was run')")
    edit_config(own_checkpoint, **changes)
    desk.fails(FAILED, *words, settings=desk.settings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "t5"}, ["type 't5'", "OPT"]),
        ({"model_type": "my_own"}, ["type 'my_own'"]),
        ({"model_type": "my_own", "auto_map": {"AutoConfig": "code.Own"}}, ["code of its own"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantised", "gptq"]),
    ],
)
def test_models_that_are_refused(desk, own_checkpoint, changes, words):
    (own_checkpoint / "code.py").write_text("raise SystemExit('code of the model was run')")
    edit_config(own_checkpoint, **changes)
    desk.fails(WRONG_SETTINGS, *words, settings=desk.settings)


def test_folders_that_are_no_checkpoint(desk, own_checkpoint):
    (own_checkpoint / "config.json").write_text("{ not json")
    desk.fails(FAILED, "config.json cannot be read", settings=desk.settings)
    (own_checkpoint / "config.json").unlink()
    desk.fails(FAILED, own_checkpoint, "no config.json", settings=desk.settings)
    desk.checkpoint = desk.tokens
    desk.fails(WRONG_SETTINGS, "tokens.npy is a file", "a folder", settings=desk.settings)


def test_missing_and_damaged_weights(desk, own_checkpoint):
    weights = own_checkpoint / "model.safetensors"
    cut(weights)
    desk.fails(FAILED, weights, "truncated", settings=desk.settings)
    weights.write_bytes(b"")
    desk.fails(FAILED, weights, "truncated", settings=desk.settings)
    weights.unlink()
    desk.fails(FAILED, "no weights", "model.safetensors", settings=desk.settings)


def test_missing_file_of_an_index(desk, tiny_checkpoint):
    desk.checkpoint = desk.folder / "sharded"
    shutil.copytree(tiny_checkpoint("pre", layout="safetensors_sharded"), desk.checkpoint)
    (desk.checkpoint / "model-00002-of-00003.safetensors").unlink()
    words = ["lacks model-00002-of-00003.safetensors", "model.safetensors.index.json"]
    desk.fails(FAILED, *words, settings=desk.settings)
    (desk.checkpoint / "model.safetensors.index.json").write_text("{}")
    desk.fails(FAILED, "index.json cannot be read", settings=desk.settings)


class Trap:
    """Unpickled without care, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_pickles(desk, tiny_checkpoint):
    desk.checkpoint = shutil.copytree(tiny_checkpoint("pre", layout="bin"), desk.folder / "bin")
    weights = desk.checkpoint / "pytorch_model.bin"
    cut(weights)
    desk.fails(FAILED, weights, "truncated", settings=desk.settings)
    trap = Trap(desk.folder / "sprung")
    torch.save({"model.decoder.embed_tokens.weight": trap}, weights)
    desk.fails(FAILED, weights, "more than weights", settings=desk.settings)
    weights.write_bytes(pickle.dumps(trap, protocol=2))  # the way of old files
    desk.fails(FAILED, weights, settings=desk.settings)
    torch.save({0: torch.zeros(2)}, weights)
    desk.fails(FAILED, weights, "no dictionary of tensors", settings=desk.settings)


def test_hub_that_gives_nothing(desk, monkeypatch):
    def refuse(*args, **settings):
        raise OSError("no connection\nand more lines")

    monkeypatch.setattr("neuronstats.model.source.snapshot_download", refuse)
    desk.checkpoint = "facebook/opt-99"
    words = ["model.path=facebook/opt-99", "the hub did not give it (no connection)"]
    err = desk.fails(FAILED, *words, settings=desk.settings)
    assert "more lines" not in err


# Tokens.


def tokens_with(value):
    tokens = models.random_tokens(4, 16)
    tokens[2, 5] = value
    return tokens


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (tokens_with(320), ["token id 320 at [2, 5]", "0 to 319"]),
        (tokens_with(-1), ["token id -1 at [2, 5]", "0 to 319"]),
        (np.zeros((4, 16)), ["float64", "integers [sequence, position]"]),
        (np.zeros(16, np.int64), ["shape [16]", "integers [sequence, position]"]),
        (np.zeros((0, 16), np.int64), ["[0, 16]", "not one sequence"]),
        (np.zeros((2, 65), np.int64), ["65 tokens", "64 positions"]),
        (np.array([["a"]], object), ["objects"]),
    ],
    ids=["above", "below", "floats", "flat", "none", "long", "objects"],
)
def test_arrays(desk, array, words):
    desk.tokens.with_suffix(".domains.txt").unlink()
    np.save(desk.tokens, array, allow_pickle=True)
    desk.fails(FAILED, desk.tokens, *words, settings=desk.settings)


def test_files_that_are_no_array(desk):
    domains = desk.tokens.with_suffix(".domains.txt")
    domains.write_text("a\nb\n")
    desk.fails(FAILED, domains, "2 lines for 8 sequences", settings=desk.settings)
    cut(desk.tokens)
    desk.fails(FAILED, desk.tokens, "cut short", settings=desk.settings)
    desk.tokens.write_bytes(b"")
    desk.fails(FAILED, desk.tokens, "not an .npy file", settings=desk.settings)
    desk.tokens.unlink()
    desk.fails(WRONG_SETTINGS, desk.tokens, "no such file", settings=desk.settings)


# Text.

NESTED = json.dumps({"text": {"a": "long" * 1_250_000}}).encode()  # not to be printed whole


@pytest.mark.parametrize(
    ("name", "data", "code", "words"),
    [
        ("a.txt", b"", FAILED, ["no text", "all of them empty"]),
        ("a.txt", b" \n\t\n", FAILED, ["no text", "all of them empty"]),
        ("a.txt", b"abc \xff\xfe", FAILED, ["byte 0xff at offset 4", "UTF-8", "iconv"]),
        ("a.txt", b"short", FAILED, ["too little text", "63 tokens", "data.sequence_length"]),
        ("a.jsonl", b'{"body": "x"}\n', FAILED, ["no column 'text'", "body", "data.text"]),
        ("a.jsonl", b'{"text": "x"}\n{"text"', FAILED, ["a.jsonl, line 2", "not JSON"]),
        ("a.jsonl", b'{"text": 7}\n', FAILED, ["line 1", "int 7, not text"]),
        ("a.jsonl", NESTED, FAILED, ["line 1", "dict {'a': ", "not text"]),
        ("a.parquet", b"PAR1 and so on", FAILED, ["a.parquet", "broken or cut short"]),
        ("a.pdf", b"%PDF", WRONG_SETTINGS, ["no file ends in .txt", "a.pdf"]),
    ],
)
def test_text(desk, name, data, code, words):
    (desk.folder / name).write_bytes(data)
    settings = [*desk.model, "data=local", f"data.path={name}", f"run={desk.run}"]
    desk.fails(code, *words, settings=settings)


def test_text_that_is_not_there(desk):
    (desk.folder / "empty").mkdir()
    base = [*desk.model, "data=local"]
    for path, word in (("nope.txt", "no such file"), ("empty", "nothing"), ("*.jsonl", "nothing")):
        settings = [*base, f"data.path={path}"]
        desk.fails(WRONG_SETTINGS, f"data.path={path}", word, settings=settings)
    pq.write_table(pa.table({"text": ["x"]}), desk.folder / "a.parquet")
    settings = [*base, "data.path=a.parquet", "data.domain=topic"]
    desk.fails(FAILED, "no column 'topic'", "text", settings=settings)


def test_tokenizer_of_another_model(desk, own_checkpoint):
    models.save_word_tokenizer(own_checkpoint, 1000)
    (desk.folder / "a.txt").write_text("w7 w999 w8 " * 100)
    settings = [*desk.model, "data=local", "data.path=a.txt"]
    desk.fails(FAILED, "token id 999", "0 to 319", "another model", settings=settings)
    (own_checkpoint / "tokenizer.json").unlink()
    desk.fails(FAILED, "no tokenizer", "data=tokens", settings=settings)


# The run folder.


def test_run_folder_that_is_none(desk):
    desk.run = desk.tokens
    desk.fails(WRONG_SETTINGS, desk.tokens, "is a file", settings=desk.settings)
    desk.run = desk.folder
    words = ["other files (", "tokens.npy", "new or empty folder"]
    desk.fails(WRONG_SETTINGS, *words, settings=desk.settings)
    desk.run = desk.tokens / "below"
    desk.fails(FAILED, "cannot create", desk.run, settings=desk.settings)


def test_read_only_disk(desk, collected, disk):
    folder = disk("size=20m")
    shutil.copytree(collected.run, folder / "run")
    disk("remount", "ro")
    desk.run = folder / "new"
    desk.fails(FAILED, desk.run, "read-only", "choose another folder", settings=desk.settings)
    desk.run = folder / "run"
    desk.fails(FAILED, desk.run, "Read-only", settings=[f"run={desk.run}"], job="reduce")
    desk.fails(FAILED, desk.run, "Read-only", settings=desk.settings)


def test_full_disk(desk, collected, disk, monkeypatch):
    monkeypatch.setattr("neuronstats.collect.job.free_disk_bytes", lambda path: 1000)
    words = ["does not fit here", "disk: ", " needed, 1 kB may be used"]
    desk.fails(WRONG_SETTINGS, *words, settings=desk.settings)
    monkeypatch.setattr("neuronstats.collect.job.free_disk_bytes", lambda path: None)
    folder = disk("size=48k")
    desk.run = folder / "run"
    made = []
    for size in range(48, 400, 32):  # while the run is made, and while its shards are written
        disk("remount", f"size={size}k")
        code, _, err = desk.job("collect", *desk.settings)
        if code == DONE:
            break
        assert code == FAILED
        assert "defect" not in err
        for word in ("cannot write", str(desk.run), "No space left", "the disk is full"):
            assert word in err
        made.append((desk.run / "run.yaml").exists())
    assert set(made) == {False, True}
    disk("remount", "size=40m")
    assert desk.job("collect", *desk.settings)[0] == DONE
    name = "activations.zarr"
    assert contents(desk.run / name) == contents(collected.run / name)


def test_full_disk_under_reduce(desk, collected, disk):
    desk.run = shutil.copytree(collected.run, disk("size=2m") / "run")
    before = contents(desk.run)
    filler = desk.run.parent / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    words = ["cannot ", desk.run, "No space left", "the disk is full"]
    desk.fails(FAILED, *words, settings=[f"run={desk.run}"], job="reduce")
    filler.unlink()
    assert desk.job("reduce", f"run={desk.run}")[0] == DONE
    assert contents(desk.run).keys() == before.keys()


def test_run_of_other_settings(done):
    settings = [*done.settings, "collect.layers=2", "collect.shard_sequences=4"]
    words = ["made by other settings", "collect.layers: the run has 3, asked for is 2"]
    words += ["collect.shard_sequences: the run has 3, asked for is 4", "run="]
    err = done.fails(WRONG_SETTINGS, *words, settings=settings)
    assert "data." not in err
    assert "model." not in err
    save_tokens(done.tokens, models.random_tokens(8, 16, seed=1))
    err = done.fails(WRONG_SETTINGS, "data.content: tokens.npy has changed", settings=done.settings)
    assert "collect." not in err


def test_run_of_another_column(desk):
    rows = {"text": ["one text " * 200], "other": ["another one " * 200]}
    pq.write_table(pa.table(rows), desk.folder / "a.parquet")
    settings = [*desk.model, "data=local", "data.path=a.parquet", "run=run"]
    assert desk.job("collect", *settings)[0] == DONE
    words = ["data.text: the run has 'text', asked for is 'other'"]
    desk.fails(WRONG_SETTINGS, *words, settings=[*settings, "data.text=other"])


LOCK = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("process 7 on elsewhere")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


def test_two_jobs_on_one_run(done):
    held = [sys.executable, "-c", LOCK, str(done.run / "run.lock")]
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        words = ["another job is working on", done.run, "process 7 on elsewhere", "stop it"]
        done.fails(FAILED, *words, settings=done.settings)
        done.fails(FAILED, *words, settings=[f"run={done.run}"], job="reduce")
        other.communicate()
    assert done.job("collect", *done.settings)[0] == DONE


def test_run_yaml_damaged_or_gone(done):
    path = done.run / "run.yaml"
    info = yaml.safe_load(path.read_text())
    both = (("collect", done.settings), ("reduce", [f"run={done.run}"]))
    for text, word in (
        (yaml.safe_dump({**info, "format": 99}), "format 99"),
        (yaml.safe_dump({"format": info["format"]}), "damaged (fingerprint is gone)"),
        ("a: [", "damaged"),
        ("", "damaged"),
    ):
        path.write_text(text)
        for job, settings in both:
            done.fails(FAILED, done.run, word, settings=settings, job=job)
    path.unlink()
    words = ["committed shards", "run.yaml is gone", "put it back"]
    done.fails(FAILED, *words, settings=done.settings)


def objects(run, kind):
    """The stored objects of a kind of array, largest first."""
    files = (run / "activations.zarr" / kind).rglob("*")
    found = [path for path in files if path.is_file() and path.name != "zarr.json"]
    return sorted(found, key=lambda path: -path.stat().st_size)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["bitmaps", "position_counts"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [(flip, "has changed"), (cut, "committed were"), (Path.unlink, "is missing")],
)
def test_committed_bytes_that_changed(done, kind, damage, reason):
    good = contents(done.run)
    path = objects(done.run, kind)[0]
    damage(path)
    name = path.relative_to(done.run)
    words = ["shard ", name, reason, "repair=true"]
    done.fails(FAILED, *words, settings=done.settings)
    done.fails(FAILED, "shard ", "repair=true", settings=[f"run={done.run}"], job="reduce")
    code, out, err = done.job("collect", *done.settings, "repair=true")
    assert (code, err) == (DONE, "")
    assert "repairing shard " in out
    assert contents(done.run) == good


def test_parts_of_the_store_that_changed(done):
    tokens = objects(done.run, "tokens")[0]
    kept = tokens.read_bytes()
    flip(tokens)
    settings = [f"run={done.run}"]
    done.fails(FAILED, "activations.zarr/tokens", "repair=true", settings=settings, job="reduce")
    tokens.write_bytes(kept)
    record = done.run / "activations.zarr" / "records" / "00001.json"
    cut(record)
    for job, chosen in (("reduce", settings), ("collect", done.settings)):
        done.fails(FAILED, "00001.json is damaged", "repair=true", settings=chosen, job=job)
    record.unlink()
    meta = done.run / "activations.zarr" / "bitmaps" / "000" / "zarr.json"
    meta.unlink()
    words = ["bitmaps/000", "metadata"]
    done.fails(FAILED, *words, settings=[*settings, "partial=true"], job="reduce")
    done.fails(FAILED, *words, settings=done.settings)


# What is found out on the way.


@pytest.mark.parametrize("layer", [1, 2])
def test_weights_that_are_not_finite(desk, layer, tmp_path, monkeypatch):
    from neuronstats.cluster import start as cluster

    damaged = models.tiny_opt("pre")
    with torch.no_grad():
        damaged.model.decoder.layers[layer].fc1.weight[5, 7] = float("nan")
    desk.checkpoint = tmp_path / "damaged"
    models.save_checkpoint(damaged, desk.checkpoint)
    if layer == 1:  # once with Ray, which carries the error from its worker
        monkeypatch.setattr("neuronstats.collect.job.connect", cluster.connect)
    code, _, err = desk.job("collect", *desk.settings)
    assert code == FAILED, err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for word in (f"NaN or infinity in layer {layer}, sequence 0 of shard 0", "model.dtype"):
        assert word in err
    assert not list((desk.run / "activations.zarr" / "records").glob("*"))
    desk.fails(FAILED, "3 of 3 shards (100 %)", settings=[f"run={desk.run}"], job="reduce")
    settings = [f"run={desk.run}", "partial=true"]
    desk.fails(FAILED, "3 of 3 shards (100 %)", settings=settings, job="reduce")


def machine(**changes):
    from neuronstats.machine import Machine

    have = {"cores": 2, "host_bytes": 64 * GB, "gpus": 0, "gpu_bytes": 0}
    return lambda: Machine(**{**have, **changes})


def test_more_memory_than_there_is(desk, monkeypatch):
    monkeypatch.setattr("neuronstats.collect.job.probe", machine(host_bytes=GB // 8))
    words = ["does not fit here", "host memory", "needed", "may be used", "largest part"]
    desk.fails(WRONG_SETTINGS, *words, settings=desk.settings)


def test_gpu_that_is_not_there(desk, monkeypatch):
    monkeypatch.setattr("neuronstats.collect.job.probe", machine())
    words = ["1 GPUs each do not fit", "0 GPUs", "ray.gpus_per_worker lower"]
    desk.fails(WRONG_SETTINGS, *words, settings=[*desk.settings, "ray.gpus_per_worker=1"])


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "auto"])
def test_ray_that_is_not_there(desk, monkeypatch, address):
    from neuronstats.cluster import start as cluster

    monkeypatch.setattr("neuronstats.collect.job.connect", cluster.connect)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # what auto finds: a cluster that has ended
    words = [f"ray.address={address} cannot be reached", "ray start --head"]
    if address.startswith("ray://") and importlib.util.find_spec("grpc") is None:
        words = [f"ray.address={address} needs Ray's client", "pip install"]
    desk.fails(FAILED, *words, settings=[*desk.settings, f"ray.address={address}"])


def test_unfinished_run(done):
    whole = pq.read_table(done.run / "tables" / "neurons.parquet")
    (done.run / "activations.zarr" / "records" / "00001.json").unlink()
    words = ["1 of 3 shards (33 %) are missing", "collect again", "partial=true"]
    done.fails(FAILED, *words, settings=[f"run={done.run}"], job="reduce")
    code, out, err = done.job("reduce", f"run={done.run}", "partial=true")
    assert (code, err) == (DONE, "")
    assert "2 of 3 shards (partial)" in out
    part = pq.read_table(done.run / "tables" / "neurons.parquet")
    marks = [json.loads(table.schema.metadata[b"neuronstats"]) for table in (whole, part)]
    assert [mark["complete"] for mark in marks] == [True, False]
    assert [mark["shards"] for mark in marks] == [3, 2]
    assert part["tokens"][0].as_py() < whole["tokens"][0].as_py()


class StoppedPool(SerialPool):
    """The user asks to stop after the first task."""

    def run(self, make, args, tasks, tick=lambda: None):
        yield from super().run(make, args, tasks[:1], tick)


def test_interrupted(desk, collected, monkeypatch):
    @contextlib.contextmanager
    def connect(settings, tell):
        yield StoppedPool()

    with monkeypatch.context() as patch:
        patch.setattr("neuronstats.collect.job.connect", connect)
        patch.setattr("neuronstats.reduce.job.connect", connect)
        code, out, err = desk.job("collect", *desk.settings)
        assert (code, err) == (INTERRUPTED, "")
        assert "2 shards are left. The same command goes on" in out
    code, out, _ = desk.job("collect", *desk.settings)
    assert code == DONE
    assert "1 of 3 shards are committed already" in out
    name = "activations.zarr"
    assert contents(desk.run / name) == contents(collected.run / name)


def test_interrupted_at_once(done, monkeypatch):
    def stop(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("neuronstats.collect.job.connect", stop)
    monkeypatch.setattr("neuronstats.reduce.job.connect", stop)
    (done.run / "activations.zarr" / "records" / "00001.json").unlink()
    before = contents(done.run)
    for job, chosen in (
        ("collect", done.settings),
        ("reduce", ["partial=true", f"run={done.run}"]),
    ):
        code, _, err = done.job(job, *chosen)
        assert code == INTERRUPTED
        assert "what was committed stays" in err
        assert contents(done.run) == before


# What only tells.


def test_plan_makes_nothing(desk):
    before = contents(desk.folder)
    for settings in ([*desk.settings, "plan=true"], ["plan=true"]):
        code, out, err = desk.job("collect", *settings)
        assert (code, err) == (DONE, "")
        for word in ("tokens", "layers", "host memory", "disk", "FLOP"):
            assert word in out
        assert contents(desk.folder) == before


def test_plan_fetches_no_weights(desk, own_checkpoint, monkeypatch):
    (own_checkpoint / "model.safetensors").unlink()
    asked = []

    def give(name, revision, allow_patterns):
        asked.append((name, allow_patterns))
        return str(own_checkpoint)

    monkeypatch.setattr("neuronstats.model.source.snapshot_download", give)
    code, out, err = desk.job("collect", "model=opt-66b", "data=paper", "plan=true")
    assert (code, err) == (DONE, "")
    assert "about 20M" in out
    assert [name for name, _ in asked] == ["facebook/opt-66b"]
    assert not any("safetensors" in pattern or ".bin" in pattern for pattern in asked[0][1])
    assert not (desk.folder / "runs").exists()


def test_what_does_not_fit_is_refused_before_the_weights_are_fetched(
    desk, own_checkpoint, monkeypatch
):
    (own_checkpoint / "model.safetensors").unlink()
    asked = []

    def give(name, revision, allow_patterns):
        asked.append(allow_patterns)
        return str(own_checkpoint)

    monkeypatch.setattr("neuronstats.model.source.snapshot_download", give)
    monkeypatch.setattr("neuronstats.collect.job.probe", machine(host_bytes=GB // 8))
    settings = ["model=opt-125m", *desk.settings[2:]]
    desk.fails(WRONG_SETTINGS, "does not fit here", "host memory", settings=settings)
    assert len(asked) == 1
    assert not any("safetensors" in pattern or ".bin" in pattern for pattern in asked[0])
