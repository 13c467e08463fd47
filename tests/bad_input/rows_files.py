"""Models, tokens and text that cannot be used."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bad_input.cases import in_file, table
from helpers import models
from helpers.desk import FAILED, WRONG_SETTINGS, cut, edit_config

# A model's files: of a copy of the checkpoint.


def config(**changes):
    def change(desk):
        (desk.checkpoint / "code.py").write_text("raise SystemExit('code of the model was run')")
        edit_config(desk.checkpoint, **changes)

    return change


def change_file(name, change):
    def damage(desk):
        change(desk.checkpoint / name)

    return damage


def sharded(lost, index=None):
    """Lay down a checkpoint in several files without one, or with an index of this text."""

    def damage(desk):
        shutil.rmtree(desk.checkpoint)
        models.save_checkpoint(
            models.tiny_opt("pre"), desk.checkpoint, layout="safetensors_sharded"
        )
        if index is None:
            (desk.checkpoint / lost).unlink()
        else:
            (desk.checkpoint / "model.safetensors.index.json").write_text(index)

    return damage


class Trap:
    """Unpickled without care, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def binary(write):
    """Lay down a checkpoint of pickles, whose file is then written so."""

    def damage(desk):
        shutil.rmtree(desk.checkpoint)
        models.save_checkpoint(models.tiny_opt("pre"), desk.checkpoint, layout="bin")
        write(desk.checkpoint / "pytorch_model.bin", Trap(desk.folder / "sprung"))

    return damage


def trap_among_weights(path, trap):
    torch.save({"model.decoder.embed_tokens.weight": trap}, path)


def old_pickle(path, trap):
    path.write_bytes(pickle.dumps(trap, protocol=2))


def no_names(path, trap):
    torch.save({0: torch.zeros(2)}, path)


def checkpoint_is_a_file(desk):
    desk.checkpoint = desk.tokens


def other_tokenizer(desk):
    models.save_word_tokenizer(desk.checkpoint, 1000)
    (desk.folder / "a.txt").write_text("w7 w999 w8 " * 100)


def no_tokenizer(desk):
    other_tokenizer(desk)
    (desk.checkpoint / "tokenizer.json").unlink()


MODELS = [
    ("", "lacks the weight model.decoder.layers.3.", "complete", config(num_hidden_layers=4)),
    ("", "fc1.weight has shape (100, 32)", "(96, 32)", config(ffn_dim=96)),
    ("", "config.json cannot be used", "num_heads", config(num_attention_heads=5)),
    ("", "embed_tokens.weight has shape (320, 32)", "(99, 32)", config(vocab_size=99)),
    ("", "embed_positions.weight has shape (66, 32)", "(130, 32)",
     config(max_position_embeddings=128)),
    ("", "config.json cannot be read", "JSON",
     change_file("config.json", lambda path: path.write_text("{ not json"))),
    ("", "no config.json", "checkpoint", change_file("config.json", Path.unlink)),
    ("", "model.safetensors", "truncated", change_file("model.safetensors", cut)),
    ("", "model.safetensors", "truncated",
     change_file("model.safetensors", lambda path: path.write_bytes(b""))),
    ("", "no weights", "model.safetensors", change_file("model.safetensors", Path.unlink)),
    ("", "lacks model-00002-of-00003.safetensors", "model.safetensors.index.json",
     sharded("model-00002-of-00003.safetensors")),
    ("", "index.json cannot be read", "weight_map", sharded("", "{}")),
    ("", "pytorch_model.bin", "truncated", binary(lambda path, trap: cut(path))),
    ("", "pytorch_model.bin", "more than weights", binary(trap_among_weights)),
    ("", "pytorch_model.bin", "more than weights", binary(old_pickle)),
    ("", "pytorch_model.bin", "no dictionary of tensors", binary(no_names)),
]  # fmt: skip
REFUSED_MODELS = [
    ("", "type 't5'", "OPT", config(model_type="t5")),
    ("", "type 'my_own'", "OPT", config(model_type="my_own")),
    ("", "code of its own", "take auto_map out",
     config(model_type="my_own", auto_map={"AutoConfig": "code.A"})),
    ("", "gptq", "quantised", config(quantization_config={"quant_method": "gptq"})),
    ("", "tokens.npy is a file", "a folder", checkpoint_is_a_file),
]  # fmt: skip
TOKENIZERS = [
    ("data.path=a.txt", "token id 999", "another model", other_tokenizer),
    ("data.path=a.txt", "no tokenizer", "data=tokens", no_tokenizer),
]

# Arrays of tokens.


def tokens_with(value):
    tokens = models.random_tokens(4, 16)
    tokens[2, 5] = value
    return tokens


def array(values):
    def save(desk):
        desk.tokens.with_suffix(".domains.txt").unlink()
        np.save(desk.tokens, values, allow_pickle=True)

    return save


