"""The untrained twin of an embedded model is remade from its seed."""

import runpy
from pathlib import Path

import torch
from safetensors.torch import load_file

TOOL = Path(__file__).parents[2] / "tools" / "untrained.py"


def test_untrained_twin_is_the_one_that_training_began_with(tmp_path):
    tool = runpy.run_path(str(TOOL))
    tool["write_untrained"]("opt-mini", tmp_path / "made")
    made = load_file(tmp_path / "made" / "model.safetensors")
    kept = load_file(tool["EMBEDDED"] / "opt-mini-untrained" / "model.safetensors")
    assert made.keys() == kept.keys()
    assert all(torch.equal(made[name], kept[name]) for name in kept)
    assert (tmp_path / "made" / "tokenizer.json").exists()
