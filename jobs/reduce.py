"""Merge a run's bitmaps and counts into tables."""

from neuronstats.config import ReduceJob, job
from neuronstats.console import Console
from neuronstats.reduce import reduce


@job("reduce", ReduceJob)
def main(settings: ReduceJob) -> int:
    """Settings -> blocks of neurons, merged -> tables, replaced at once -> one summary line."""
    return reduce(settings, Console())


if __name__ == "__main__":
    main()
