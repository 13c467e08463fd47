"""Files that others made, damaged or meant ill: one line each, and nothing made or lost."""

import json
import shutil
import struct

import numpy as np
import pytest
from helpers.desk import FAILED, WRONG_SETTINGS, edit_config

from neuronstats.reduce.ngram_cache import NgramStore
from neuronstats.store.run import Run

EITHER = (FAILED, WRONG_SETTINGS)
JSON = {
    "empty": b"",
    "not JSON": b"{ not json",
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "a number": b"7",
    "null": b"null",
    "a list": b"[]",
    "nothing in it": b"{}",
    "text": b'"text"',
    "deep": b"[" * 100_000,
    "a long number": b"9" * 5000,
    "NaN": b"NaN",
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("damage", JSON)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_json_of_a_checkpoint(name, damage, text_desk):
    (text_desk.checkpoint / name).write_bytes(JSON[damage])
    text_desk.fails(EITHER, settings=text_desk.settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"num_attention_heads": "many"},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": None},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 2.5},
        {"hidden_size": None},
        {"hidden_size": -32},
        {"vocab_size": "320"},
        {"vocab_size": 1 << 70},
        {"vocab_size": 0},
        {"eos_token_id": []},
        {"eos_token_id": "x"},
        {"eos_token_id": 99999},
        {"bos_token_id": 99999},
        {"bos_token_id": -1},
        {"bos_token_id": [2]},
        {"bos_token_id": "<s>"},
        {"activation_function": "nope"},
        {"activation_function": None},
        {"max_position_embeddings": 0},
        {"max_position_embeddings": -5},
        {"ffn_dim": 0},
        {"word_embed_proj_dim": 7},
        {"do_layer_norm_before": "perhaps"},
        {"model_type": 7},
        {"model_type": None},
        {"model_type": ["opt"]},
        {"quantization_config": []},
        {"auto_map": 7, "model_type": "own"},
        {"architectures": 7},
        {"dtype": "nope"},
    ],
    ids=str,
)
def test_values_of_config_json(changes, text_desk):
    """Refused, or of no matter: then the run is as without them."""
    edit_config(text_desk.checkpoint, **changes)
    text_desk.fails_or_works(EITHER, settings=text_desk.settings)


def header(content, *, length=None):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(data) if length is None else length) + data


WEIGHT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
SAFETENSORS = {
    "empty": b"",
    "7 bytes": b"1234567",
    "no header": header(b""),
    "header of 2^63": header({}, length=1 << 63),
    "header past the end": header({}, length=1000),
    "header not JSON": header(b"{ not json"),
    "header a list": header([]),
    "no weights": header({}),
    "a weight that is text": header({"w": "x"}),
    "no offsets": header({"w": {"dtype": "F32", "shape": [2]}}) + bytes(8),
    "offsets past the end": header({"w": {**WEIGHT, "data_offsets": [0, 800]}}) + bytes(8),
    "offsets backwards": header({"w": {**WEIGHT, "data_offsets": [8, 0]}}) + bytes(8),
    "negative shape": header({"w": {**WEIGHT, "shape": [-2]}}) + bytes(8),
    "unknown type": header({"w": {**WEIGHT, "dtype": "F31"}}) + bytes(8),
    "other weights": header({"w": WEIGHT}) + bytes(8),
    "integers": header({"model.decoder.embed_tokens.weight": {**WEIGHT, "dtype": "I32"}})
    + bytes(8),
}


@pytest.mark.parametrize("damage", SAFETENSORS)
def test_safetensors(damage, text_desk):
    (text_desk.checkpoint / "model.safetensors").write_bytes(SAFETENSORS[damage])
    text_desk.fails(EITHER, settings=text_desk.settings)


INDEXES = [
    {"weight_map": {"model.decoder.embed_tokens.weight": "/etc/passwd"}},
    {"weight_map": {"model.decoder.embed_tokens.weight": "../other/model.safetensors"}},
    {"weight_map": {"model.decoder.embed_tokens.weight": 7}},
    {"weight_map": {"model.decoder.embed_tokens.weight": ""}},
    {"weight_map": {"model.decoder.embed_tokens.weight": "."}},
    {"weight_map": {"model.decoder.embed_tokens.weight": "gone.safetensors"}},
    {"weight_map": {}},
    {"weight_map": []},
    {"weight_map": None},
    {"weight_map": "model.safetensors"},
    {},
    [],
    7,
]


@pytest.mark.parametrize("content", INDEXES, ids=str)
def test_index_of_weights(content, text_desk):
    shutil.copy(text_desk.checkpoint / "model.safetensors", text_desk.folder / "other.safetensors")
    (text_desk.checkpoint / "model.safetensors").unlink()
    path = text_desk.checkpoint / "model.safetensors.index.json"
    path.write_text(json.dumps(content))
    text_desk.fails(EITHER, settings=text_desk.settings)


