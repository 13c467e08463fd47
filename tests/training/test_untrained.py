"""The untrained twin of an embedded model is remade from its seed."""

import runpy
from pathlib import Path

import pytest
import xxhash
from safetensors.torch import load_file

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "untrained.py"))
# XXH3 of the tensors of checkpoint-0 of the trainings that made the embedded models.
FIRST_WEIGHTS = {
    "opt-mini": "a08875471182f463",
    "opt-mini-sparse": "a08875471182f463",
    "opt-mini-nopos": "d03b4e8c79432482",
}


@pytest.mark.parametrize("name", FIRST_WEIGHTS)
def test_untrained_twin_is_the_one_that_training_began_with(tmp_path, name):
    TOOL["write_untrained"](name, tmp_path / "made")
    made = load_file(tmp_path / "made" / "model.safetensors")
    weights = b"".join(made[key].numpy().tobytes() for key in sorted(made))
    assert xxhash.xxh3_64_hexdigest(weights) == FIRST_WEIGHTS[name]
    assert made.keys() == load_file(TOOL["EMBEDDED"] / name / "model.safetensors").keys()
    assert (tmp_path / "made" / "tokenizer.json").exists()
