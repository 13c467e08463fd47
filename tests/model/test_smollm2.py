"""A real gated model, SmolLM2-135M, where tools/smollm2.py has put it (NEURONSTATS_SMOLLM2)."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import families
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuronstats import bits
from neuronstats.collect.sweep import Sweep
from neuronstats.model.checkpoint import Checkpoint

FOLDER = os.environ.get("NEURONSTATS_SMOLLM2", "")
SAMPLE = Path(__file__).parents[2] / "neuronstats" / "embedded" / "sample" / "text.jsonl"
SEQUENCES, POSITIONS = 4, 256

pytestmark = pytest.mark.skipif(not FOLDER, reason="NEURONSTATS_SMOLLM2 names no checkpoint")


@pytest.fixture(scope="module")
def tokens():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    ids = []
    with SAMPLE.open() as lines:
        for line in lines:
            ids += tokenizer(json.loads(line)["text"]).input_ids
            if len(ids) >= SEQUENCES * POSITIONS:
                break
    return np.array(ids[: SEQUENCES * POSITIONS]).reshape(SEQUENCES, POSITIONS)


def test_its_bits_are_those_of_its_own_forward(tokens):
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    gates, _ = families.seen(model, "mlp.act_fn", tokens, SEQUENCES)
    del model
    records = {}
    for resident in (True, False):
        sweep = Sweep(
            Checkpoint(Path(FOLDER)),
            num_layers=len(gates),
            num_bitmaps=len(gates),
            batch_sequences=SEQUENCES,
            dtype=torch.float32,
            device=torch.device("cpu"),
            resident=resident,
            sum_tokens=np.unique(tokens)[:64],
        )
        records[resident] = list(sweep(tokens))
    for gate, one, other in zip(gates, records[True], records[False], strict=True):
        found = bits.unpack(one.bitmap, POSITIONS)
        np.testing.assert_array_equal(found, gate.transpose(2, 0, 1) > 0)
        for name in ("bitmap", "position_counts", "sums", "token_sums"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
