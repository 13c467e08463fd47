"""The plan's term for a batch's activations, against the tensors that really live at once."""

import numpy as np
import pytest
import torch
from helpers import families

from neuronstats.collect.plan import CorpusSize, Work
from neuronstats.collect.sweep import Sweep
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.ffn import _Live

WIDTH, BATCH, POSITIONS = 64, 4, 256
WIDTHS = ("hidden_size", "d_model", "word_embed_proj_dim")
INNER = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
LENGTHS = ("max_position_embeddings", "max_seq_len")
RELU = ("opt", "opt_350m")  # their runs take no sums

OTHERS = ("gpt2", "gpt_neox", "llama", "gemma2", "phi", "bloom", "gptj")
CASES = [(name, None) for name in RELU + OTHERS] + [(name, 2) for name in OTHERS]


def widened(settings):
    """A family's settings, wide enough that a batch is much larger than all else."""
    changed = dict.fromkeys(WIDTHS, WIDTH) | dict.fromkeys(INNER, 4 * WIDTH)
    changed |= dict.fromkeys(LENGTHS, POSITIONS)
    return settings | {key: value for key, value in changed.items() if key in settings}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "sums"), CASES)
def test_a_batch_takes_what_is_planned(name, sums, dtype, tmp_path, monkeypatch):
    kind, settings, *_ = families.FAMILIES[name]
    families.build(kind, widened(settings)).save_pretrained(tmp_path)
    sweep = Sweep(
        Checkpoint(tmp_path),
        num_layers=2,
        num_bitmaps=0,
        batch_sequences=BATCH,
        dtype=dtype,
        device=torch.device("cpu"),
        sum_tokens=None if sums is None else np.arange(sums),
    )
    work = Work(
        shape=sweep._decoder.shape,
        corpus=CorpusSize((BATCH,), POSITIONS),
        num_layers=2,
        num_bitmaps=0,
        shard_sequences=BATCH,
        batch_sequences=BATCH,
        dtype_bytes=dtype.itemsize,
        stored_bytes=4,
        on_gpu=False,
        sum_tokens=sums,
    )
    most = []
    run = sweep._run_layer

    def watched(*args, **kwargs):
        with _Live() as live:
            result = run(*args, **kwargs)
        most.append(live.most)
        return result

    monkeypatch.setattr(sweep, "_run_layer", watched)
    list(sweep(np.random.default_rng(0).integers(3, families.VOCABULARY, (BATCH, POSITIONS))))
    planned = sum(term.bytes for term in [*work.batch_terms(), *work.sum_terms()])
    least = 0.5 if sums is None else 0.4  # scores are not held in as many copies by every model
    assert least * planned < max(most) <= planned + BATCH  # a bool each: is it finite
