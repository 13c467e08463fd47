"""Train a small OPT from text, with or without positions, with checkpoints on the way."""

import signal

from neuronstats.cli import job
from neuronstats.console import Console
from neuronstats.training.settings import TrainJob


@job("train", TrainJob)
def main(settings: TrainJob) -> None:
    """Settings -> training, resumed where it stopped -> one summary line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    from neuronstats.training.job import run  # heavy: not for --help

    run(settings, Console())


if __name__ == "__main__":
    main()
