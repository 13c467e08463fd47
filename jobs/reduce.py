"""Merge a run's bitmaps and counts into tables."""

from neuronstats.cli import job
from neuronstats.console import Console
from neuronstats.reduce.settings import ReduceJob


@job("reduce", ReduceJob)
def main(settings: ReduceJob) -> int:
    """Settings -> blocks of neurons, merged -> tables, replaced at once -> one summary line."""
    if settings.plan:
        return _reduce(settings)
    from neuronstats.cluster.local import ray_ahead

    with ray_ahead(settings.ray, "neuronstats.reduce.job", "neuronstats.reduce.worker"):
        return _reduce(settings)


def _reduce(settings: ReduceJob) -> int:
    from neuronstats.reduce.job import reduce  # heavy: not for --help

    return reduce(settings, Console())


if __name__ == "__main__":
    main()
