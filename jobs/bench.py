"""Measure how fast it is here, as ratios against what one would use instead."""

import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
if not (ROOT / "benchmarks").is_dir():
    sys.stderr.write(
        "error: bench needs a checkout: benchmarks/ is not installed. Clone the repository, and run"
        " python jobs/bench.py there.\n"
    )
    sys.exit(2)
sys.path.insert(0, str(ROOT))

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
