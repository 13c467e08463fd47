"""A tiny training: it learns, resumes to the same bits, keeps what it should, refuses the rest."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.run_job import run_job
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuronstats.errors import SettingsError, UserError
from neuronstats.store.folder import RunFolder
from neuronstats.training.data import BOS_ID, is_held_out, pack, train_tokenizer
from neuronstats.training.loop import TrainProgress, TrainSettings, _Run, train
from neuronstats.training.recipe import batch_rows, build_model, learning_rate

WORDS = ["the", "king", "queen", "saw", "sent", "to", "and", "bold", "old", "city", "1", "2", "="]
SMALL = {
    "tokens": 32 * 4 * 40,
    "checkpoints": [0, 1000, 2000],
    "num_layers": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "ffn_size": 32,
    "vocab_size": 300,
    "sequence_length": 32,
    "batch_sequences": 4,
    "learning_rate": 1e-2,
    "heldout_percent": 20,
    "heldout_sequences": 8,
    "heldout_every": 20,
    "log_every": 10,
    "save_every": 8,
}


def make_documents(number: int = 60, words: int = 80) -> list[tuple[str, str]]:
    rng = random.Random(1)
    return [("prose", " ".join(rng.choices(WORDS, k=words))) for _ in range(number)]


def small(**changes: object) -> TrainSettings:
    return TrainSettings(**{**SMALL, **changes})


def run(out: Path, **changes: object) -> list[TrainProgress]:
    reports: list[TrainProgress] = []
    final = train(small(**changes), make_documents(), out, progress=reports.append)
    assert final == out / "final"
    return reports


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TrainProgress]]:
    out = tmp_path_factory.mktemp("undisturbed")
    return out, run(out)


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

    def stop(report: TrainProgress) -> None:
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


def test_untrained_weights_have_the_stated_spread():
    settings = small(hidden_size=64, ffn_size=256, num_layers=4)
    spread = {name: p.std().item() for name, p in build_model(settings).named_parameters()}
    layer = "model.decoder.layers.2."
    assert spread[layer + "fc1.weight"] == pytest.approx(0.06, rel=0.05)
    assert spread[layer + "self_attn.q_proj.weight"] == pytest.approx(0.06, rel=0.05)
    assert spread[layer + "fc2.weight"] == pytest.approx(0.06 / np.sqrt(8), rel=0.05)
    assert spread[layer + "self_attn.out_proj.weight"] == pytest.approx(0.06 / np.sqrt(8), rel=0.05)
    assert spread["model.decoder.embed_tokens.weight"] == pytest.approx(0.06, rel=0.05)
    assert spread["model.decoder.embed_positions.weight"] == pytest.approx(0.02, rel=0.1)


def test_embeddings_and_last_norm_start_where_they_are_set():
    plain = dict(build_model(small()).named_parameters())
    changed = dict(
        build_model(small(embedding_init_std=0.4, final_norm_init=0.2)).named_parameters()
    )
    differ = {name for name in plain if not torch.equal(plain[name], changed[name])}
    tokens, norm = "model.decoder.embed_tokens.weight", "model.decoder.final_layer_norm.weight"
    assert differ == {tokens, norm}
    assert torch.allclose(changed[tokens], plain[tokens] * (0.4 / 0.06))
    assert torch.equal(changed[norm], torch.full_like(plain[norm], 0.2))


@pytest.mark.parametrize("first", [0, 1])
def test_penalty_is_the_mean_activation_by_layer(first, undisturbed):
    """The added loss and its gradient against transformers' own activations, by hand."""
    out, _ = undisturbed
    settings = small(activation_penalty=0.3, penalty_from_layer=first)
    run = _Run(settings, out)
    tokens = run.train_ids[:4]
    loss = run.loss(tokens)
    added = run.penalty()
    added.backward()

    model = build_model(settings)
    layers = model.model.decoder.layers
    seen = []
    for layer in layers:
        layer.activation_fn.register_forward_hook(lambda _, args, result: seen.append(result))
    model(input_ids=torch.from_numpy(tokens.astype(np.int64)))
    by_layer = [a.reshape(-1, settings.ffn_size).mean(0).sum() for a in seen]
    expected = 0.3 * sum(by_layer[first:]) / len(by_layer[first:]) / settings.hidden_size
    assert added.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() == pytest.approx(math.log(300), rel=0.05)  # without the penalty
    expected.backward()
    gradients = dict(run.model.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-8), name
    assert run.penalty() == 0.0  # each step's activations count once
    run.heldout_loss()
    assert run.penalty() == 0.0  # and those of the held-out text not at all


