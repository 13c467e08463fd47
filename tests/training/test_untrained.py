"""The untrained twin of an embedded model is remade from its seed."""

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TOOL = Path(__file__).parents[2] / "tools" / "untrained.py"


@pytest.mark.parametrize("name", ["opt-mini", "opt-mini-sparse"])
def test_untrained_twin_has_the_models_shape_and_the_recipes_weights(name, tmp_path):
    tool = runpy.run_path(str(TOOL))
    tool["write_untrained"](name, tmp_path / "made")
    trained = load_file(tool["EMBEDDED"] / name / "model.safetensors")
    made = load_file(tmp_path / "made" / "model.safetensors")
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in trained.items()}
    assert made["model.decoder.embed_tokens.weight"].float().std() == pytest.approx(0.4, rel=0.02)
    layer = "model.decoder.layers.1.fc1"
    assert torch.count_nonzero(made[f"{layer}.bias"]) == 0
    assert not torch.equal(made[f"{layer}.weight"], trained[f"{layer}.weight"])
    assert (tmp_path / "made" / "tokenizer.json").exists()


def test_twins_begin_with_the_same_weights(tmp_path):
    tool = runpy.run_path(str(TOOL))
    for name in ("opt-mini", "opt-mini-sparse"):
        tool["write_untrained"](name, tmp_path / name)
    one, other = (
        (tmp_path / name / "model.safetensors").read_bytes()
        for name in ("opt-mini", "opt-mini-sparse")
    )
    assert one == other
