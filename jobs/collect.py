"""Run a model over text and record which neurons are activated on which tokens."""

from neuronstats.cli import job
from neuronstats.collect.settings import CollectJob
from neuronstats.console import Console
from neuronstats.reduce.settings import ReduceJob
from neuronstats.report.settings import ReportJob


@job("collect", CollectJob, several=True)
def main(*settings: CollectJob) -> int:
    """Settings -> plan, printed and checked -> run -> one summary line; of each run with -m."""
    from neuronstats.cluster.local import ray_ahead  # this and the others: not for --help

    console, first = Console(), settings[0]
    heavy = ("neuronstats.collect.job", "neuronstats.collect.worker")
    with ray_ahead(first.ray, *heavy, wanted=not first.plan):
        from neuronstats.collect.job import collect_all

        code = collect_all(settings, console)
        if code or first.plan or not first.report:
            return code
        from neuronstats.reduce.job import reduce

        runs = [run.location for run in settings]
        code = reduce(ReduceJob(runs=runs, ray=first.ray), console)
    from neuronstats.report.job import report

    return code or report(ReportJob(runs=runs, out=first.report), console)


if __name__ == "__main__":
    main()
