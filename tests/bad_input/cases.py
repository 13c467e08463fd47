"""What a row of bad input is: a command, its exit code, and what its one message must say."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from helpers.desk import Desk


class Case(NamedTuple):
    """A bad input.

    `settings` and what is looked for may hold {run}, {tokens}, {checkpoint}, {folder}, {out}.
    """

    job: str
    code: int
    base: str
    """What the settings come after: nothing; good: those of a good collect; done: run= of a
    finished run; collect: those that it was collected by; text: data=local; report: runs= of it."""
    settings: tuple[str, ...]
    value: str
    """The offending value or file, in the message."""
    remedy: str
    """What is expected or to be done, in the message."""
    damage: Callable[[Desk], Any] | None = None
    """Makes or damages files beforehand."""

    def __str__(self) -> str:
        words = " ".join((*self.settings, getattr(self.damage, "__name__", "")))
        return f"{self.job} {words.strip() or self.value}"[:60]

    def command(self, desk: Desk) -> list[str]:
        """Return the command line."""
        base = {
            "": [],
            "good": desk.settings,
            "collect": desk.settings,
            "done": [f"run={desk.run}"],
            "text": [*desk.model, "data=local", f"run={desk.run}"],
            "report": [f"runs=[{desk.run}]", f"out={desk.folder / 'out'}"],
        }[self.base]
        return [*base, *(placed(word, desk) for word in self.settings)]

    @property
    def needs_run(self) -> bool:
        """Whether a finished run has to be there."""
        return self.base in ("done", "collect", "report")


def placed(text: str, desk: Desk) -> str:
    """Put the desk's paths into a text."""
    places = {"run": desk.run, "tokens": desk.tokens, "checkpoint": desk.checkpoint}
    for name, path in {**places, "folder": desk.folder, "out": desk.folder / "out"}.items():
        text = text.replace(f"{{{name}}}", str(path))
    return text


def table(job: str, code: int, rows: Iterable[tuple[Any, ...]], base: str = "") -> Iterator[Case]:
    """Read rows of (settings, value, remedy) or (settings, value, remedy, damage)."""
    for settings, *words in rows:
        given = (settings,) if isinstance(settings, str) else tuple(settings)
        yield Case(job, code, base, tuple(one for one in given if one), *words)


def in_file(name: str, data: bytes) -> Callable[[Desk], Any]:
    """Return a damage that writes a file below the current folder."""

    def write(desk: Desk) -> None:
        path = Path(placed(name, desk)) if name.startswith("{") else desk.folder / name
        path.write_bytes(data)

    return write