def npy(text, data=b"", version=b"\x01\x00"):
    head = text.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(head)) + head + data


GOOD = "{'descr': '<i8', 'fortran_order': False, 'shape': (2, 16), }"
ARRAYS = {
    "empty": b"",
    "magic alone": b"\x93NUMPY",
    "version 9": npy(GOOD, bytes(256), b"\x09\x00"),
    "header cut": npy(GOOD)[:20],
    "header code": npy("__import__('os').abort()"),
    "header a list": npy("[]"),
    "header that goes on": npy("{'descr': '<i8', 'shape': \0"),
    "no shape": npy("{'descr': '<i8', 'fortran_order': False}"),
    "negative shape": npy(GOOD.replace("(2, 16)", "(-2, 16)"), bytes(256)),
    "huge shape": npy(GOOD.replace("(2, 16)", f"({1 << 40}, 16)"), bytes(256)),
    "shape past 64 bits": npy(GOOD.replace("(2, 16)", f"({1 << 70}, 16)"), bytes(256)),
    "shape of text": npy(GOOD.replace("(2, 16)", "'ab'"), bytes(256)),
    "unknown type": npy(GOOD.replace("<i8", "<i9"), bytes(256)),
    "records": npy(GOOD.replace("'<i8'", "[('a', '<i8')]"), bytes(256)),
    "objects": npy(GOOD.replace("<i8", "|O"), b"\x80\x04N."),
    "strings": npy(GOOD.replace("<i8", "<U2"), bytes(256)),
    "data cut": npy(GOOD, bytes(100)),
    "complex": npy(GOOD.replace("<i8", "<c16"), bytes(512)),
    "a zip": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("damage", ARRAYS)
def test_npy(damage, desk):
    desk.tokens.with_suffix(".domains.txt").unlink()
    desk.tokens.write_bytes(ARRAYS[damage])
    desk.fails(EITHER, desk.tokens.name, settings=desk.settings)


LINES = {
    "a.jsonl": [b"7\n", b"null\n", b"[]\n", b"NaN\n", b'{"text": null}\n', b'{"text": ["x"]}\n',
                b"\x00\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"text": "\\ud800"}\n',
                b'{"text": ' + b"9" * 5000 + b"}\n"],
    "a.parquet": [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1",
                  b"PAR1" + b"\xff" * 100 + b"\xff\xff\xff\x7fPAR1"],
    "a.txt": [b"\x00", b"\xed\xa0\x80", b"\xff"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data"),
    [(name, data) for name, found in LINES.items() for data in found],
    ids=lambda value: str(value)[:30],
)
def test_text_files(name, data, text_desk):
    (text_desk.folder / name).write_bytes(data)
    settings = [*text_desk.model, "data=local", f"data.path={name}", f"run={text_desk.run}"]
    text_desk.fails(EITHER, settings=settings)


RUN_FILES = ["run.yaml", "activations.zarr/records/00001.json", "activations.zarr/zarr.json",
             "activations.zarr/bitmaps/000/zarr.json", "tables/manifest.json",
             "tables/neurons.parquet", "tables/positions.zarr/zarr.json"]  # fmt: skip


@pytest.mark.parametrize("damage", JSON)
@pytest.mark.parametrize("name", RUN_FILES)
def test_files_of_a_run(name, damage, done):
    """Every job that reads one refuses it; reduce replaces tables without a look at them."""
    assert (done.run / name).exists()
    (done.run / name).write_bytes(JSON[damage])
    if name == "activations.zarr/zarr.json":  # any group will do: its arrays say the rest
        done.fails_or_works(EITHER, settings=[f"run={done.run}"], job="reduce")
    elif not name.startswith("tables/"):
        done.fails(EITHER, settings=[f"run={done.run}"], job="reduce")
    else:
        done.fails(EITHER, settings=[f"runs=[{done.run}]"], job="report")


def test_ngrams_are_numbered_anew(done):
    """N-grams only save time: damaged ones are made again."""
    (commit, *_) = sorted(done.run.glob("ngrams/*/1.json"))
    good, run = commit.read_bytes(), Run.open(str(done.run))
    for data in JSON.values():
        commit.write_bytes(data)
        NgramStore(run, run.layout.shards).prepare([1, 2, 3])  # as reduce begins
        assert commit.read_bytes() == good


@pytest.mark.parametrize("seed", range(40))
def test_random_damage(seed, done):
    """A flip, a cut or an insertion anywhere in a file that reduce reads, from a seed."""
    rng = np.random.default_rng(seed)
    names = [name for name in RUN_FILES if not name.startswith("tables/")]
    path = done.run / names[seed % len(names)]
    data = bytearray(path.read_bytes())
    at = int(rng.integers(len(data)))
    kind = seed // len(names) % 3
    if kind == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[at:]
    else:
        data[at:at] = rng.bytes(3)
    path.write_bytes(data)
    done.fails_or_works(EITHER, settings=[f"run={done.run}"], job="reduce")
