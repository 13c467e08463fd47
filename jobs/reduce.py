"""Merge a run's bitmaps and counts into tables."""

from neuronstats.cli import job
from neuronstats.console import Console
from neuronstats.reduce.settings import ReduceJob


@job("reduce", ReduceJob)
def main(settings: ReduceJob) -> int:
    """Settings -> blocks of neurons, merged -> tables, replaced at once -> one summary line."""
    from neuronstats.cluster.local import ray_ahead  # this and the job: not for --help

    heavy = ("neuronstats.reduce.job", "neuronstats.reduce.worker", "neuronstats.model.decoder")
    with ray_ahead(settings.ray, *heavy, per_core=True, wanted=not settings.plan):
        from neuronstats.reduce.job import reduce

        return reduce(settings, Console())


if __name__ == "__main__":
    main()
