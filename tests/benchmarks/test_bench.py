"""The benchmark on a tiny model: what it reports, and that all its paths give the same results.

Nothing here asserts a speed.
"""

import dataclasses
import io
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import models
from helpers.run_job import run_job
from helpers.serial import collect_job, quiet, save_tokens, serial
from transformers import OPTForCausalLM

from benchmarks import child, forward, stream
from benchmarks.child import Cap, Child
from benchmarks.forward import Swept, mismatches
from benchmarks.job import measure
from benchmarks.reduction import mixed_bits, zipf_tokens
from benchmarks.rounds import Contestant, Rounds, Timing, Value
from benchmarks.settings import SHORT, BenchJob, BenchSettings
from benchmarks.stream import OURS, RESIDENT
from benchmarks.subject import SHAPES, Subject, opt_config, random_tokens, write_random
from neuronstats.bits import count
from neuronstats.collect.job import collect
from neuronstats.console import Console
from neuronstats.errors import SettingsError
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.decoder import Decoder
from neuronstats.model.settings import Dtype, ModelSettings

SIZES = dataclasses.replace(
    SHORT, positions=64, batch_sequences=2, reduce_tokens=20_000, merge_tokens=10_000
)
TYPES = ("float32", "bfloat16", "float16")
WAYS = ("exact covers", *(f"n={n}, 1 %" for n in (1, 2, 3)))
PATHS = {  # all that is compared with the plain way of doing it
    "forward": {"sweep", "first half", "store"},
    "pack": {"counts", "position counts", *(f"packing, {t}" for t in TYPES)},
    "reduce": {f"covers, {way}, {plain}" for way in WAYS for plain in ("np.unique", "Counter")},
    "merge": {"covers, reduced run"},
}
TIMED = list(PATHS)  # stream, start and page are measured below: they start other processes


def run(out, model=None, sizes=SIZES, page=None, **settings):
    """The report of what was measured, and what was printed."""
    settings = {"parts": TIMED, "shape": "tiny", "rounds": 2, "device": "cpu"} | settings
    stream = io.StringIO()
    job = BenchJob(
        model=model or ModelSettings(name="random"),
        bench=BenchSettings(**settings),
        out=str(out),
        page=page,
    )
    return measure(job, Console(stream), sizes), stream.getvalue()


def rounds(number):
    return Rounds(number, 1, on_gpu=False, report=lambda _: None)


def test_report(tmp_path, monkeypatch):
    with serial(monkeypatch):
        report, shown = run(tmp_path)
    assert {name: set(part.mismatches) for name, part in report.parts.items()} == PATHS
    assert set(report.mismatches.values()) == {0}
    page = (tmp_path / "bench.md").read_text()
    for name, part in report.parts.items():
        assert f"## {name}\n\n{report.section(name)}\n" in page
        assert report.section(name) in shown
        assert part.timings
        for timing in part.timings:
            assert len(timing.seconds) == len(timing.cpu_seconds) == 2
        for ratio in part.ratios:
            assert len(ratio.rounds) == 2
            assert f"| {ratio.what} | {ratio.value:.3g} |" in page
    assert "- noise: slowest round / fastest" in page
    assert "equal results: 17 of 17 paths\n" in shown
    assert [p.name for p in tmp_path.iterdir()] == ["bench.md"]


def test_each_section_tells_what_was_measured(tmp_path):
    report, _ = run(tmp_path, parts=["forward", "reduce"], rounds=1)
    forward, reduce = report.section("forward"), report.section("reduce")
    assert "- model: random weights in the shape of tiny: 2 layers of d=64" in forward
    assert "- tokens: 4 sequences of 64, in batches of 2" in forward
    assert "random weights" not in reduce
    assert "- tokens: 2.00e+04, by Zipf's law" in reduce


def test_every_path_gives_the_same_in_bfloat16(tmp_path):
    model = ModelSettings(name="random", dtype=Dtype.bfloat16)
    report, shown = run(tmp_path, model, parts=["forward"], rounds=1)
    assert "256 neurons each, bfloat16" in shown
    assert set(report.mismatches.values()) == {0}


def test_real_checkpoint(tmp_path, tiny_checkpoint, order):
    model = ModelSettings(name="mine", path=str(tiny_checkpoint(order)))
    sizes = dataclasses.replace(SIZES, sequences=3)
    report, shown = run(tmp_path, model, sizes, parts=["forward"], rounds=1)
    assert "- model: mine: 3 layers" in shown
    assert "- tokens: 4 sequences of 64" in shown
    assert set(report.mismatches.values()) == {0}


