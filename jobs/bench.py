"""Measure how fast it is here, as ratios against what one would use instead."""

import signal

from neuronstats.bench import bench
from neuronstats.config import BenchJob, job
from neuronstats.console import Console


@job("bench", BenchJob)
def main(settings: BenchJob) -> int:
    """Settings -> a model and tokens -> rounds, all ways in turn -> ratios, with goals beside."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: cleans up
    return bench(settings, Console())


if __name__ == "__main__":
    main()
