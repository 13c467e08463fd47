"""What a checkpoint may not be: quantised, code of its own, files elsewhere."""

import json
import shutil

import pytest
import torch
from helpers import models
from helpers.desk import edit_config
from safetensors.torch import load_file, save_file

from neuronstats.errors import SettingsError, UserError
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.decoder import Decoder, check_weights


@pytest.fixture
def folder(tmp_path, tiny_checkpoint):
    """A copy of the tiny checkpoint, to be damaged."""
    return shutil.copytree(tiny_checkpoint("pre"), tmp_path / "model")


def check(folder):
    """What the collect job does before anything starts."""
    check_weights(Decoder(Checkpoint(folder)), 3)


def refused(folder, *words, error=UserError):
    """The checkpoint is refused in one line that holds the words."""
    with pytest.raises(error) as caught:
        check(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500, message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, ["bitsandbytes", "quantised"]),
        ({"compression_config": {"quant_method": "sparse"}}, ["sparse", "quantised"]),
        ({"auto_map": {"AutoModelForCausalLM": "own.Own"}}, ["code of its own", "auto_map"]),
    ],
)
def test_models_that_are_not_plain_weights(folder, changes, words):
    edit_config(folder, **changes)
    refused(folder, *words, error=SettingsError)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.complex64])
def test_weights_that_are_no_floats(folder, dtype):
    weights = load_file(folder / "model.safetensors")
    name = "model.decoder.layers.1.fc1.weight"
    weights[name] = weights[name].to(dtype)
    weights[name.replace("weight", "SCB")] = torch.ones(100)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, name, str(dtype).removeprefix("torch."), error=SettingsError)


@pytest.mark.parametrize("layout", ["safetensors_sharded", "bin_sharded"])
@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/passwd", 7, None, ["a"], "config.json"]
)
def test_weight_files_elsewhere(tmp_path, tiny_model, layout, name):
    folder = models.save_checkpoint(tiny_model("pre"), tmp_path / "model", layout=layout)
    (tmp_path / "other").mkdir()
    for file in folder.glob("*00001*"):
        shutil.copy(file, tmp_path / "other" / "model.safetensors")
    [index] = folder.glob("*.index.json")
    weight_map = json.loads(index.read_text())["weight_map"]
    first = min(weight_map.values())
    changed = {key: name if file == first else file for key, file in weight_map.items()}
    index.write_text(json.dumps({"weight_map": changed}))
    refused(folder, index.name)
