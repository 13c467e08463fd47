"""A current folder with good inputs, and a finished run, for the tests of bad input."""

import os
import shutil
import subprocess

import pytest
from helpers import models
from helpers.desk import DONE, Desk, close_logs
from helpers.serial import save_tokens, serial


@pytest.fixture(autouse=True)
def without_ray(monkeypatch):
    with serial(monkeypatch):
        yield
    close_logs()


@pytest.fixture
def desk(tmp_path, tiny_checkpoint):
    desk = Desk(tmp_path, tiny_checkpoint("pre"))
    save_tokens(desk.tokens, models.random_tokens(8, 16), ["a"] * 3 + ["b"] * 5)
    return desk


@pytest.fixture
def own_checkpoint(desk):
    """A copy of the checkpoint, to be damaged."""
    desk.checkpoint = shutil.copytree(desk.checkpoint, desk.folder / "checkpoint")
    return desk.checkpoint


@pytest.fixture(scope="module")
def collected(tmp_path_factory, tiny_checkpoint):
    """A finished run, reduced, with what made it."""
    desk = Desk(tmp_path_factory.mktemp("collected"), tiny_checkpoint("pre"))
    save_tokens(desk.tokens, models.random_tokens(8, 16), ["a"] * 3 + ["b"] * 5)
    with pytest.MonkeyPatch.context() as patch, serial(patch):
        for job, settings in (("collect", desk.settings), ("reduce", [f"run={desk.run}"])):
            code, out, err = desk.job(job, *settings)
            assert (code, err) == (DONE, ""), out + err
    return desk


@pytest.fixture
def done(desk, collected):
    """A copy of the finished run, to be damaged."""
    shutil.copytree(collected.run, desk.run)
    return desk


@pytest.fixture
def disk(tmp_path):
    """disk(size=..., read_only=...): a small file system, or skip."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        if (
            os.geteuid() != 0
            or subprocess.run(command, capture_output=True, check=False).returncode
        ):
            pytest.skip("only root can mount a file system")
        return folder

    yield mount
    close_logs()  # a worker in this process keeps its log open
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def text_desk(desk, own_checkpoint):
    """A desk whose data is text, with a checkpoint of its own."""
    (desk.folder / "good.txt").write_text("some words of good text " * 40)
    own = [*desk.model, "data=local", "data.path=good.txt", f"run={desk.run}"]
    return OwnDesk(desk, own)


class OwnDesk(Desk):
    """A desk with other settings."""

    def __init__(self, desk, settings):
        super().__init__(desk.folder, desk.checkpoint)
        self._settings = settings

    @property
    def settings(self):
        return self._settings
