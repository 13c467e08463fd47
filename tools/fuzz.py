"""Feed all that parses foreign bytes with bytes chosen by coverage: python tools/fuzz.py TARGET.

Needs atheris. Whatever is raised but an error meant for people is told once, with the bytes that
did it, which then become a case of tests/bad_input/test_damaged_files.py. Further arguments are
libFuzzer's: -max_total_time=120, a folder of bytes to begin with.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SECONDS = 120

with atheris.instrument_imports(
    include=["neuronstats", "json", "yaml"], enable_loader_override=False
):
    from neuronstats.corpus.corpus import load_npy
    from neuronstats.corpus.files import read_documents
    from neuronstats.corpus.tokenizer import load_tokenizer
    from neuronstats.errors import UserError
    from neuronstats.model.checkpoint import Checkpoint
    from neuronstats.model.decoder import Decoder, check_weights
    from neuronstats.store.folder import RunFolder
    from neuronstats.store.manifest import Manifest
    from neuronstats.store.reduced import ReducedRun
    from neuronstats.store.run import Run


def read_model(folder: Path) -> None:
    """Read a checkpoint up to its weights."""
    decoder = Decoder(Checkpoint(folder))
    check_weights(decoder, decoder.shape.num_layers)
    for name in decoder.checkpoint.names():
        decoder.checkpoint.tensor(name)


def read_run(folder: Path) -> None:
    """Read all that a run says of itself, and its tokens."""
    run = Run.open(str(folder))
    run.records()
    run.corpus()


def read_tables(folder: Path) -> None:
    """Read a run's tables."""
    ReducedRun(str(folder)).verify_tables()


def read_text(file: Path) -> None:
    """Read a file's documents."""
    for _ in read_documents(file, "text", "kind"):
        pass


def read_array(file: Path) -> None:
    """Read an array of tokens."""
    load_npy(file, vocab_size=320, max_positions=64)


# What is read -> the file that is replaced, below a model (m), a run (r), or alone; its reader.
TARGETS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "npy": ("tokens.npy", read_array),
    "jsonl": ("text.jsonl", read_text),
    "parquet": ("text.parquet", read_text),
    "txt": ("text.txt", read_text),
    "config": ("m/config.json", read_model),
    "safetensors": ("m/model.safetensors", read_model),
    "index": ("m/model.safetensors.index.json", read_model),
    "tokenizer": ("m/tokenizer.json", lambda folder: load_tokenizer(str(folder))),
    "run": ("r/run.yaml", read_run),
    "record": ("r/activations.zarr/records/00000.json", read_run),
    "array": ("r/activations.zarr/tokens/zarr.json", read_run),
    "tokens": ("r/activations.zarr/tokens/c/0/0", read_run),
    "manifest": ("r/tables/manifest.json", lambda folder: Manifest.read(RunFolder(str(folder)))),
    "tables": ("r/tables/positions.zarr/zarr.json", read_tables),
}


def prepare(folder: Path, target: str) -> Path:
    """Lay down good files; return the one that is replaced."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from helpers import models
    from helpers.reported import planted_run

    name, _ = TARGETS[target]
    model = models.tiny_opt(num_layers=1, hidden=16, heads=2, ffn=24, positions=16)
    if name.startswith("m/"):
        models.save_tokenizer(models.save_checkpoint(model, folder / "m"))
        if target == "index":
            (folder / "m/model.safetensors").rename(folder / "m/w.safetensors")
            (folder / name).write_text('{"weight_map": {"lm_head.weight": "w.safetensors"}}')
    elif name.startswith("r/"):
        from helpers import planted

        checkpoint = models.save_checkpoint(planted.planted_opt(), folder / "p")
        models.save_word_tokenizer(checkpoint, planted.VOCABULARY)
        shutil.copytree(planted_run(folder, checkpoint), folder / "r")
    np.save(folder / "tokens.npy", models.random_tokens(2, 16))
    rows = {"text": ["a text", None], "kind": ["a", "b"]}
    pq.write_table(pa.table(rows), folder / "text.parquet")
    (folder / "text.jsonl").write_text('{"text": "a", "kind": "b"}\n{"text": null}\n')
    (folder / "text.txt").write_text("text")
    return folder / name


def main() -> None:
    """Fuzz one target; tell each place that raises what it should not."""
    target = sys.argv.pop(1)
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    file = prepare(folder, target)
    reader = TARGETS[target][1]
    top = TARGETS[target][0].partition("/")[0]
    start = folder / "start"
    start.mkdir()
    shutil.copy(file, start / "good")
    logging.disable(logging.CRITICAL)
    known = set()

    def one(data: bytes) -> None:
        file.write_bytes(data)
        try:
            with contextlib.redirect_stdout(None):
                reader(folder / top)
        except UserError:
            return
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            at = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in at if "neuronstats" in frame.filename] or list(at)
            place = (type(error).__name__, ours[-1].filename, ours[-1].lineno)
            if place not in known:
                known.add(place)
                name = hashlib.sha256(data).hexdigest()[:8]
                sys.stderr.write(f"FOUND {target} {place} {error!s:.200} {data[:300]!r} {name}\n")
                if "FUZZ_OUT" in os.environ:
                    (Path(os.environ["FUZZ_OUT"]) / f"{target}-{name}").write_bytes(data)

    limits = [f"-max_total_time={SECONDS}", "-verbosity=0", "-rss_limit_mb=4000", "-timeout=20"]
    atheris.Setup([sys.argv[0], *limits, str(start), *sys.argv[1:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
