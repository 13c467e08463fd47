"""What a job says: a table before, one progress line during, one summary line after."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

PLAIN_SECONDS = 10.0  # between progress lines where there is no terminal


class Console:
    """Says things to a person, or to a log file.

    Args:
        stream: where to; standard output by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._rich = RichConsole(file=stream or sys.stdout, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print one line."""
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
        self._rich.print(table)

    @contextmanager
    def progress(self, what: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
        """Show one progress line.

        Args:
            what: the job.
            total: units in all.
            unit: what is counted, such as tokens.

        Yields:
            A function to call with units newly done and a few words on where things stand.
        """
        if not self._rich.is_terminal:
            yield self._plain_progress(what, total, unit)
            return
        columns = (TextColumn(what), BarColumn(), TextColumn("{task.fields[words]}"))
        with Progress(*columns, console=self._rich, transient=True) as bar:
            task = bar.add_task(what, total=total, words="starting")
            pace = _Pace(total, unit)

            def advance(number: int, words: str) -> None:
                pace.add(number)
                bar.update(task, advance=number, words=f"{words}, {pace}")

            yield advance

    def _plain_progress(self, what: str, total: int, unit: str) -> Callable[[int, str], None]:
        pace = _Pace(total, unit)
        last = time.monotonic()

        def advance(number: int, words: str) -> None:
            nonlocal last
            pace.add(number)
            now = time.monotonic()
            if number and (now - last >= PLAIN_SECONDS or pace.done == total):
                last = now
                self.say(f"{what}: {words}, {pace}")

        return advance


class _Pace:
    """Units per second since the first were done, and the time left at that pace."""

    def __init__(self, total: int, unit: str) -> None:
        self._total, self._unit = total, unit
        self.done = 0
        self._start = time.monotonic()

    def add(self, number: int) -> None:
        self.done += number

    def __str__(self) -> str:
        if not self.done:
            return f"{duration(time.monotonic() - self._start)} so far"
        rate = self.done / max(time.monotonic() - self._start, 1e-9)
        left = duration((self._total - self.done) / rate)
        return f"{short(rate)} {self._unit}/s, {left} left"


def duration(seconds: float) -> str:
    """Write a duration: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def short(number: float) -> str:
    """Write a number with 3 significant digits and a letter: 1.23M."""
    for letter in ("", "k", "M", "G", "T"):
        if abs(number) < 999.5 or letter == "T":
            return f"{number:.3g}{letter}"
        number /= 1000
    raise AssertionError
