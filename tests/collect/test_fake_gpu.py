"""The sweep on a GPU that is not there: no operation mixes devices; memory is as planned."""

import numpy as np
import pytest
import torch
from helpers import families, models
from helpers.fake_cuda import CUDA, fake_cuda
from transformers import AutoConfig

from benchmarks.subject import SHAPES, opt_config
from neuronstats.collect import transfer
from neuronstats.collect.plan import CUDA_DEVICE_BYTES, CorpusSize, Work, make_plan
from neuronstats.collect.sweep import Sweep
from neuronstats.model.checkpoint import Checkpoint

HALF = torch.float16


def swept(patch, checkpoint, tokens, **settings):
    """The sweep, and the most bytes that it has had on the GPU."""
    layers = checkpoint.config.num_hidden_layers
    with fake_cuda(patch) as live:
        sweep = Sweep(
            checkpoint,
            num_layers=layers,
            num_bitmaps=layers,
            dtype=HALF,
            device=CUDA,
            **settings,
        )
        made = iter(sweep.layers)
        hidden = sweep._embedded(tokens)
        records = sweep._made(made, hidden, tokens.shape, sweep._slots(tokens))
        del hidden
        found = list(transfer.to_host(records, sweep._streams))
    assert len(found) == layers
    assert {tensor.device.type for record in found for tensor in record} == {"cpu"}
    return sweep, live.most


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("resident", [True, False])
def test_a_shard_takes_what_is_planned(resident, near, table, tmp_path, monkeypatch):
    """A batch's embeddings, looked up on the host, stayed for all layers and were not planned."""
    _, hidden, heads, vocabulary = SHAPES["opt-125m"]
    opt_config(3, hidden, heads, vocabulary).save_pretrained(tmp_path)
    tokens = models.random_tokens(128, 2048)
    where = {"resident": resident, "hidden_on_device": near, "table_on_device": table}
    checkpoint = Checkpoint(tmp_path, weights=False)
    sweep, most = swept(monkeypatch, checkpoint, tokens, batch_sequences=42, **where)
    work = Work(
        shape=sweep._decoder.shape,
        corpus=CorpusSize((len(tokens),), tokens.shape[1]),
        num_layers=3,
        num_bitmaps=3,
        shard_sequences=len(tokens),
        batch_sequences=42,
        dtype_bytes=HALF.itemsize,
        stored_bytes=HALF.itemsize,
        on_gpu=True,
        **where,
    )
    planned = make_plan(work).device_bytes - CUDA_DEVICE_BYTES
    assert 0.9 * planned < most < 0.95 * planned


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_sums_mix_no_devices(name, tmp_path, monkeypatch):
    kind, settings, *_ = families.FAMILIES[name]
    AutoConfig.for_model(kind, **settings).save_pretrained(tmp_path)
    tokens = models.random_tokens(5, 24, vocabulary=families.VOCABULARY)
    where = {"resident": False, "hidden_on_device": False, "table_on_device": True}
    checkpoint = Checkpoint(tmp_path, weights=False)
    swept(monkeypatch, checkpoint, tokens, batch_sequences=2, sum_tokens=np.arange(3, 7), **where)
