"""All that parses foreign bytes: which file holds them, and what reads it.

tools/fuzz.py makes such bytes, bad_input/test_corpus.py reads those that it has found.
"""

import contextlib
import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from helpers import models
from helpers.reported import run_file

from neuronstats.check.job import find_damage
from neuronstats.corpus.corpus import load_npy
from neuronstats.corpus.files import read_documents
from neuronstats.corpus.token_texts import TokenTexts
from neuronstats.corpus.tokenizer import load_tokenizer
from neuronstats.errors import UserError
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.decoder import Decoder, check_weights
from neuronstats.store import manifest
from neuronstats.store.reduced import ReducedRun
from neuronstats.store.run import Run


def read_model(folder):
    """A checkpoint up to its weights."""
    decoder = Decoder(Checkpoint(folder))
    check_weights(decoder, decoder.shape.num_layers)
    for name in decoder.checkpoint.names():
        decoder.checkpoint.tensor(name)


def read_tokenizer(folder):
    """A tokenizer, and a text by it there and back."""
    ids = load_tokenizer(str(folder))("a text").input_ids
    TokenTexts(folder)(ids)


def read_run(folder):
    """All that a run says of itself, and every object that collect has written."""
    run = Run.open(str(folder))
    for name in ("model", "training", "bos_id", "identity"):
        getattr(run.about, name)
    find_damage(run)
    run.records()
    run.corpus()
    run.read_bits(0, slice(0, 2), run.layout.shards)


def read_tables(folder):
    """All tables of a run, whose manifest says that they are what was written."""
    path = folder / "tables" / "manifest.json"
    with contextlib.suppress(Exception):  # else it is the checksum alone that is tried
        content = json.loads(path.read_bytes())
        content.pop("checksum", None)
        content["checksum"] = manifest._own_checksum(content)
        path.write_text(json.dumps(content))
    run = ReducedRun(str(folder))
    run.verify_tables()
    run.position_counts(0, slice(0, 2))


def read_text(file):
    """A file's documents."""
    for _ in read_documents(file, "text", "kind"):
        pass


def read_array(file):
    """An array of tokens, and the domains beside it."""
    load_npy(file.parent / "tokens.npy", vocab_size=320, max_positions=64)


# What is read -> the file that is replaced: below a model (m), a run (r), or alone; its reader.
TARGETS = {
    "npy": ("a/tokens.npy", read_array),
    "domains": ("a/tokens.domains.txt", read_array),
    "jsonl": ("a/text.jsonl", read_text),
    "parquet": ("a/text.parquet", read_text),
    "arrow": ("a/text.arrow", read_text),
    "txt": ("a/text.txt", read_text),
    "config": ("m/config.json", read_model),
    "safetensors": ("m/model.safetensors", read_model),
    "index": ("m/model.safetensors.index.json", read_model),
    "tokenizer": ("m/tokenizer.json", read_tokenizer),
    "tokenizer_config": ("m/tokenizer_config.json", read_tokenizer),
    "run": ("r/run.yaml", read_run),
    "record": ("r/activations.zarr/records/00000.json", read_run),
    "metadata": ("r/activations.zarr/bitmaps/000/zarr.json", read_run),
    "tokens": ("r/activations.zarr/tokens/c/0/0", read_run),
    "bitmap": ("r/activations.zarr/bitmaps/000/c/0/0/0/0", read_run),
    "ngrams": ("r/ngrams", read_run),
    "manifest": ("r/tables/manifest.json", read_tables),
    "positions": ("r/tables/positions.zarr/zarr.json", read_tables),
}


class Place:
    """A folder with good files, one of which is replaced again and again.

    Args:
        folder: an empty one.
        target: of TARGETS.
        run: a reduced run, which is copied.
    """

    def __init__(self, folder, target, run):
        name, self._read = TARGETS[target]
        self.file = folder / name
        self._folder = folder / name.partition("/")[0]
        if name.startswith("a/"):
            _save_data(folder / "a")
        elif name.startswith("m/"):
            model = models.tiny_opt(num_layers=1, hidden=16, heads=2, ffn=24, positions=16)
            models.save_tokenizer(models.save_checkpoint(model, folder / "m"))
            if target == "index":
                (folder / "m/model.safetensors").rename(folder / "m/w.safetensors")
                self.file.write_text('{"weight_map": {"lm_head.weight": "w.safetensors"}}')
        else:
            shutil.copytree(run, folder / "r")
            if target == "run":  # as the first version wrote it: nothing says that it was changed
                self.file.write_text(run_file(folder / "r"))
            if target == "ngrams":
                (self.file,) = folder.glob("r/ngrams/*/1.json")
        self.good = self.file.read_bytes()

    def read(self, data):
        """Return whether these bytes are taken in the file's place, else refused for people.

        Whatever else is raised, is.
        """
        self.file.write_bytes(data)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self._read(self.file if self._folder.name == "a" else self._folder)
        except UserError:
            return False
        return True


def _save_data(folder):
    """One file of each kind."""
    folder.mkdir()
    np.save(folder / "tokens.npy", models.random_tokens(2, 16))
    (folder / "tokens.domains.txt").write_text("a\nb\n")
    rows = pa.table({"text": ["a text", None], "kind": ["a", "b"]})
    pq.write_table(rows, folder / "text.parquet")
    with pa.ipc.new_file(folder / "text.arrow", rows.schema) as writer:
        writer.write_table(rows)
    (folder / "text.jsonl").write_text('{"text": "a", "kind": "b"}\n{"text": null}\n')
    (folder / "text.txt").write_text("text")
