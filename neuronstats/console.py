"""What a job says: a table before, one progress line during, one summary line after."""

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from neuronstats.units import duration, short

PLAIN_SECONDS = 10.0  # between progress lines where there is no terminal


class _RichConsole(RichConsole):
    """Rich's, which would end the process where nobody reads its pipe any more."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Console:
    """Says things to a person, or to a log file; where these are gone, to nobody.

    Args:
        stream: where to; standard output by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._rich = _RichConsole(file=stream or sys.stdout, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print one line."""
        with contextlib.suppress(OSError):  # the terminal is gone; the work goes on
            self._rich.print(text, markup=False)

    def table(self, title: str, rows: list[tuple[str, str]]) -> None:
        """Print a short table of names and values."""
        if not self._rich.is_terminal:
            self.say(title)
            for name, value in rows:
                self.say(f"  {name:<30} {value}")
            return
        table = Table(
            title=title, title_justify="left", show_header=False, box=None, pad_edge=False
        )
        table.add_column(style="cyan")
        table.add_column()
        for name, value in rows:
            table.add_row(name, value)
        with contextlib.suppress(OSError):
            self._rich.print(table)

    @contextmanager
    def progress(self, what: str, total: int, unit: str) -> Iterator["Advance"]:
        """Show one progress line.

        Args:
            what: the job.
            total: units in all.
            unit: what is counted, such as tokens.

        Yields:
            A function to call with units newly done, a few words on where things stand, and units
            that are done of what is underway.
        """
        if not self._rich.is_terminal:
            yield self._plain_progress(what, total, unit)
            return
        columns = (TextColumn(what), BarColumn(), TextColumn("{task.fields[words]}"))
        with Progress(*columns, console=self._rich, transient=True) as bar:
            task = bar.add_task(what, total=total, words="starting")
            pace = _Pace(total, unit)

            def advance(number: int, words: str, underway: float = 0.0) -> None:
                pace.add(number, underway)
                with contextlib.suppress(OSError):
                    bar.update(task, completed=pace.reached, words=f"{words}, {pace}")

            yield advance

    def _plain_progress(self, what: str, total: int, unit: str) -> "Advance":
        pace = _Pace(total, unit)
        last = time.monotonic()

        def advance(number: int, words: str, underway: float = 0.0) -> None:
            nonlocal last
            pace.add(number, underway)
            now = time.monotonic()
            due = now - last >= PLAIN_SECONDS and (number or underway)
            if due or (number and pace.done == total):
                last = now
                self.say(f"{what}: {words}, {pace}")

        return advance


class Advance(Protocol):
    """What `Console.progress` gives."""

    def __call__(self, number: int, words: str, underway: float = 0.0) -> None:
        """Report units newly done, how things stand, and units done of what is underway."""


class _Pace:
    """Units per second since the first were told of (what came before was starting), and the rest.

    So one layer of one shard is enough to say how long all will take.
    """

    def __init__(self, total: int, unit: str) -> None:
        self._total, self._unit = total, unit
        self.done, self.reached = 0, 0.0
        self._start = time.monotonic()
        self._first: tuple[float, float] | None = None  # when, and units reached by then

    def add(self, number: int, underway: float) -> None:
        self.done += number
        self.reached = max(self.reached, self.done + underway)  # the two are told at two moments
        if self._first is None and self.reached:
            self._first = (time.monotonic(), self.reached)

    def __str__(self) -> str:
        now = time.monotonic()
        if self._first is None or self.reached == self._first[1]:
            return f"{duration(now - self._start)} so far"
        rate = (self.reached - self._first[1]) / max(now - self._first[0], 1e-9)
        left = duration((self._total - self.reached) / rate)
        return f"{short(rate)} {self._unit}/s, {left} left"
