"""The plan's sums on a GPU, which no test here can measure."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from neuronstats.cluster.nodes import Node
from neuronstats.cluster.settings import RaySettings
from neuronstats.collect.choose import choose
from neuronstats.collect.inspect import Inputs
from neuronstats.collect.plan import CorpusSize, Work, make_plan
from neuronstats.collect.settings import CollectJob
from neuronstats.model.settings import ModelSettings
from neuronstats.model.shape import Shape
from neuronstats.units import size

ROOT = Path(__file__).parents[2]
OPT_66B = Shape(
    num_layers=64,
    hidden=9216,
    neurons=36864,
    heads=72,
    vocabulary=50272,
    embedding=9216,
    positions=2048,
    layer_weights=4 * 9216**2 + 2 * 9216 * 36864 + 9 * 9216 + 36864,
    front_weights=2052 * 9216,
)
WORK = Work(
    shape=OPT_66B,
    corpus=CorpusSize((9765,), 2048),
    num_layers=32,
    num_bitmaps=32,
    shard_sequences=128,
    batch_sequences=8,
    dtype_bytes=2,
    stored_bytes=2,
    on_gpu=True,
    resident=False,
)


def terms(some):
    return {term.name: term.bytes for term in some}


def test_two_layers_of_66b_and_a_quarter_of_a_million_tokens_fit_into_24_gb():
    plan = make_plan(WORK)
    device = terms(plan.device)
    assert device["weights (2 of 32 layers)"] == 2 * OPT_66B.layer_weights * 2
    assert device["hidden states"] == 128 * 2048 * 9216 * 2
    assert device["bits of a layer"] == 2 * 128 * 256 * 36864
    assert device["one batch's activations"] == 8 * 2048 * 7 * 9216 * 2
    assert plan.device_bytes < 24e9, size(plan.device_bytes)
    assert plan.weight_bytes == 77 * 32 * OPT_66B.layer_weights * 2  # once a shard


def test_hidden_states_on_the_host_leave_three_batches_on_the_gpu():
    near, aside = make_plan(WORK), make_plan(replace(WORK, hidden_on_device=False))
    hidden = terms(near.device)["hidden states"]
    batch = 8 * 2048 * 9216 * 2
    assert terms(aside.device)["hidden states, near"] == 3 * batch
    assert near.device_bytes - aside.device_bytes == hidden - 3 * batch
    assert hidden <= terms(aside.host)["hidden states"] < 2 * hidden  # a power of two is pinned


def test_pinned_bits_are_counted_as_torch_takes_them():
    host = terms(make_plan(WORK).host)
    bitmap, counts = 128 * 256 * 36864, 2048 * 36864  # of less than 256 sequences: bytes
    waiting = host["bits to be written"] + host["position counts"]
    assert waiting + host["bits and counts in pinned memory"] == 4 * ((1 << 31) + (1 << 27))
    assert (1 << 30, 1 << 26) < (bitmap, counts) < (1 << 31, 1 << 27)
    assert host["weights in pinned memory"] == 128 << 20


@pytest.fixture(scope="module")
def table():
    path = ROOT / "tools" / "plan_table.py"
    spec = importlib.util.spec_from_file_location("plan_table", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        spec.loader.exec_module(module)
        yield module


def test_the_page_of_plans_is_what_the_plan_says(table):
    page = (ROOT / "docs" / "plan.md").read_text()
    for name in table.NAMES:
        for machine in table.MACHINES:
            assert table.row(name, machine) in page


@pytest.mark.parametrize(
    ("name", "layers", "width", "billions"),
    [("125m", 12, 768, 0.125), ("6.7b", 32, 4096, 6.66), ("66b", 64, 9216, 65.7)],
)
def test_the_page_of_plans_against_arithmetic(table, name, layers, width, billions):
    node, flops = table.MACHINES["8 x 80 GB"]
    plan = table.plan_of(name, node)
    tokens = 9 * 1085 * 2048
    assert plan.checkpoint_bytes == pytest.approx(2e9 * billions, rel=0.01)
    # 2 FLOP a weight and token; attention over half of 2048 positions, twice; not the last fc2.
    layer = 2 * 12 * width**2 + 2 * 2 * 1024 * width
    assert plan.flop == pytest.approx(tokens * (layers * layer - 8 * width**2), rel=0.01)
    assert plan.seconds(flops) == plan.flop / (8 * flops)
    assert plan.shard_seconds(flops) == pytest.approx(
        plan.work.shard_tokens / tokens * plan.flop / flops
    )
    bits = tokens / 8 * 4 * width * (layers // 2)
    stored = sum(term.bytes for term in plan.disk if term.name.startswith("bitmaps"))
    assert stored == pytest.approx(0.4 * bits, rel=0.1)


@pytest.mark.parametrize("hidden", [768, 2048, 9216])
def test_weights_are_streamed_before_shards_are_halved(hidden):
    """On an 80 GB GPU 66b's layers would fit beside short shards: a stream of weights hides."""
    shape = replace(OPT_66B, hidden=hidden, neurons=4 * hidden)
    node = Node("here", cpus=16, gpus=1, memory=256 << 30, gpu_memory=76 * 10**9)
    plan, _ = choose(
        replace(WORK, shape=shape),
        RaySettings(),
        [node],
        None,
        shard_sequences=None,
        batch_sequences=None,
    )
    batch = {768: 42, 2048: 16, 9216: 8}[hidden]  # sequences of 2048: a narrow model takes more
    assert plan.work.batch_sequences == batch
    assert plan.work.shard_sequences == 128 // batch * batch
    assert plan.work.resident == (hidden < 9216)
    assert plan.work.table_on_device