def test_random_weights_activate_the_shares_asked_for(tmp_path):
    config = opt_config(*SHAPES["tiny"])
    write_random(tmp_path / "model", config, [0.2, 0.0], torch.float16, positional_every=64)
    checkpoint = Checkpoint(tmp_path / "model")
    assert checkpoint.dtype == torch.float16
    shape, cpu = Decoder(checkpoint).shape, torch.device("cpu")
    tokens = random_tokens(8, 64, shape.vocabulary)
    subject = Subject(tmp_path / "model", shape, torch.float32, cpu, tokens, 4)
    by_neuron = np.mean([count(bits) for bits in Swept(subject).record()], axis=0) / tokens.size
    assert 0.1 < by_neuron[::2].mean() < 0.3
    assert by_neuron[1::2].max() == 0


def test_contestants_are_called_in_turn():
    calls = []
    contestants = [Contestant(n, 10, lambda n=n: calls.append(n)) for n in "ABC"]
    timings = rounds(2).measure(contestants, "tokens")
    assert calls == list("ABC" * 3)
    assert list(timings) == list("ABC")
    calls.clear()
    rounds(2).measure(contestants, "tokens", least_seconds=0.001)
    assert calls[:3] == list("ABC")
    assert len(calls) > 9


def test_ratio_takes_each_round_with_its_own():
    ours = Timing("ours", "tokens", 100, (1.0, 2.0, 4.0), (1.0, 1.0, 1.0))
    theirs = Timing("theirs", "tokens", 200, (4.0, 4.0, 4.0), (2.0, 2.0, 2.0))
    ratio = rounds(3).ratio("ours / theirs", ours, theirs, goal=1.0)
    assert ratio.rounds == (2.0, 1.0, 0.5)
    assert (ratio.value, ratio.best, ratio.cpu) == (1.0, 2.0, 1.0)
    assert (ours.rate, ours.spread) == (50.0, 4.0)


def test_mismatches_are_bits():
    bitmap = np.zeros((3, 2, 8), np.uint8)
    other = bitmap.copy()
    other[1, 1, 3] = 0b101
    assert mismatches([bitmap, other], [bitmap, bitmap, bitmap]) == 2


def test_different_results_fail_the_job(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.parts.mismatches", lambda *_: 3)
    settings = ("bench.shape=tiny", "bench.short=true", "bench.parts=[forward]", "bench.rounds=1")
    code, shown, complaint = run_job("bench", *settings, "bench.device=cpu", cwd=tmp_path)
    assert (code, complaint) == (1, "")
    assert "equal results: 0 of 3 paths; these differ: {'sweep': 3" in shown
    assert "- differences, sweep: 3" in (tmp_path / "runs/bench/bench.md").read_text()


def test_synthetic_corpus_has_the_mix():
    tokens = zipf_tokens(400, 64)
    assert (tokens[:, 0] == 2).all()
    assert tokens[:, 1:].min() >= 4
    share = count(mixed_bits(tokens, 40)) / tokens.size
    assert (share[:8] == 0).all()
    assert 0.09 < share[17] < 0.11
    assert (share[18:20] > 0).all()


def test_flipped_bits_of_a_run(tiny_checkpoint, tmp_path, monkeypatch):
    tokens = models.random_tokens(5, 40, seed=8)
    file = save_tokens(tmp_path / "tokens.npy", tokens)
    job = collect_job(tmp_path / "run", tiny_checkpoint("pre"), file)
    with serial(monkeypatch):
        assert collect(job, quiet()) == 0
    report, shown = run(tmp_path / "out", parts=["flips"], run=job.run)
    assert "- tokens: 4 sequences of 40" in shown
    facts = dict(report.parts["flips"].facts)
    rows = tokens[[0, 1, 2, 3]]
    bits = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        path = tiny_checkpoint("pre")
        model = OPTForCausalLM.from_pretrained(path, dtype=dtype).eval()
        bits[dtype] = models.fire_bits(models.hf_fc1_outputs(model, rows, batch=2))
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        pairs = list(zip(bits[dtype], bits[torch.float32], strict=True))
        flipped = sum(int((ours != theirs).sum()) for ours, theirs in pairs)
        activations = sum(int(layer.sum()) for layer in bits[torch.float32])
        wanted = f"{flipped / activations:.3%} of the activations"
        assert facts[f"{name}: flipped bits"] == wanted
        by_layer = [1e6 * (a != b).sum() / a.size for a, b in pairs]
        assert facts[f"{name}: of a million, by layer"] == ", ".join(f"{x:.1f}" for x in by_layer)
        assert wanted in shown
    assert flipped > 0  # in bfloat16, so that the comparison above is not of nothing


def test_a_page_gets_the_sections_of_the_parts_measured(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Speed\n<!-- bench pack -->\nold\n<!-- end pack -->\nwhy\n"
        "<!-- bench forward -->\nmeasured before\n<!-- end forward -->\nend\n"
    )
    settings = {"parts": ["pack"], "rounds": 1, "page": str(page)}
    run(tmp_path / "out", **settings)
    text = page.read_text()
    assert text.startswith("# Speed\n<!-- bench pack -->\n\n| what | median |")
    assert "| packing, float16 |" in text
    assert "at least 4G: " in text
    assert "- cpu: " in text
    assert "old" not in text
    assert "\n<!-- end pack -->\nwhy\n<!-- bench forward -->\nmeasured before\n" in text
    page.write_text("# Speed\n")
    with pytest.raises(SettingsError, match="expected a page with <!-- bench pack -->"):
        run(tmp_path / "out", **settings)


def test_bounds():
    value = Value("peak memory / plan", 0.9, "", least=0.8, most=1.0)
    assert (value.met, value.goal) == (True, "at least 0.8, at most 1")
    assert not Value("start", 16.0, "s", most=15.0).met
    assert not Value("packing", 3e9, "activations/s", least=4e9).met
    assert (Value("read", 1.0, "").met, Value("read", 1.0, "").goal) == (True, "")


@pytest.mark.slow  # two processes that import torch
def test_a_child_tells_its_peak():
    small, large = (Child("holder", partial(_holder, n << 20), None) for n in (1, 256))
    try:
        assert large() - small() > 200 << 20
    finally:
        small.close()
        large.close()


def _holder(size):
    """What holds so many bytes each time it is called."""
    return partial(np.ones, size, np.uint8)


def test_what_fails_in_a_child_is_told():
    with pytest.raises(ValueError, match="invalid literal"):
        Child("none", partial(int, "x"), None)


def test_a_child_waits_for_its_gpu(monkeypatch):
    """The clock is read in another process, whose waiting is for its own work alone."""
    done = []
    pipe = mock.Mock(recv=mock.Mock(side_effect=[True, EOFError]))
    pipe.send = lambda answer: done.append("told")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("waited"))
    child._serve(pipe, torch.get_num_threads(), lambda: lambda: done.append("worked"))
    assert done == ["told", "worked", "waited", "told"]


