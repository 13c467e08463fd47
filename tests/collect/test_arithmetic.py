"""A run that another kind of machine goes on with: its bits near zero may differ, so it is said."""

import io

import pytest
import yaml
from helpers import models
from helpers.serial import collect_job, save_tokens, serial

from neuronstats.collect.job import collect
from neuronstats.console import Console
from neuronstats.store.run import info_checksum


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"device": "NVIDIA H100"}, "begun with device NVIDIA H100, here "),
        ({"torch": "1.0"}, "begun with torch 1.0, here 2."),
        ({"device": None}, ""),  # a run of before it was noted
    ],
)
def test_other_arithmetic_is_said(smallest_checkpoint, tmp_path, monkeypatch, changes, said):
    tokens = save_tokens(tmp_path / "tokens.npy", models.random_tokens(6, 16, seed=3))
    job = collect_job(tmp_path / "run", smallest_checkpoint, tokens, collect__shard_sequences=3)
    with serial(monkeypatch):
        told = io.StringIO()
        assert collect(job, Console(told)) == 0
        assert "note:" not in told.getvalue()
        path = tmp_path / "run" / "run.yaml"
        info = yaml.safe_load(path.read_text())
        del info["checksum"]
        info["versions"] |= changes
        info["versions"] = {k: v for k, v in info["versions"].items() if v is not None}
        path.write_text(yaml.safe_dump(info | {"checksum": info_checksum(info)}, sort_keys=False))
        (tmp_path / "run/activations.zarr/records/00001.json").unlink()
        told = io.StringIO()
        assert collect(job, Console(told)) == 0
    words = " ".join(told.getvalue().split())
    assert ("note:" in words) == bool(said)
    assert said in words
