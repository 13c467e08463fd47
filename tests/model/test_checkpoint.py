"""What a fingerprint sees, and how long a tensor lives."""

import shutil

import pytest
import torch

from neuronstats.errors import SettingsError
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.decoder import Decoder
from neuronstats.model.settings import ModelSettings
from neuronstats.model.source import locate


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
