"""The benchmark on a tiny model: what it reports, and that all its paths give the same results.

Nothing here asserts a speed.
"""

import io
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import models
from helpers.run_job import run_job
from helpers.serial import collect_job, quiet, save_tokens, serial
from transformers import OPTForCausalLM

from benchmarks import subject as bench_model
from benchmarks.child import Cap, Child
from benchmarks.forward import Swept, mismatches
from benchmarks.job import bench
from benchmarks.reduction import mixed_bits, zipf_tokens
from benchmarks.rounds import Contestant, Rounds, Timing, Value
from benchmarks.settings import BenchJob, BenchSettings
from benchmarks.stream import OURS, RESIDENT, STAND_IN
from benchmarks.subject import Subject
from neuronstats.bits import count
from neuronstats.collect.job import collect
from neuronstats.console import Console
from neuronstats.errors import SettingsError, UserError
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.decoder import Decoder
from neuronstats.model.settings import Dtype, ModelSettings

TINY = {"shape": "tiny", "short": True, "positions": 64, "batch_sequences": 2, "device": "cpu"}
FEW = {"rounds": 2, "reduce_tokens": 20_000, "merge_neurons": 40}
TYPES = ("float32", "bfloat16", "float16")
PATHS = {  # all that is compared with the plain way of doing it
    "forward": {"sweep", "first half", "store, one core", "store, thread"},
    "pack": {"counts", "position counts", *(f"packing, {t}" for t in TYPES)},
    "reduce": {
        *(f"covers, {way}" for way in ("exact covers", "cover_limit=50", "np.unique", "Counter")),
        *(f"covers, n={n}, {way}" for n in (1, 2, 3) for way in ("np.unique", "Counter")),
    },
    "merge": {"covers, np.unique", "covers, Counter"},
}
TIMED = list(PATHS)  # stream, start and page are measured below: they start other processes


def run(out, model=None, **settings):
    settings = {"parts": TIMED} | settings
    stream = io.StringIO()
    job = BenchJob(
        model=model or ModelSettings(name="random"),
        bench=BenchSettings(**TINY | FEW | settings),
        out=str(out),
    )
    code = bench(job, Console(stream))
    return code, json.loads((out / "bench.json").read_text()), stream.getvalue()


def _holder(size):
    """What holds so many bytes each time it is called."""
    return partial(np.ones, size, np.uint8)


def rounds(number):
    return Rounds(number, 1, on_gpu=False, tell=lambda _: None)


def test_report(tmp_path):
    code, report, shown = run(tmp_path)
    assert code == 0
    assert {name: set(part["mismatches"]) for name, part in report["parts"].items()} == PATHS
    for part in report["parts"].values():
        assert set(part["mismatches"].values()) == {0}
        assert part["timings"]
        for timing in part["timings"]:
            assert len(timing["seconds"]) == len(timing["cpu_seconds"]) == 2
            assert timing["per_second"] > 0
        for ratio in part["ratios"]:
            assert len(ratio["rounds"]) == 2
            assert (ratio["met"] is None) == (ratio["goal"] is None)
            assert ratio["what"] in shown
    assert {"cpu", "cores", "threads", "torch", "load_average"} <= set(report["machine"])
    assert "slowest round / fastest" in report["noise"]
    page = (tmp_path / "bench.md").read_text()
    assert "| recorded / bare |" in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bench.json", "bench.md"]


def test_every_path_gives_the_same_in_bfloat16(tmp_path):
    model = ModelSettings(name="random", dtype=Dtype.bfloat16)
    _, report, _ = run(tmp_path, model, parts=["forward"], rounds=1)
    assert report["subject"]["type"] == "bfloat16"
    for part in report["parts"].values():
        assert set(part["mismatches"].values()) == {0}


def test_real_checkpoint(tmp_path, tiny_checkpoint, order):
    model = ModelSettings(name="mine", path=str(tiny_checkpoint(order)))
    _, report, _ = run(tmp_path, model, parts=["forward"], rounds=1, sequences=3)
    assert report["subject"]["model"] == "mine"
    assert report["subject"]["tokens"].startswith("4 sequences")
    for part in report["parts"].values():
        assert set(part["mismatches"].values()) == {0}


