"""Run a model over text and record which neurons are activated on which tokens."""

from neuronstats.cli import job
from neuronstats.collect.settings import CollectJob
from neuronstats.console import Console
from neuronstats.reduce.settings import ReduceJob
from neuronstats.report.settings import ReportJob


@job("collect", CollectJob, several=True)
def main(*settings: CollectJob) -> int:
    """Settings -> plan, printed and checked -> run -> one summary line; of each run with -m."""
    console, first = Console(), settings[0]
    if first.plan:
        return _collect(settings, console)
    from neuronstats.cluster.local import ray_ahead

    with ray_ahead(first.ray, "neuronstats.collect.job", "neuronstats.collect.worker"):
        code = _collect(settings, console)
        return code or (_report(settings, console) if first.report else code)


def _collect(settings: tuple[CollectJob, ...], console: Console) -> int:
    from neuronstats.collect.job import collect_all  # heavy: not for --help

    return collect_all(settings, console)


def _report(settings: tuple[CollectJob, ...], console: Console) -> int:
    from neuronstats.reduce.job import reduce
    from neuronstats.report.job import report

    runs = [run.location for run in settings]
    code = reduce(ReduceJob(runs=runs, ray=settings[0].ray), console)
    return code or report(ReportJob(runs=runs, out=str(settings[0].report)), console)


if __name__ == "__main__":
    main()
