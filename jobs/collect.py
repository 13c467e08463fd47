"""Run a model over text and record which neurons are activated on which tokens."""

from neuronstats.collect import collect
from neuronstats.config import CollectJob, job
from neuronstats.console import Console


@job("collect", CollectJob)
def main(settings: CollectJob) -> int:
    """Settings -> plan, printed and checked -> run -> one summary line."""
    return collect(settings, Console())


if __name__ == "__main__":
    main()
