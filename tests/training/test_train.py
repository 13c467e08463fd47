"""A tiny training: it learns, resumes to the same bits, keeps what it should, refuses the rest."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import SMALL, assert_equal_weights, make_documents, run, small, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuronstats.errors import SettingsError, UserError
from neuronstats.store.folder import RunFolder
from neuronstats.training.data import BOS_ID
from neuronstats.training.loop import _Run, train
from neuronstats.training.recipe import build_model


def test_loss_falls_on_trained_and_held_out_text(undisturbed):
    _, reports = undisturbed
    held_out = [report.heldout_loss for report in reports if report.heldout_loss is not None]
    losses = [report.loss for report in reports if report.loss is not None]
    assert len(held_out) == 3
    assert held_out[0] == pytest.approx(np.log(300), abs=0.3)  # untrained: no token is preferred
    assert held_out[-1] < held_out[0] - 1
    assert losses[-1] < losses[0] - 1
    assert reports[0].loss is None
    assert reports[-1].step == reports[-1].steps == 40
    assert reports[-1].tokens == SMALL["tokens"]


def test_log_holds_every_report(undisturbed):
    out, reports = undisturbed
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [report.step for report in reports]
    assert [line["loss"] for line in lines] == [report.loss for report in reports]


def test_keeps_checkpoints_at_the_stated_counts(undisturbed):
    out, _ = undisturbed
    kept = {p.name: json.loads((p / "training.json").read_text()) for p in out.glob("*-*/")}
    assert {name: told["tokens"] for name, told in kept.items()} == {
        "checkpoint-0": 0,
        "checkpoint-1000": 1024,  # the first whole step of 128 tokens at or after 1000
        "checkpoint-2000": 2048,
    }
    untrained = build_model(small()).half().state_dict()
    for name, tensor in weights(out / "checkpoint-0").items():
        assert torch.equal(tensor, untrained[name]), name
    name = "model.decoder.layers.0.fc1.weight"
    states = [weights(out / f)[name] for f in ("checkpoint-0", "checkpoint-2000", "final")]
    assert not torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])


def test_folders_load_with_transformers_and_hold_the_trained_model(undisturbed):
    out, reports = undisturbed
    model = AutoModelForCausalLM.from_pretrained(out / "final", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out / "final")
    assert model.config.bos_token_id == tokenizer.bos_token_id == BOS_ID
    assert tokenizer.bos_token == "</s>"
    assert tokenizer.pad_token_id == model.config.pad_token_id == 1
    text = "the old king saw Ünicode </s"
    ids = tokenizer(text).input_ids
    assert ids[0] != BOS_ID  # the begin-of-sequence token is the packing's, not the tokenizer's
    assert tokenizer.decode(ids) == text
    held_out = torch.from_numpy(np.load(out / "heldout.npy")[:8].astype(np.int64))
    with torch.no_grad():
        loss = model(input_ids=held_out, labels=held_out).loss.item()
    assert loss == pytest.approx(reports[-1].heldout_loss, abs=2e-3)  # weights are in float16


@pytest.mark.parametrize("stop_at", [8, 17, 24])
def test_resumes_to_the_same_bits(stop_at, undisturbed, tmp_path):
    class Stop(Exception):
        pass

    def stop(report):
        if report.step >= stop_at:
            raise Stop

    with pytest.raises(Stop):
        train(small(), make_documents(), tmp_path, progress=stop)
    assert not (tmp_path / "final").exists()

    def unread():
        raise AssertionError("the documents are read once")
        yield

    train(small(), unread(), tmp_path)
    expected, _ = undisturbed
    for name in ("checkpoint-0", "checkpoint-1000", "checkpoint-2000", "final"):
        assert_equal_weights(tmp_path / name, expected / name)
    assert (tmp_path / "log.jsonl").read_text() == (expected / "log.jsonl").read_text()


def test_resumes_to_the_same_bits_after_a_kill(undisturbed, tmp_path):
    script = """
        import os, signal, sys
        from pathlib import Path
        import torch
        torch.set_num_threads(int(sys.argv[2]))
        sys.path[:0] = [sys.argv[3], str(Path(sys.argv[3]).parent)]
        from test_train import make_documents, small, train

        def kill(report):
            if report.step >= 20:
                os.kill(os.getpid(), signal.SIGKILL)

        train(small(), make_documents(), Path(sys.argv[1]), progress=kill)
    """
    threads, here = str(torch.get_num_threads()), str(Path(__file__).parent)
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), threads, here]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    run(tmp_path)
    assert_equal_weights(tmp_path / "final", undisturbed[0] / "final")


def test_finished_training_is_left_alone(undisturbed):
    out, _ = undisturbed
    before = (out / "final" / "model.safetensors").stat().st_mtime_ns
    assert run(out) == []
    assert run(out, log_every=3, save_every=5) == []
    assert (out / "final" / "model.safetensors").stat().st_mtime_ns == before


def test_without_positions_their_embeddings_are_zero_at_the_end(undisturbed, tmp_path):
    run(tmp_path, positions=False)
    name = "model.decoder.embed_positions.weight"
    assert torch.count_nonzero(weights(tmp_path / "final")[name]) == 0
    assert torch.count_nonzero(weights(undisturbed[0] / "final")[name]) > 0
    # all else started alike, and was trained
    for key, tensor in weights(tmp_path / "checkpoint-0").items():
        if key != name:
            assert torch.equal(tensor, weights(undisturbed[0] / "checkpoint-0")[key]), key
    fc1 = "model.decoder.layers.1.fc1.weight"
    assert not torch.equal(
        weights(tmp_path / "final")[fc1], weights(tmp_path / "checkpoint-0")[fc1]
    )


def test_penalty_makes_neurons_sparser_and_resumes(tmp_path, undisturbed):
    class Stop(Exception):
        pass

    def stop(report):
        if report.step >= 20:
            raise Stop

    penalised = {"activation_penalty": 1.0, "embedding_init_std": 0.2}
    run(tmp_path / "whole", **penalised)
    with pytest.raises(Stop):
        train(small(**penalised), make_documents(), tmp_path / "cut", progress=stop)
    run(tmp_path / "cut", **penalised)
    assert_equal_weights(tmp_path / "whole" / "final", tmp_path / "cut" / "final")
    other = _Run(small(**penalised), tmp_path / "whole")
    other.resume()
    plain = _Run(small(activation_penalty=1.0), undisturbed[0])
    plain.model.load_state_dict(torch.load(undisturbed[0] / "state.pt")["model"])
    sums = []
    for trained in (plain, other):
        trained.loss(trained.train_ids[:8])
        sums.append(trained.penalty().item())
    assert sums[1] < 0.5 * sums[0]


@pytest.mark.filterwarnings("ignore")  # torch warns of some drivers before it fails
@pytest.mark.parametrize("device", ["gpu", "cuda:77", ""])
def test_device_that_is_not_there_is_refused_before_anything_is_written(device, tmp_path):
    with pytest.raises(SettingsError, match=f"train.device={device} cannot be used here"):
        train(small(device=device), make_documents(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_settings_on_a_folder_are_refused_by_name(undisturbed):
    out, _ = undisturbed
    with pytest.raises(SettingsError) as caught:
        run(out, seed=7, learning_rate=1e-3)
    message = str(caught.value)
    assert "seed: 0 there, 7 now" in message
    assert "learning_rate: 0.01 there, 0.001 now" in message
    assert "tokens" not in message
    with pytest.raises(SettingsError, match="origin:  there, other text now"):
        train(small(), make_documents(), out, origin="other text")


def test_two_trainings_in_one_folder_are_refused(tmp_path):
    with RunFolder(str(tmp_path)).lock(), pytest.raises(UserError, match="another job"):
        train(small(), make_documents(), tmp_path)


@pytest.mark.parametrize("documents", [[], [("prose", "")], [("prose", "too short")]])
def test_too_little_text_is_refused(documents, tmp_path):
    with pytest.raises(UserError, match="gives less than one sequence of 32 tokens"):
        train(small(), documents, tmp_path)


def test_loss_that_is_not_finite_ends_the_training(tmp_path):
    with pytest.raises(UserError, match=r"training loss is (nan|inf) at step .*learning_rate"):
        run(tmp_path, learning_rate=1e30, clip_norm=1e30, weight_decay=0.0)
    assert not (tmp_path / "final").exists()