def test_a_narrow_model_s_batch_is_no_longer_than_a_shard():
    """All batches are filled up to this length; opt-mini's was twice a shard's."""
    shape = replace(OPT_66B, hidden=128, neurons=2048, embedding=128, num_layers=4)
    work = replace(WORK, shape=shape, corpus=CorpusSize((4000,), 512), num_layers=4)
    node = Node("here", cpus=16, gpus=1, memory=256 << 30, gpu_memory=76 * 10**9)
    free = {"shard_sequences": None, "batch_sequences": None}
    plan, _ = choose(replace(work, num_bitmaps=4), RaySettings(), [node], None, **free)
    assert plan.work.batch_sequences == plan.work.shard_sequences == 512


@pytest.mark.parametrize(
    ("stored", "on_gpu", "expected"),
    [
        (torch.float16, True, torch.float16),
        (torch.bfloat16, True, torch.bfloat16),
        (torch.float32, True, torch.float32),
        (torch.float64, True, torch.float32),  # no kernel packs it
        (torch.float16, False, torch.float32),
    ],
)
def test_type_that_is_computed_in(stored, on_gpu, expected):
    settings = CollectJob(model=ModelSettings(name="any"))
    inputs = Inputs(settings, None, SimpleNamespace(checkpoint=SimpleNamespace(dtype=stored)), 1, 1)
    assert inputs.dtype(on_gpu=on_gpu) is expected


def test_embeddings_stay_on_the_host_where_the_gpu_has_no_room():
    table = make_plan(replace(WORK, table_on_device=True))
    assert table.device_bytes - make_plan(WORK).device_bytes == 50272 * 9216 * 2
    settings = {"shard_sequences": 128, "batch_sequences": 8}
    for room, expected in ((table.device_bytes, True), (table.device_bytes - 1, False)):
        node = Node("here", cpus=16, gpus=1, memory=256 << 30, gpu_memory=room)
        plan, _ = choose(WORK, RaySettings(), [node], None, **settings)
        assert plan.work.table_on_device == expected
        assert not plan.work.resident
        assert plan.work.hidden_on_device
