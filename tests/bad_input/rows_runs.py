"""Run folders that are none, damaged runs, and reports of them."""

import shutil

import yaml
from bad_input.cases import table
from helpers import models
from helpers.desk import FAILED, WRONG_SETTINGS, cut
from helpers.serial import save_tokens

STORE = "activations.zarr"
DOMAINS = ["a"] * 3 + ["b"] * 5


def objects(run, kind):
    """The stored objects of a kind of array, largest first."""
    files = (run / STORE / kind).rglob("*")
    found = [path for path in files if path.is_file() and path.name != "zarr.json"]
    return sorted(found, key=lambda path: -path.stat().st_size)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# Where a run is to be.


def run_is(place):
    def choose(desk):
        desk.run = place(desk)

    return choose


FOREIGN = [
    ("", "tokens.npy", "is a file", run_is(lambda desk: desk.tokens)),
    ("", "other files (", "new or empty folder", run_is(lambda desk: desk.folder)),
]
BELOW_A_FILE = [
    ("", "tokens.npy/below", "cannot create", run_is(lambda desk: desk.tokens / "below"))
]

# A run of other settings, inputs or versions.


def other_tokens(desk):
    save_tokens(desk.tokens, models.random_tokens(8, 16, seed=1), DOMAINS)


def other_domains(desk):
    desk.tokens.with_suffix(".domains.txt").write_text("a\n" * 8)


OTHER = [
    ("collect.layers=2", "collect.layers: the run has 3, asked for is 2", "run="),
    ("collect.shard_sequences=4", "shard_sequences: the run has 3, asked for is 4", "run="),
    ("collect.bitmaps=all", "collect.bitmaps: the run has ", "run="),
    ("model.dtype=bfloat16", "model.dtype: the run has 'float32'", "Give these settings again"),
    ("data.max_tokens=64", "data.max_tokens: the run has None", "Give these settings again"),
    ("data.bos=false", "data.bos: the run has None", "Give these settings again"),
    ("", "data.content: tokens.npy has changed", "run=", other_tokens),
    ("", "tokens.domains.txt has changed", "run=", other_domains),
]


def run_file(change):
    def damage(desk):
        path = desk.run / "run.yaml"
        path.write_text(change(yaml.safe_load(path.read_text())))

    return damage


RUN_FILE = [
    ("", "format 99", "version", run_file(lambda info: yaml.safe_dump({**info, "format": 99}))),
    ("", "fingerprint is gone", "damaged", run_file(lambda info: f"format: {info['format']}")),
    ("", "run.yaml", "damaged", run_file(lambda info: "a: [")),
    ("", "run.yaml", "damaged", run_file(lambda info: "")),
    ("", "run.yaml", "damaged", run_file(lambda info: "!!python/object/apply:os.abort []")),
]
NO_RUN_FILE = [
    ("", "run.yaml is gone", "put it back", lambda desk: (desk.run / "run.yaml").unlink()),
]

# Objects of a run.


def stored(kind, change):
    return lambda desk: change(objects(desk.run, kind)[0])


def record(number, change):
    return lambda desk: change(desk.run / STORE / "records" / f"{number:05d}.json")


def removed(path):
    path.unlink()


CHANGES = [(flip, "has changed"), (cut, "committed were"), (removed, "is missing")]
KINDS = ("bitmaps", "position_counts")
CHANGED = [
    ("", reason, "repair=true", stored(kind, change))
    for kind in KINDS
    for change, reason in CHANGES
]
CHANGED_FOR_REDUCE = [
    ("", "shard ", "repair=true", stored(kind, change)) for kind in KINDS for change, _ in CHANGES
]
RECORDS = [("", "00001.json is damaged", "repair=true", record(1, cut))]
METADATA = [
    ("", "bitmaps/000", "metadata",
     lambda desk: (desk.run / STORE / "bitmaps/000/zarr.json").unlink()),
]  # fmt: skip
TOKENS = [("", f"{STORE}/tokens", "repair=true", stored("tokens", flip))]
UNFINISHED = [
    ("", "1 of 3 shards (33 %) are missing", "partial=true", record(1, removed)),
    ("plan=true", "1 of 3 shards (33 %) are missing", "partial=true", record(1, removed)),
]
LAYERS = [
    ("layers=4", "layers=4", "at most 3"),
    ("layers=-1", "layers=-1", "at most 3"),
    ("layers=some", "layers=some", "first_half"),
]

