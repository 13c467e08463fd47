"""Train a small OPT from text, with or without positions, with checkpoints on the way."""

import hashlib
import json
import signal
from dataclasses import dataclass, field
from pathlib import Path

from neuronstats.config import job
from neuronstats.console import Console, duration, short
from neuronstats.errors import SettingsError
from neuronstats.text import DataSettings, content_fingerprint, documents
from neuronstats.train import TrainProgress, TrainSettings, train


@dataclass(kw_only=True, slots=True)
class TrainJob:
    """Train a small OPT from text, with or without positions, with checkpoints on the way."""

    train: TrainSettings = field(default_factory=TrainSettings)
    data: DataSettings = field(default_factory=DataSettings)
    out: str | None = None
    """The folder to train in; the models are its checkpoint-N and final."""


def check(settings: TrainJob) -> Path:
    """Refuse what this job would have to ignore.

    Returns:
        The folder to train in.

    Raises:
        SettingsError: names the setting and what to do instead.
    """
    data = settings.data
    if not settings.out:
        raise SettingsError("out= is missing: name a folder to train in")
    if "://" in settings.out:
        raise SettingsError(f"out={settings.out}: expected a local folder")
    if data.kind not in ("local", "sample"):
        raise SettingsError(
            f"data={data.name}: text from files is needed: data=local data.path=..."
        )
    replaced = {"sequence_length": "train.sequence_length", "max_tokens": "train.tokens"}
    for name, instead in replaced.items():
        if getattr(data, name) is not None:
            raise SettingsError(f"data.{name} has no meaning here: use {instead}")
    if data.shares is not None or data.packing != "concat":
        raise SettingsError("data.shares and data.packing have no meaning here: leave them out")
    return Path(settings.out).expanduser()


def line(report: TrainProgress) -> str:
    """Write a report as one line."""
    words = [f"step {report.step} of {report.steps}", f"{short(report.tokens)} tokens"]
    if report.loss is not None:
        words.append(f"loss {report.loss:.3f}")
    if report.heldout_loss is not None:
        words.append(f"held-out loss {report.heldout_loss:.3f}")
    if report.tokens_per_second:
        left = report.tokens * (report.steps - report.step) / max(report.step, 1)
        words.append(f"{short(report.tokens_per_second)} tokens/s")
        words.append(f"{duration(left / report.tokens_per_second)} left")
    return ", ".join(words)


@job("train", TrainJob)
def main(settings: TrainJob) -> None:
    """Settings -> training, resumed where it stopped -> one summary line."""
    out, console = check(settings), Console()
    content = content_fingerprint(settings.data) | {"text": settings.data.text}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    final = train(
        settings.train,
        documents(settings.data),
        out,
        origin=f"text {digest[:16]}",
        progress=lambda report: console.say(line(report)),
    )
    console.say(f"trained: {final}; to look at it: model=local model.path={final}")


if __name__ == "__main__":
    main()
