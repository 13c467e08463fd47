"""`model=opt-125m data=paper` word for word, against a hub on loopback with tiny repositories."""

import gzip
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from helpers import models
from helpers.hub import Hub
from helpers.run_job import JOBS, WITHOUT_RAY

from neuronstats.store.run import Run

ROOT = JOBS.parent
SERIAL = (*WITHOUT_RAY, "collect")
SOURCES = yaml.safe_load((ROOT / "conf" / "data" / "paper.yaml").read_text())["sources"]
PILE, REDDIT, CODE = dict.fromkeys(source["path"] for source in SOURCES)
MODEL = "facebook/opt-125m"


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def text(i):
    return f"{models.TEXT[i % 4]} {i}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_model):
    """The repositories' files, called as on the hub; a few sequences of each domain."""
    base = tmp_path_factory.mktemp("hub")
    model = models.save_checkpoint(tiny_model("pre"), base / "model", layout="bin_sharded")
    models.save_tokenizer(model, style="hub")
    pile, reddit, code = base / "pile", base / "reddit" / "data", base / "code"
    for folder in (pile / "train", reddit, code):
        folder.mkdir(parents=True)
    sets = [source["filter_value"] for source in SOURCES if source["path"] == PILE]
    sets.append("Pile-CC")
    rows = [{"text": text(i), "meta": {"pile_set_name": sets[i % len(sets)]}} for i in range(400)]
    for name in ("test", "val", "train/00"):
        (pile / f"{name}.jsonl.zst").write_bytes(zstandard.compress(lines(rows)))
    (pile / "README.md").write_text("---\nlicense: other\n---\n# Pile\n")
    for split in ("explainlikeimfive", "programming"):
        table = pa.table({"body": [text(i) for i in range(50)], "author": ["x"] * 50})
        pq.write_table(table, reddit / f"{split}-00000-of-00001-0123456789abcdef.parquet")
    rows = [{"content": text(1), "size": 1}] * 50
    (code / "file-000000000054.json.gz").write_bytes(gzip.compress(lines(rows)))
    return {MODEL: model, PILE: pile, REDDIT: reddit.parent, CODE: code}


def serve(hub, folders, without=()):
    hub.repositories.clear()
    hub.add(MODEL, folders[MODEL])
    for source in SOURCES:
        name = source["path"]
        if name not in without:
            hub.add(name, folders[name], kind="datasets", commit=source["revision"])


@pytest.fixture
def command(tmp_path, folders):
    """A command line in a fresh HOME, with a hub; returns exit code, stdout and stderr."""
    with Hub() as hub:
        serve(hub, folders)

        def call(*arguments, through=(sys.executable, JOBS / "collect.py"), **environment):
            own = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
            hub.requests.clear()
            done = subprocess.run(
                [*through, *arguments],
                cwd=tmp_path,
                env=own | hub.environment | environment,
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )
            return done.returncode, done.stdout, done.stderr

        yield hub, call


def weights(hub):
    return [r for r in hub.requests if "pytorch_model-" in r[1]]


def test_word_for_word(command, tmp_path):
    hub, call = command
    code, out, err = call("model=opt-125m", "data=paper")
    assert code == 0, (out, err)
    run = Run.open(str(tmp_path / "runs" / "opt-125m-paper"))
    assert list(run.layout.domains) == [source["domain"] for source in SOURCES]
    assert len(run.records()) == len(run.layout.shards)
    assert "fetching" in out
    assert "it/s]" not in err  # no bars of others
    assert not hub.asked("train/00")
    assert len({r[1] for r in weights(hub) if r[0] == "GET"}) == 3
    assert "left out" not in err
    # The second time nothing of the weights or the text is asked for.
    code, out, err = call("model=opt-125m", "data=paper", through=SERIAL)
    assert code == 0, (out, err)
    assert not weights(hub)
    assert not hub.asked("datasets")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_new_run_offline_and_a_source_that_is_gone(command, folders, tmp_path):
    hub, call = command
    serve(hub, folders, without=[REDDIT])
    code, out, err = call("model=opt-125m", "data=paper", "data.max_tokens=20000")
    assert code == 0, (out, err)
    assert f"reddit: left out; {REDDIT} (split explainlikeimfive) cannot be read" in err
    assert err.count("reddit") == 1
    run = Run.open(str(tmp_path / "runs" / "opt-125m-paper"))
    assert list(run.layout.domains) == [s["domain"] for s in SOURCES if s["path"] != REDDIT]
    for data in ("data=paper", "data=sample"):  # the run that is there, and a new one
        code, out, err = call("model=opt-125m", data, "data.max_tokens=20000", HF_HUB_OFFLINE="1")
        assert (code, hub.requests) == (0, []), (out, err)
    code, out, err = call("model=opt-125m", "data=paper", "run=other", HF_HUB_OFFLINE="1")
    assert code == 1
    # Of much text each domain is kept as it is read: the folder is there, and no run in it.
    assert not (tmp_path / "other" / "run.yaml").exists()
    assert "Offline" in err
    assert "Traceback" not in err


def test_a_repository_that_is_not_given(command, folders, tmp_path):
    hub, call = command
    hub.add(MODEL, folders[MODEL], gated=True)
    code, out, err = call("model=opt-125m", "data=paper", through=SERIAL)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: model.path={MODEL} is gated: agree to its terms on {hub.url}")
    assert "hf auth login" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
