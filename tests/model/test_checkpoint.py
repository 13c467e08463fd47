"""Which of a hub repository's files are fetched, and what a fingerprint sees."""

import shutil

import pytest
import torch

from neuronstats.errors import SettingsError
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.decoder import Decoder
from neuronstats.model.settings import ModelSettings
from neuronstats.model.source import locate


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin"], ["model*.safetensors"]),
        (["model-00001-of-00002.safetensors", "flax_model.msgpack"], ["model*.safetensors"]),
        (["pytorch_model-00001-of-00014.bin", "config.json"], ["pytorch_model*.bin"]),
        (None, ["*.safetensors", "pytorch_model*.bin"]),  # offline: what was fetched before
    ],
)
def test_fetches_one_kind_of_weights(files, wanted, monkeypatch, tiny_checkpoint):
    asked = []

    def fetch(repo_id, revision, allow_patterns):
        asked.append((repo_id, revision, allow_patterns))
        return str(tiny_checkpoint("pre"))

    def list_files(repo_id, revision):
        if files is None:
            raise OSError("offline")
        return files

    monkeypatch.setattr("neuronstats.model.source.snapshot_download", fetch)
    monkeypatch.setattr("neuronstats.model.source.list_repo_files", list_files)
    model = ModelSettings(name="m", path="facebook/opt-125m", revision="main")
    assert locate(model) == tiny_checkpoint("pre")
    small, weights = asked
    assert small[:2] == weights[:2] == ("facebook/opt-125m", "main")
    assert weights[2] == wanted
    assert "*.json" in small[2]
    asked.clear()
    locate(model, weights=False)
    assert asked == [small]


def test_a_folder_is_never_looked_for_on_the_hub(tmp_path):
    with pytest.raises(SettingsError, match="does not exist"):
        locate(ModelSettings(name="m", path=str(tmp_path / "none")))


def test_fingerprint_sees_content_and_not_the_place(tiny_checkpoint, tmp_path):
    original = tiny_checkpoint("pre", layout="safetensors_sharded")
    copy = tmp_path / "elsewhere"
    shutil.copytree(original, copy)
    before = Checkpoint(original).fingerprint()
    assert Checkpoint(copy).fingerprint() == before
    file = sorted(copy.glob("*.safetensors"))[0]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert Checkpoint(copy).fingerprint() != before


def test_tensors_outlive_their_file(tiny_checkpoint):
    checkpoint = Checkpoint(tiny_checkpoint("pre", layout="bin_sharded", prefix="decoder."))
    tensor = checkpoint.tensor("decoder.layers.0.fc1.weight")
    copy = tensor.clone()
    checkpoint.release()
    assert torch.equal(tensor, copy)
    assert torch.equal(checkpoint.tensor("decoder.layers.0.fc1.weight"), copy)


@pytest.mark.parametrize(
    ("name", "expected"), [("opt-mini", True), ("opt-mini-sparse", True), ("opt-mini-nopos", False)]
)
def test_models_without_positions_are_known_by_their_weights(name, expected):
    folder = locate(ModelSettings(name=name, path=f"embedded:{name}"))
    assert Decoder(Checkpoint(folder)).has_positions() is expected
