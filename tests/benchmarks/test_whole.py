"""The script to compare with gives what the jobs give; growth is told from a fixed cost."""

import dataclasses

import numpy as np
import pytest
from helpers import models
from helpers.serial import collect_job, quiet, save_tokens, serial
from transformers import AutoModelForCausalLM

from benchmarks import by_hand, commands
from benchmarks.growth import exponent, growth
from benchmarks.rounds import Rounds
from benchmarks.settings import SHORT
from benchmarks.whole import differences, whole
from neuronstats.collect.job import collect
from neuronstats.errors import UserError
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob

SEQUENCES, POSITIONS = 24, 32


def test_the_script_and_the_jobs_agree(tmp_path, monkeypatch):
    model = models.tiny_opt(num_layers=3, hidden=16, heads=2, ffn=24, positions=POSITIONS)
    checkpoint = models.save_tokenizer(models.save_checkpoint(model, tmp_path / "model"))
    tokens = models.random_tokens(SEQUENCES, POSITIONS, seed=3)
    bos = model.config.bos_token_id
    tokens[:, 0], tokens[::3, 7] = bos, bos  # it separates documents, too
    file = save_tokens(tmp_path / "tokens.npy", tokens)
    run = tmp_path / "run"
    with serial(monkeypatch):
        assert collect(collect_job(run, checkpoint, file), quiet()) == 0
        assert reduce(ReduceJob(run=str(run)), quiet()) == 0
    decoder = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    counts, bits = by_hand.activated(decoder, tokens)
    found = {
        "activations": counts.sum(axis=1),
        "position_mi": by_hand.information(counts, len(tokens)),
        "covers": np.stack([by_hand.covers(layer, tokens, bos) for layer in bits]),
    }
    np.savez(tmp_path / "found.npz", **found)
    assert differences(run, tmp_path / "found.npz") == 0
    found["covers"][0, 2, 5] += 1
    np.savez(tmp_path / "found.npz", **found)
    assert differences(run, tmp_path / "found.npz") == 1


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5])
def test_a_fixed_cost_is_not_growth(power):
    assert exponent([7 + 3 * size**power for size in (1, 2, 4, 8)]) == pytest.approx(
        power, abs=0.01
    )


def test_what_is_hardly_more_each_time_does_not_grow():
    """Else noise of a tenth of a second would be an exponent of any size."""
    assert exponent([7.0, 7.01, 7.02, 7.3]) == 0


def test_processor_time_of_a_command_and_what_it_starts(tmp_path):
    """A child's time counts, waiting does not."""
    spin = "import time\nend = time.process_time() + 1\nwhile time.process_time() < end: pass"
    script = tmp_path / "spins.py"
    script.write_text(
        f"import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {spin!r}])\n"
        "time.sleep(0.5)\n"
    )
    ran = commands.run(script)
    assert 0.8 < ran.cpu_seconds < 1.6
    assert ran.seconds > ran.cpu_seconds
    assert 0 < ran.own_bytes < ran.all_bytes


def test_a_command_sees_no_gpu(tmp_path, monkeypatch):
    """What is measured beside it is a CPU's, and two workers found no two GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    script = tmp_path / "looks.py"
    script.write_text("import os; assert os.environ['CUDA_VISIBLE_DEVICES'] == ''\n")
    commands.run(script)


@pytest.mark.slow
def test_both_parts_on_little(tmp_path):
    sizes = dataclasses.replace(SHORT, layers=2)
    rounds = Rounds(1, 1, False, lambda _: None)
    for part, place in ((whole, tmp_path / "whole"), (growth, tmp_path / "growth")):
        place.mkdir()
        findings = part(rounds, sizes, place)
        assert not any(findings.mismatches.values())
        assert findings.facts


def test_a_command_that_nothing_looks_at(tmp_path):
    script = tmp_path / "waits.py"
    script.write_text(
        "import sys, time\ntime.sleep(0.5)\nprint('so it ends')\nsys.exit(len(sys.argv) - 1)\n"
    )
    assert 0.5 < commands.timed(script) < 20
    with pytest.raises(UserError, match="failed: so it ends"):
        commands.timed(script, "3")
