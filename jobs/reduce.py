"""Merge a run's bitmaps and counts into tables."""

from neuronstats.cli import job
from neuronstats.console import Console
from neuronstats.reduce.settings import ReduceJob


@job("reduce", ReduceJob)
def main(settings: ReduceJob) -> int:
    """Settings -> blocks of neurons, merged -> tables, replaced at once -> one summary line."""
    from neuronstats.reduce.job import reduce  # heavy: not for --help

    return reduce(settings, Console())


if __name__ == "__main__":
    main()
