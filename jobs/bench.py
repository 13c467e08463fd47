"""Measure how fast it is here, as ratios against what one would use instead."""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ is not installed

from benchmarks.settings import BenchJob
from neuronstats.cli import job
from neuronstats.console import Console


@job("bench", BenchJob)
def main(settings: BenchJob) -> int:
    """Settings -> a model and tokens -> rounds, all ways in turn -> ratios, with goals beside."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: cleans up
    from benchmarks.job import bench  # heavy: not for --help

    return bench(settings, Console())


if __name__ == "__main__":
    main()