def test_penalty_makes_neurons_sparser_and_resumes(tmp_path, undisturbed):
    class Stop(Exception):
        pass

    def stop(report: TrainProgress) -> None:
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


def test_learning_rate_warms_up_and_falls_to_its_share():
    settings = small(tokens=128 * 1000, learning_rate=1.0)
    rates = [learning_rate(settings, step) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 20)
    assert rates[19] == rates[20] == 1.0
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[510] == pytest.approx(0.525, abs=1e-9)  # half way down the cosine
    assert rates[-1] == pytest.approx(0.05, abs=1e-4)


def test_each_epoch_is_another_permutation_of_all_sequences():
    settings = small(batch_sequences=3)
    rows = np.concatenate([batch_rows(settings, step, 7) for step in range(7)])
    assert len(rows) == 21
    epochs = rows.reshape(3, 7)
    for epoch in epochs:
        assert sorted(epoch) == list(range(7))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert (rows[6:9] == batch_rows(settings, 2, 7)).all()  # from the step alone


def test_sequences_are_the_documents_joined_with_the_first_token_before_each():
    texts = [text for _, text in make_documents(5, 20)] + ["literal </s> in a text"]
    tokenizer = train_tokenizer(texts, 280)
    ids = pack(tokenizer, texts, 16)
    assert ids.dtype == np.uint16
    assert (ids[:, 0] == BOS_ID).all()
    joined = ids[:, 1:].ravel().tolist()
    documents = "".join("".join(tokenizer.convert_ids_to_tokens(joined)).split("Ġ"))
    given = "</s>".join(texts).replace(" ", "")
    assert given.startswith(documents)
    assert len(given) - len(documents) < 16 * 10  # less than a sequence is left out


def test_literal_special_tokens_are_text():
    tokenizer = train_tokenizer(["abc </s> <pad>"], 260)
    ids = pack(tokenizer, ["</s><pad>"] * 4, 8)
    assert (ids[:, 1:] == BOS_ID).sum() <= 4  # one after each document
    assert not (ids == 1).any()


