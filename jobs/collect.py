"""Run a model over text and record which neurons are activated on which tokens."""

from neuronstats.cli import job
from neuronstats.collect.settings import CollectJob
from neuronstats.console import Console


@job("collect", CollectJob, several=True)
def main(*settings: CollectJob) -> int:
    """Settings -> plan, printed and checked -> run -> one summary line; of each run with -m."""
    from neuronstats.collect.job import collect_all  # heavy: not for --help

    return collect_all(settings, Console())


if __name__ == "__main__":
    main()
