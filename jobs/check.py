"""Read every stored byte of a run and compare it with what was committed; put it right."""

from neuronstats.check.settings import CheckJob
from neuronstats.cli import job
from neuronstats.console import Console


@job("check", CheckJob)
def main(settings: CheckJob) -> int:
    """Settings -> every object read -> each damage named, or put right -> one summary line."""
    from neuronstats.check.job import check  # heavy: not for --help

    return check(settings, Console())


if __name__ == "__main__":
    main()