def domains(text):
    return lambda desk: desk.tokens.with_suffix(".domains.txt").write_bytes(text)


ARRAYS = [
    ("", "token id 320 at [2, 5]", "0 to 319", array(tokens_with(320))),
    ("", "token id -1 at [2, 5]", "0 to 319", array(tokens_with(-1))),
    ("", "float64", "integers [sequence, position]", array(np.zeros((4, 16)))),
    ("", "complex128", "integers [sequence, position]", array(np.zeros((4, 16), complex))),
    ("", "bool", "integers [sequence, position]", array(np.zeros((4, 16), bool))),
    ("", "shape [16]", "integers [sequence, position]", array(np.zeros(16, np.int64))),
    ("", "[2, 2, 16]", "integers [sequence, position]", array(np.zeros((2, 2, 16), np.int64))),
    ("", "[0, 16]", "not one sequence", array(np.zeros((0, 16), np.int64))),
    ("", "[4, 0]", "not one sequence", array(np.zeros((4, 0), np.int64))),
    ("", "65 tokens", "64 positions; cut them", array(np.zeros((2, 65), np.int64))),
    ("", "objects", "cut short", array(np.array([["a"]], object))),
    ("", "tokens.npy", "cut short", lambda desk: cut(desk.tokens)),
    ("", "tokens.npy", "numpy.save", in_file("tokens.npy", b"")),
    ("", "2 lines for 8 sequences", "one domain a line", domains(b"a\nb\n")),
    ("", "line 2 is empty", "give a domain on each", domains(b"a\n\nb\n" + b"c\n" * 5)),
    ("", "domains.txt", "UTF-8", domains(b"\xff\n" * 8)),
]

# Text.

NESTED = json.dumps({"text": {"a": "long" * 1_250_000}}).encode()  # not to be printed whole


def parquet(desk):
    pq.write_table(pa.table({"text": ["x"]}), desk.folder / "a.parquet")


def rows_of_text(*rows):
    return [(f"data.path={name}", *words, in_file(name, data)) for name, data, *words in rows]


TEXT = rows_of_text(
    ("a.txt", b"", "all of them empty", "no text"),
    ("a.txt", b" \n\t\n", "all of them empty", "no text"),
    ("a.txt", b"abc \xff\xfe", "byte 0xff at offset 4", "iconv"),
    ("a.txt", b"short", "63 tokens", "data.sequence_length"),
    ("a.jsonl", b'{"body": "x"}\n', "no column 'text'", "data.text"),
    ("a.jsonl", b'{"text": "x"}\n{"text"', "a.jsonl, line 2", "JSON"),
    ("a.jsonl", b'{"text": 7}\n', "line 1", "int 7, not text"),
    ("a.jsonl", b"[1]\n", "got [1]", "expected an object"),
    ("a.jsonl", NESTED, "dict {'a': ", "not text"),
    ("a.parquet", b"PAR1 and so on", "a.parquet", "broken or cut short"),
)
NO_TEXT = [
    ("data.path=a.pdf", "a.pdf", "no file ends in .txt", in_file("a.pdf", b"%PDF")),
    ("data.path=nope.txt", "data.path=nope.txt", "no such file"),
    ("data.path=empty", "data.path=empty", "nothing", lambda desk: (desk.folder / "empty").mkdir()),
    ("data.path=*.jsonl", "data.path=*.jsonl", "nothing"),
]
NO_COLUMN = [
    (["data.path=a.parquet", "data.domain=topic"], "no column 'topic'", "text", parquet),
    (["data.path=a.parquet", "data.text=body.plain"], "no column 'body.plain'", "text", parquet),
]


def out_and_text(desk):
    (desk.folder / "out").mkdir()
    (desk.folder / "a.jsonl").write_text('{"text": "x"}\n')


TRAINING = [
    (["data=local", "data.path=no.jsonl", "out={out}"], "no.jsonl", "no such file"),
]
TRAINING_TEXT = [
    (["data=local", "data.path=a.jsonl", "out={out}", "data.text=speech"], "'speech'", "data.text",
     out_and_text),
]  # fmt: skip

CASES = [
    *table("collect", FAILED, MODELS, base="good"),
    *table("collect", WRONG_SETTINGS, REFUSED_MODELS, base="good"),
    *table("collect", FAILED, TOKENIZERS, base="text"),
    *table("collect", FAILED, ARRAYS, base="good"),
    *table("collect", WRONG_SETTINGS,
           [("", "tokens.npy", "no such file", lambda desk: desk.tokens.unlink())], base="good"),
    *table("collect", FAILED, TEXT, base="text"),
    *table("collect", WRONG_SETTINGS, NO_TEXT, base="text"),
    *table("collect", FAILED, NO_COLUMN, base="text"),
    *table("train", WRONG_SETTINGS, TRAINING),
    *table("train", FAILED, TRAINING_TEXT),
]  # fmt: skip
