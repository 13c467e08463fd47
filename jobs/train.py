"""Train a small OPT from text, with or without positions, with checkpoints on the way."""

import hashlib
import json
import signal

from neuronstats.cli import job
from neuronstats.console import Console
from neuronstats.corpus.documents import content_fingerprint, documents
from neuronstats.training.loop import TrainProgress, train
from neuronstats.training.settings import TrainJob, check
from neuronstats.units import duration, short


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
