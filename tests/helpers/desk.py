"""Bad input to the jobs: the message, the exit code, and that nothing is made or lost."""

import hashlib
import json
import logging

import pytest
from helpers.run_job import run_job

DONE, FAILED, WRONG_SETTINGS, INTERRUPTED = 0, 1, 2, 130
OWN_TRACES = {"run.lock", "logs", "ngrams"}  # what a job leaves in a run folder beside results
GB = 1 << 30


def contents(folder):
    """Every file below a folder with a hash of its bytes, and every folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if OWN_TRACES & set(name.parts) or "tables.partial" in name.parts:
            continue
        found[str(name)] = hashlib.sha256(path.read_bytes()).digest() if path.is_file() else None
    return found


class Desk:
    """A current folder with a checkpoint and tokens, to try things in."""

    def __init__(self, folder, checkpoint):
        self.folder, self.checkpoint = folder, checkpoint
        self.run = folder / "run"
        self.tokens = folder / "tokens.npy"

    @property
    def model(self):
        return ["model=local", f"model.path={self.checkpoint}"]

    @property
    def settings(self):
        """Good settings: two domains, three shards."""
        return [
            *self.model,
            "data=tokens",
            f"data.path={self.tokens}",
            "collect.shard_sequences=3",
            f"run={self.run}",
        ]

    def job(self, name, *overrides):
        return run_job(name, *overrides, cwd=self.folder)

    def fails(self, code, *words, settings, job="collect"):
        """One error in plain words, this exit code, and nothing made, changed or lost."""
        before = contents(self.folder)
        found, out, err = self.job(job, *settings)
        assert found in (code if isinstance(code, tuple) else (code,)), (found, out, err)
        assert err.startswith("error: "), err
        assert "Traceback" not in err
        assert "defect" not in err
        assert [line.startswith("error: ") for line in err.split("\n")].count(True) == 1
        assert len(err) < 1000, err
        assert len(err.splitlines()) <= 12, err
        for word in words:
            assert str(word) in err, (word, err)
        assert contents(self.folder) == before
        return err

    def fails_or_works(self, code, *, settings, job="collect"):
        """Like `fails`, or the job does its work: what was changed does not matter to it."""
        with pytest.MonkeyPatch.context() as patch:
            answer = self.job(job, *settings)
            if answer[0] != DONE:
                patch.setattr(self, "job", lambda *_: answer)
                self.fails(code, settings=settings, job=job)


def close_logs():
    """Take back what a worker in this process has done to the logging."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if type(h) is logging.FileHandler]:
        root.removeHandler(handler)
        handler.close()


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path, keep=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