@pytest.fixture
def on_gpu(tmp_path):
    """What is measured where there is a GPU."""
    write_random(tmp_path / "model", opt_config(*SHAPES["tiny"]), [0.1], torch.float16)
    shape, gpu = Decoder(Checkpoint(tmp_path / "model")).shape, torch.device("cuda")
    return Subject(tmp_path / "model", shape, torch.float16, gpu, random_tokens(4, 64, 512), 4)


def test_the_sweep_on_a_gpu_has_its_embeddings_there(on_gpu, monkeypatch):
    """As in a collect run: to look them up on the host takes longer than a small model's layers."""
    made = mock.Mock()
    monkeypatch.setattr(forward, "Sweep", made)
    monkeypatch.setattr(forward, "Decoder", made)
    Swept(on_gpu)
    assert [call.kwargs["table_on_device"] for call in made.call_args_list] == [True, True]


def test_no_hard_cap_on_a_gpu(on_gpu, monkeypatch, tmp_path):
    """The group counts what the driver pins, which is not in the memory that the cap follows."""
    caps = []
    monkeypatch.setattr(Cap, "make", lambda: Cap(tmp_path / "none"))
    monkeypatch.setattr(stream, "Child", lambda name, make, cap: caps.append(cap) or mock.Mock())
    with pytest.raises(TypeError):  # a mock's number of bytes
        stream.measure(on_gpu, rounds(1), tmp_path)
    assert set(caps) == {None}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and -m gpu")
def test_forward_on_a_gpu(tmp_path):
    report, shown = run(tmp_path, parts=["forward"], rounds=1, device="cuda")
    assert report.parts["forward"].timings
    assert "- gpu: " in shown


@pytest.mark.slow  # whole jobs, half a minute
def test_start_and_peak_of_a_collect_run(tmp_path):
    sizes = dataclasses.replace(SIZES, start_tokens=20_000)
    report, shown = run(tmp_path, sizes=sizes, parts=["start"], rounds=1)
    _, peak = report.parts["start"].values
    assert 0.5 < peak.value <= 1.0
    assert "start to first token" in shown


@pytest.mark.slow  # four whole jobs, a minute
def test_two_workers_against_one(tmp_path, monkeypatch):
    sizes = dataclasses.replace(SIZES, workers_tokens=20_000, workers_layers=2)
    monkeypatch.setattr("benchmarks.workers.BARE_SECONDS", 1.0)
    report, shown = run(tmp_path, sizes=sizes, parts=["workers"], rounds=1)
    *ratios, outside = report.parts["workers"].values
    assert [value.what.split(", ")[1] for value in ratios] == ["collect", "reduce", "bare forward"]
    assert all(0 < value.value < 4 for value in ratios)
    assert outside.value > 0
    assert "two workers / one, collect" in shown


@pytest.mark.slow  # three processes, half a minute
def test_streaming_in_processes_of_their_own(tmp_path):
    report, shown = run(tmp_path, parts=["stream"], rounds=1)
    assert "streamed, recorded / resident, recorded" in shown
    assert report.mismatches == {"streamed": 0}
    assert {OURS, RESIDENT} <= {timing.name for timing in report.parts["stream"].timings}