# Checks.

CHECKS = [
    ("", "bitmaps", "repair=true", stored("bitmaps", flip)),
    ("", "tokens", "repair=true", stored("tokens", cut)),
    ("", "00001.json", "repair=true", record(1, cut)),
    ("", "tables/neurons.parquet", "repair=true",
     lambda desk: flip(desk.run / "tables/neurons.parquet")),
]  # fmt: skip

# Reports.


def below_out(name, data="mine"):
    def write(desk):
        path = desk.folder / "out" / name
        path.parent.mkdir(parents=True)
        path.write_text(data)

    return write


REPORTS = [
    ("out={run}", "the run", "choose another folder"),
    ("out={run}/tables", "the run", "choose another folder"),
    ("out={run}/tables/new", "the run", "choose another folder"),
    ("out={run}/logs", "the run", "choose another folder"),
    ("out={run}/activations.zarr/new", "the run", "choose another folder"),
    ("out={run}/report/../tables", "the run", "choose another folder"),
    ("", "index.html", "did not write", below_out("index.html")),
    ("", "data/raw/thesis.csv", "did not write", below_out("data/raw/thesis.csv")),
    ("", "figures/fig1.pdf", "did not write", below_out("figures/fig1.pdf")),
    ("", "report.json", "did not write", below_out("report.json", '{"runs": []}')),
    ("", "report.json", "did not write", below_out("report.json", '["data/a.csv"]')),
    ("runs=[{run},{run}]", "/run", "more than once"),
    ("runs=[{run},{run}/]", "/run", "more than once"),
    (["serve=true", "out=s3://bucket/x"], "out=s3://bucket/x", "a local folder"),
]
OUT_IS_A_FILE = [
    ("out={tokens}", "tokens.npy", "folder"),
    ("out={tokens}/below", "tokens.npy/below", "permissions"),
]


def table_of(name, change):
    return lambda desk: change(desk.run / "tables" / name)


REDUCE_AGAIN = [
    ("", "tables", "jobs/reduce.py", lambda desk: shutil.rmtree(desk.run / "tables")),
    *(("", name, "jobs/reduce.py", table_of(name, change))
      for name in ("neurons.parquet", "layers.parquet", "triggers.parquet")
      for change in (flip, cut, removed)),
    ("", "manifest.json", "jobs/reduce.py", table_of("manifest.json", cut)),
]  # fmt: skip

CASES = [
    *table("collect", WRONG_SETTINGS, FOREIGN, base="good"),
    *table("collect", FAILED, BELOW_A_FILE, base="good"),
    *table("collect", WRONG_SETTINGS, OTHER, base="collect"),
    *table("collect", FAILED, RUN_FILE + NO_RUN_FILE, base="collect"),
    *table("reduce", FAILED, RUN_FILE, base="done"),
    *table("collect", FAILED, CHANGED + RECORDS + METADATA, base="collect"),
    *table("reduce", FAILED, CHANGED_FOR_REDUCE + TOKENS + RECORDS + UNFINISHED, base="done"),
    *table("reduce", FAILED, [*METADATA, ("partial=true", *METADATA[0][1:])], base="done"),
    *table("reduce", WRONG_SETTINGS, LAYERS, base="done"),
    *table("check", FAILED, CHECKS, base="done"),
    *table("report", WRONG_SETTINGS, REPORTS, base="report"),
    *table("report", (FAILED, WRONG_SETTINGS), OUT_IS_A_FILE, base="report"),
    *table("report", FAILED, REDUCE_AGAIN, base="report"),
]
