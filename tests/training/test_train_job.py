"""jobs/train.py as a user runs it."""

import json
import os
import signal
from functools import partial

import pytest
from helpers.run_job import run_job
from helpers.training import SMALL, assert_equal_weights, make_documents, small

from neuronstats.training.loop import train

JOB_OVERRIDES = [f"train.{name}={value}" for name, value in SMALL.items()]


@pytest.fixture
def train_job():
    """train_job(words): the job's real main; its exit code, standard output and error."""
    before = signal.getsignal(signal.SIGTERM)
    yield partial(run_job, "train")
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.jsonl"
    rows = [json.dumps({"words": text, "kind": kind}) for kind, text in make_documents()]
    path.write_text("\n".join(rows))
    return path


def local(path):
    return ["data=local", f"data.path={path}", "data.text=words", "data.domain=kind"]


def test_job_trains_and_leaves_a_finished_folder_alone(train_job, text_file, tmp_path):
    arguments = [*local(text_file), *JOB_OVERRIDES, f"out={tmp_path / 'out'}"]
    code, out, _ = train_job(*arguments)
    assert code == 0
    assert "step 40 of 40, 5.12k tokens, loss " in out
    assert f"trained: {tmp_path / 'out' / 'final'}" in out
    train(small(), make_documents(), tmp_path / "library")
    assert_equal_weights(tmp_path / "out" / "final", tmp_path / "library" / "final")
    code, out, _ = train_job(*arguments)
    assert code == 0
    assert "step" not in out
    code, _, err = train_job(*arguments, "train.seed=5")
    assert code == 2
    assert "seed: 0 there, 5 now" in err
    text_file.write_text(text_file.read_text().replace("queen", "quern"))
    code, _, err = train_job(*arguments)
    assert code == 2
    assert "origin: text " in err


def test_job_ends_with_130_on_sigterm_and_goes_on(train_job, text_file, tmp_path, monkeypatch):
    arguments = [*local(text_file), *JOB_OVERRIDES, f"out={tmp_path / 'out'}"]

    def end(console, text):
        if text.startswith("step 20 "):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("neuronstats.console.Console.say", end)
        code, _, err = train_job(*arguments)
    assert code == 130
    assert "The same command goes on where it stopped" in err
    assert not (tmp_path / "out" / "final").exists()
    code, out, _ = train_job(*arguments)
    assert code == 0
    assert "step 16 " not in out  # the state saved there was taken up
    train(small(), make_documents(), tmp_path / "library")
    assert_equal_weights(tmp_path / "out" / "final", tmp_path / "library" / "final")


def test_job_refuses_to_train_in_a_run(train_job, tmp_path):
    (tmp_path / "run.yaml").write_text("format: 1")
    code, _, err = train_job(f"out={tmp_path}")
    assert code == 2
    assert "is a run of jobs/collect.py: name another folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_job_says_what_is_wrong_with_the_text(train_job, text_file, tmp_path):
    out = f"out={tmp_path / 'out'}"
    text_file.write_text('{"words": "short", "kind": "prose"}')
    code, _, err = train_job(*local(text_file), out)
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("error: the heldout text (0 of 1 documents) gives less than one")
    code, _, err = train_job(*local(text_file), out, "train.seed=1")
    assert code == 1  # the folder is not bound to the first settings
    assert "less than one" in err