def test_held_out_documents_are_a_share_and_copies_stay_together():
    texts = [f"document number {number}" for number in range(5000)]
    share = np.mean([is_held_out(text, 6) for text in texts])
    assert share == pytest.approx(0.06, abs=0.01)
    assert all(is_held_out(text, 30) for text in texts if is_held_out(text, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "train.tokens=0: expected more than 0"),
        ({"num_heads": 3}, "train.num_heads=3: expected a divisor of hidden_size=16"),
        ({"vocab_size": 100}, "train.vocab_size=100: expected from 260 to 65536"),
        ({"vocab_size": 70000}, "train.vocab_size=70000"),
        ({"checkpoints": [0, 10**9]}, "expected numbers from 0 to tokens=5120"),
        ({"sequence_length": 1}, "train.sequence_length=1: expected 2 or more"),
        ({"precision": "float64"}, "train.precision=float64: expected float32 or bfloat16"),
        ({"beta2": 1.0}, "train.beta2=1.0: expected at least 0 and below 1"),
        ({"heldout_percent": 0}, "train.heldout_percent=0: expected from 1 to 50"),
        ({"seed": -1}, "train.seed=-1: expected 0 or more"),
        ({"activation_penalty": -0.1}, "train.activation_penalty=-0.1: expected 0 or more"),
        ({"penalty_from_layer": 2}, "train.penalty_from_layer=2: expected from 0 to 1"),
        ({"embedding_init_std": 0.0}, "train.embedding_init_std=0.0: expected null or greater"),
        ({"final_norm_init": 0.0}, "train.final_norm_init=0.0: expected more than 0"),
        ({"learning_rate": float("nan")}, "train.learning_rate=nan: expected more than 0"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(SettingsError) as caught:
        small(**change)
    assert message in str(caught.value)


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


def test_settings_are_a_structured_config():
    schema = OmegaConf.structured(TrainSettings)
    merged = OmegaConf.merge(schema, {"tokens": 5000, "checkpoints": [0], "positions": False})
    settings = OmegaConf.to_object(merged)
    assert settings == TrainSettings(tokens=5000, checkpoints=[0], positions=False)


JOB_OVERRIDES = [f"train.{name}={value}" for name, value in SMALL.items()]


@pytest.fixture
def train_job():
    """train_job(words): the job's real main; its exit code, standard output and error."""
    before = signal.getsignal(signal.SIGTERM)
    yield partial(run_job, "train")
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.jsonl"
    rows = [json.dumps({"words": text, "kind": kind}) for kind, text in make_documents()]
    path.write_text("\n".join(rows))
    return path


def local(path: Path) -> list[str]:
    return ["data=local", f"data.path={path}", "data.text=words", "data.domain=kind"]


def test_job_trains_and_leaves_a_finished_folder_alone(train_job, text_file, tmp_path):
    arguments = [*local(text_file), *JOB_OVERRIDES, f"out={tmp_path / 'out'}"]
    code, out, _ = train_job(*arguments)
    assert code == 0
    assert "step 40 of 40, 5.12k tokens, loss " in out
    assert f"trained: {tmp_path / 'out' / 'final'}" in out
    train(small(), make_documents(), tmp_path / "library")
    assert_equal_weights(tmp_path / "out" / "final", tmp_path / "library" / "final")
    code, out, _ = train_job(*arguments)
    assert code == 0
    assert "step" not in out
    code, _, err = train_job(*arguments, "train.seed=5")
    assert code == 2
    assert "seed: 0 there, 5 now" in err
    text_file.write_text(text_file.read_text().replace("queen", "quern"))
    code, _, err = train_job(*arguments)
    assert code == 2
    assert "origin: text " in err


def test_job_ends_with_130_on_sigterm_and_goes_on(train_job, text_file, tmp_path, monkeypatch):
    arguments = [*local(text_file), *JOB_OVERRIDES, f"out={tmp_path / 'out'}"]

    def end(console, text: str) -> None:
        if text.startswith("step 20 "):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("neuronstats.console.Console.say", end)
        code, _, err = train_job(*arguments)
    assert code == 130
    assert "The same command goes on where it stopped" in err
    assert not (tmp_path / "out" / "final").exists()
    code, out, _ = train_job(*arguments)
    assert code == 0
    assert "step 16 " not in out  # the state saved there was taken up
    train(small(), make_documents(), tmp_path / "library")
    assert_equal_weights(tmp_path / "out" / "final", tmp_path / "library" / "final")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "out= is missing"),
        (["out="], "out= is missing"),
        (["out=s3://bucket/x"], "expected a local folder"),
        (["out=OUT", "train.tokns=3"], "tokns"),
        (["out=OUT", "train.tokens=many"], "many"),
        (["out=OUT", "train.vocab_size=10"], "train.vocab_size=10: expected from 260 to 65536"),
        (["out=OUT", "data=paper"], "data=local data.path=..."),
        (["out=OUT", "data=tokens", "data.path=x.npy"], "data=local data.path=..."),
        (["out=OUT", "data.max_tokens=5"], "data.max_tokens has no meaning here: use train.tokens"),
        (["out=OUT", "data.sequence_length=64"], "use train.sequence_length"),
        (["out=OUT", "data.packing=document"], "data.packing have no meaning"),
        (["out=OUT", "data=news"], "news"),
    ],
)
def test_job_refuses_wrong_settings_and_touches_nothing(train_job, overrides, message, tmp_path):
    code, _, err = train_job(*overrides, cwd=tmp_path)
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_job_refuses_to_train_in_a_run(train_job, tmp_path):
    (tmp_path / "run.yaml").write_text("format: 1")
    code, _, err = train_job(f"out={tmp_path}")
    assert code == 2
    assert "is a run of jobs/collect.py: name another folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_job_says_what_is_wrong_with_the_text(train_job, text_file, tmp_path):
    out = f"out={tmp_path / 'out'}"
    code, _, err = train_job(*local(tmp_path / "no.jsonl"), out)
    assert code == 2
    assert "no.jsonl: there is no such file" in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    code, _, err = train_job(*local(text_file), out, "data.text=speech")
    assert code == 1
    assert "speech" in err.splitlines()[-1]
    text_file.write_text('{"words": "short", "kind": "prose"}')
    code, _, err = train_job(*local(text_file), out)
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("error: the heldout text (0 of 1 documents) gives less than one")
    code, _, err = train_job(*local(text_file), out, "train.seed=1")
    assert code == 1  # the folder is not bound to the first settings
    assert "less than one" in err