def test_random_weights_activate_the_share_asked_for(tmp_path):
    folder = tmp_path / "model"
    bench_model.write_random(folder, "tiny", None, 0.2, torch.float16)
    checkpoint = Checkpoint(folder)
    assert checkpoint.config.num_hidden_layers == 4
    assert checkpoint.dtype == torch.float16
    shape, cpu = Decoder(checkpoint).shape, torch.device("cpu")
    tokens = bench_model.random_tokens(8, 64, shape.vocabulary)
    bitmaps = Swept(Subject(folder, shape, torch.float32, cpu, tokens, 4)).record()
    assert 0.1 < count(np.concatenate(bitmaps)).sum() / (4 * 256 * tokens.size) < 0.3


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
    code, report, shown = run(tmp_path, parts=["forward"], rounds=1)
    assert code == 1
    assert set(report["parts"]["forward"]["mismatches"].values()) == {3}
    assert "these differ: {'sweep': 3" in shown


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
    options = {"parts": ["flips"], "run": job.run, "sequences": 4}
    code, report, shown = run(tmp_path / "out", **options)
    assert code == 0
    assert report["subject"]["tokens"].startswith("4 sequences of 40, spread over")
    facts = report["parts"]["flips"]["facts"]
    rows = tokens[[0, 1, 2, 3]]
    bits = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        path = tiny_checkpoint("pre")
        model = OPTForCausalLM.from_pretrained(path, dtype=dtype).eval()
        bits[dtype] = models.fire_bits(models.hf_fc1_outputs(model, rows, batch=2))
    for dtype, least in ((torch.float16, 0), (torch.bfloat16, 1)):
        name = str(dtype).removeprefix("torch.")
        pairs = list(zip(bits[dtype], bits[torch.float32], strict=True))
        flipped = sum(int((ours != theirs).sum()) for ours, theirs in pairs)
        activations = sum(int(layer.sum()) for layer in bits[torch.float32])
        assert flipped >= least
        told = f"{flipped / activations:.3%} of the activations"
        assert facts[f"{name}: flipped bits"] == told
        by_layer = [1e6 * (a != b).sum() / a.size for a, b in pairs]
        assert facts[f"{name}: of a million, by layer"] == ", ".join(f"{x:.1f}" for x in by_layer)
        assert told in shown


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"parts": ["forwards"]},
            "expected some of forward, pack, reduce, merge, stream, start, flips",
        ),
        ({"parts": []}, "expected some of"),
        ({"positions": 60}, "a multiple of 8"),
        ({"positions": 4096}, "at most the model's 2048"),
        ({"shape": "opt-1b"}, "expected one of tiny, opt-125m"),
        ({"device": "tpu"}, "bench.device=tpu"),
        ({"rounds": 0}, "bench.rounds=0"),
        ({"reduce_neurons": 30}, "a multiple of 20"),
        ({"merge_layers": 1}, "bench.merge_layers=1"),
        ({"active": 1.0}, "bench.active=1.0"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, settings, words):
    with pytest.raises(SettingsError, match="bench") as caught:
        run(tmp_path, **settings)
    assert words in str(caught.value)


def test_a_page_gets_the_sections_of_the_parts_measured(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Speed\n<!-- bench pack -->\nold\n<!-- end pack -->\nwhy\n"
        "<!-- bench forward -->\nmeasured before\n<!-- end forward -->\nend\n"
    )
    stream = io.StringIO()
    settings = BenchSettings(**TINY | FEW | {"parts": ["pack"], "rounds": 1})
    job = BenchJob(bench=settings, out=str(tmp_path / "out"), page=str(page))
    assert bench(job, Console(stream)) == 0
    text = page.read_text()
    assert text.startswith("# Speed\n<!-- bench pack -->\n\n| what | median |")
    assert "| packing, float16 |" in text
    assert "at least 4G: " in text
    assert "- cpu: " in text
    assert "old" not in text
    assert "\n<!-- end pack -->\nwhy\n<!-- bench forward -->\nmeasured before\n" in text
    page.write_text("# Speed\n")
    with pytest.raises(SettingsError, match="expected a page with <!-- bench pack -->"):
        bench(job, Console(stream))


def test_bounds():
    value = Value("peak memory / plan", 0.9, "", least=0.8, most=1.0)
    assert (value.met, value.goal) == (True, "at least 0.8, at most 1")
    assert not Value("start", 16.0, "s", most=15.0).met
    assert not Value("packing", 3e9, "activations/s", least=4e9).met
    assert (Value("read", 1.0, "").met, Value("read", 1.0, "").goal) == (True, "")


def test_a_cap_holds_file_pages_and_memory():
    cap = Cap.make()
    if cap is None:
        pytest.skip("no memory group can be made here")
    child = Child("holder", partial(_holder, 256 << 20), cap)
    try:
        peak = child()
        assert peak > 256 << 20
        assert child.cpu_seconds() > 0
        assert child.disk_bytes_read() >= 0
        cap.set(peak - (128 << 20))
        with pytest.raises(UserError, match=r"holder: .* too little memory"):
            child()
    finally:
        child.close()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/neuronstats-{os.getpid()}-*"))


def test_what_fails_in_a_child_is_told():
    with pytest.raises(ValueError, match="invalid literal"):
        Child("none", partial(int, "x"), None)


@pytest.mark.slow  # whole jobs, half a minute
def test_start_and_peak_of_a_collect_run(tmp_path):
    code, report, shown = run(tmp_path, parts=["start"], rounds=1, start_tokens=20_000)
    assert code == 0
    start, peak = report["parts"]["start"]["values"]
    assert start["value"] > 0
    assert 0.5 < peak["value"] <= 1.0
    assert peak["met"] == (peak["value"] >= 0.8)
    assert "start to first token" in shown


@pytest.mark.slow  # four processes, half a minute
def test_streaming_in_processes_of_their_own(tmp_path):
    code, shown, complaint = run_job(
        "bench",
        "bench.shape=tiny",
        "bench.short=true",
        "bench.parts=[stream]",
        "bench.rounds=1",
        "bench.positions=64",
        "bench.batch_sequences=2",
        "out=there",
        cwd=tmp_path,
    )
    assert (code, complaint) == (0, "")
    assert "streamed, recorded / resident, recorded" in shown
    report = json.loads((tmp_path / "there" / "bench.json").read_text())["parts"]["stream"]
    assert report["mismatches"] == {"streamed": 0}
    names = {timing["name"] for timing in report["timings"]}
    assert {OURS, RESIDENT} < names
    assert names & {STAND_IN, "AirLLM"}


def test_command_line(tmp_path):
    settings = ("bench.shape=tiny", "bench.short=true", "bench.parts=[pack]", "bench.rounds=1")
    code, shown, complaint = run_job("bench", *settings, "out=there", cwd=tmp_path)
    assert (code, complaint) == (0, "")
    assert "pack and transpose" in shown
    assert (tmp_path / "there" / "bench.json").is_file()
    code, _, complaint = run_job("bench", "bench.parts=[tea]", cwd=tmp_path)
    assert code == 2
    assert "tea" in complaint
