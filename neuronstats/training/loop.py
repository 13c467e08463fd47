"""Training a small OPT from text, with or without positions, with checkpoints on the way."""

import copy
import io
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuronstats.errors import SettingsError, UserError
from neuronstats.store.folder import RunFolder
from neuronstats.training.data import prepare
from neuronstats.training.recipe import batch_rows, build_model, build_optimizer, learning_rate
from neuronstats.training.settings import TrainSettings

__all__ = ["TrainProgress", "TrainSettings", "train"]

IGNORED = -100  # cross_entropy's mark for a position without a target
FREE = frozenset({"log_every", "save_every"})  # settings that may differ when going on


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainProgress:
    """One report of a running training."""

    step: int
    """Steps done."""
    steps: int
    """Steps in all."""
    tokens: int
    """Tokens trained on so far."""
    loss: float | None
    """Mean training loss since the last report, nats per token, without the penalty; None before
    the first step."""
    heldout_loss: float | None
    """Nats per held-out token; None where it was not measured."""
    tokens_per_second: float
    """Speed of this process so far."""


Report = Callable[[TrainProgress], None]


def train(
    settings: TrainSettings,
    documents: Iterable[tuple[str, str]],
    out: Path,
    *,
    origin: str = "",
    progress: Report = lambda report: None,
) -> Path:
    """Train a tokenizer and an OPT; called again after an interruption, go on where it stopped.

    A step's batch depends on the seed and the step alone, and the optimizer's state is kept: an
    interrupted training ends in the same weights as an undisturbed one (on the same machine, with
    as many threads).

    Args:
        settings: the recipe.
        documents: pairs of domain and text; not read again once `out` holds their tokens.
        out: folder for the tokenizer, the tokens, the state, `log.jsonl`, `checkpoint-N` (after N
            tokens) and `final`.
        origin: names the documents' content; a folder made from another one is refused.
        progress: called at each report.

    Returns:
        `out/final`, which transformers' AutoModelForCausalLM and AutoTokenizer load, as they do
        the checkpoints; weights in float16.

    Raises:
        SettingsError: `out` was made by other settings, or the device is none.
        UserError: too little text, another process trains in `out`, the disk cannot be written,
            or the loss is no longer finite.
    """
    _check_device(settings.device)
    folder = RunFolder(str(out), create=True)
    with folder.lock():
        noted = asdict(settings) | {"origin": origin}
        if (out / "train.json").exists():
            _check_same_settings(noted, out / "train.json")
        else:  # written last: text that was refused does not bind the folder
            prepare(
                documents,
                folder,
                vocab_size=settings.vocab_size,
                sequence_length=settings.sequence_length,
                heldout_percent=settings.heldout_percent,
                seed=settings.seed,
            )
            folder.write("train.json", (json.dumps(noted, indent=2) + "\n").encode())
        if not (out / "final").is_dir():
            run = _Run(settings, out)
            run.resume()
            run.loop(progress)
    return out / "final"


