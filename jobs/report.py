"""Make figures and a page of reduced runs."""

import signal

from neuronstats.cli import job
from neuronstats.console import Console
from neuronstats.report.settings import ReportJob


@job("report", ReportJob)
def main(settings: ReportJob) -> int:
    """Settings -> tables read -> figures and page written -> one summary line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    from neuronstats.report.job import report  # heavy: not for --help

    return report(settings, Console())


if __name__ == "__main__":
    main()
