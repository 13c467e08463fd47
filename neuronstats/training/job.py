"""The train job: settings -> checked -> trained, resumed where it stopped -> one summary line."""

import hashlib
import json

from neuronstats.console import Console
from neuronstats.corpus.documents import content_fingerprint, documents
from neuronstats.errors import SettingsError
from neuronstats.store.layout import RUN_FILE
from neuronstats.training.loop import TrainProgress, train
from neuronstats.training.settings import TrainJob, check
from neuronstats.units import duration, short


def run(settings: TrainJob, console: Console) -> None:
    """Train a model, or go on where it stopped.

    Raises:
        SettingsError: the settings are refused; see also `train`.
        UserError: the text cannot be read; see also `train`.
    """
    out = check(settings)
    if (out / RUN_FILE).exists():
        raise SettingsError(f"out={out} is a run of jobs/collect.py: name another folder")
    content = content_fingerprint(settings.data) | {"text": settings.data.text}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    final = train(
        settings.train,
        documents(settings.data),
        out,
        origin=f"text {digest[:16]}",
        progress=lambda report: console.say(progress_line(report)),
    )
    console.say(f"trained: {final}; to look at it: model=local model.path={final}")


def progress_line(report: TrainProgress) -> str:
    """Format a report as one line."""
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