class _Run:
    """A training in memory: model, optimizer, data, and where it stands."""

    def __init__(self, settings: TrainSettings, out: Path) -> None:
        self.settings = settings
        self.out = out
        self.folder = RunFolder(str(out))
        self.train_ids = np.load(out / "train.npy", mmap_mode="r")  # [sequence, position]
        self.heldout_ids = np.load(out / "heldout.npy", mmap_mode="r")
        self.model = build_model(settings).to(settings.device)
        self.optimizer = build_optimizer(settings, self.model)
        self.penalised: list[Tensor] = []  # a step's activations by layer, float [.., neuron]
        if settings.activation_penalty:
            for layer in self.model.model.decoder.layers[settings.penalty_from_layer :]:
                layer.fc2.register_forward_pre_hook(self._note_activations)
        self.step = 0
        self.log: list[dict[str, Any]] = []

    def resume(self) -> None:
        """Load the last saved state, if there is one."""
        path = self.out / "state.pt"
        if path.exists():
            state = torch.load(path, map_location=self.settings.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.log = state["step"], state["log"]

    def loop(self, progress: Report) -> None:
        """Train to the end from where it stands, and write what is due on the way."""
        settings = self.settings
        first, started = self.step, time.monotonic()
        losses: list[Tensor] = []  # since the last report
        if self.step == 0:
            self.report(losses, 0.0, progress)
        while True:
            for tokens in settings.checkpoints:
                if self.step == math.ceil(tokens / settings.step_tokens):
                    self.keep(f"checkpoint-{tokens}")
            if self.step == settings.steps:
                break
            losses.append(self.train_step())
            self.step += 1
            at_end = self.step == settings.steps
            save = at_end or self.step % settings.save_every == 0
            if save or self.step % settings.log_every == 0:
                speed = (self.step - first) * settings.step_tokens / (time.monotonic() - started)
                self.report(losses, speed, progress)
                losses = []
            if save:
                self.save()
        self.keep("final")

    def train_step(self) -> Tensor:
        """Take one step; return the batch's loss before it, a scalar in nats per token."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.step)
        rows = batch_rows(settings, self.step, len(self.train_ids))
        loss = self.loss(self.train_ids[rows])
        (loss + self.penalty()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def loss(self, ids: NDArray[np.uint16]) -> Tensor:
        """Return the mean next-token loss of sequences [sequence, position], a scalar in nats."""
        device = torch.device(self.settings.device)
        low = self.settings.precision == "bfloat16"
        tokens = torch.from_numpy(ids.astype(np.int64)).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
            logits = self.model(input_ids=tokens, use_cache=False).logits
        # the last position has no target; marking it here saves a copy of the logits
        targets = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=IGNORED)
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED
        )

    def _note_activations(self, _: torch.nn.Module, args: tuple[Tensor]) -> None:
        """Keep what a down projection reads in a step that trains."""
        if torch.is_grad_enabled():
            self.penalised.append(args[0])

    def penalty(self) -> Tensor | float:
        """Return what the last forward pass adds to the loss for its activations, a scalar."""
        taken, self.penalised = self.penalised, []
        if not taken:
            return 0.0
        sums = [
            activations.sum(dtype=torch.float32) / (activations.numel() / activations.shape[-1])
            for activations in taken
        ]
        share = torch.stack(sums).mean() / self.settings.hidden_size
        return self.settings.activation_penalty * share

    @torch.no_grad()
    def heldout_loss(self) -> float:
        """Return the mean loss over the held-out sequences, nats per token."""
        ids = self.heldout_ids[: self.settings.heldout_sequences]
        size = self.settings.batch_sequences
        parts = [ids[start : start + size] for start in range(0, len(ids), size)]
        return sum(self.loss(part).item() * len(part) for part in parts) / len(ids)

    def report(self, losses: list[Tensor], tokens_per_second: float, progress: Report) -> None:
        """Note the losses, the held-out one where it is due, and report them."""
        settings = self.settings
        due = self.step % settings.heldout_every == 0 or self.step == settings.steps
        report = TrainProgress(
            step=self.step,
            steps=settings.steps,
            tokens=self.step * settings.step_tokens,
            loss=torch.stack(losses).mean().item() if losses else None,
            heldout_loss=self.heldout_loss() if due else None,
            tokens_per_second=tokens_per_second,
        )
        if report.loss is not None and not math.isfinite(report.loss):
            raise UserError(
                f"the training loss is {report.loss} at step {self.step}: train anew, in another "
                f"folder, with a train.learning_rate below {settings.learning_rate}"
            )
        noted = ("step", "tokens", "loss", "heldout_loss")
        self.log.append({name: getattr(report, name) for name in noted})
        progress(report)

    def save(self) -> None:
        """Write the state, the log of the steps up to it before it."""
        lines = "".join(json.dumps(entry) + "\n" for entry in self.log)
        self.folder.write("log.jsonl", lines.encode())
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "log": self.log,
        }
        file = io.BytesIO()
        torch.save(state, file)
        self.folder.write("state.pt", file.getvalue())

    def keep(self, name: str) -> None:
        """Write the model as it is now."""
        write_model(self.settings, self.model, self.step, self.out / "tokenizer", self.out / name)


def write_model(
    settings: TrainSettings, model: Any, step: int, tokenizer: Path, target: Path
) -> None:
    """Write a model (float16) and its tokenizer as a folder that transformers loads, in one move.

    Args:
        settings: how it was trained, for `training.json`.
        model: an OPTForCausalLM.
        step: steps done.
        tokenizer: the folder whose files are copied.
        target: the folder to write; an old one is replaced.
    """
    folder, partial = RunFolder(str(target.parent)), f"{target.name}.partial"
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = ["OPTForCausalLM"], torch.float16
    weights = {  # the tied output embedding is not among the named parameters
        key: parameter.detach().to("cpu", torch.float16).contiguous()
        for key, parameter in model.named_parameters()
    }
    about = {"tokens": step * settings.step_tokens, "step": step, "settings": asdict(settings)}
    files = {path.name: path.read_bytes() for path in sorted(tokenizer.iterdir())} | {
        "config.json": config.to_json_string().encode(),
        "model.safetensors": safetensors.torch.save(weights, metadata={"format": "pt"}),
        "training.json": (json.dumps(about, indent=2) + "\n").encode(),
    }
    folder.clear(f"{partial}/")
    for name, data in files.items():
        folder.write(f"{partial}/{name}", data)
    folder.replace(partial, target.name, first="config.json")


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise SettingsError(f"train.device={device} cannot be used here: {reason}") from error


def _check_same_settings(now: dict[str, Any], path: Path) -> None:
    """Refuse a folder made by other settings."""
    before = json.loads(path.read_text(encoding="utf-8"))
    names = [name for name in now | before if now.get(name) != before.get(name)]
    listed = [f"{n}: {before.get(n)} there, {now.get(n)} now" for n in names if n not in FREE]
    if listed:
        raise SettingsError(
            f"{path.parent} was made by other settings ({'; '.join(listed)}): "
            "take those, or another folder"
        )
