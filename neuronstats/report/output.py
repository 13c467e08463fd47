"""The folder of a report: which files in it are the report's own, and nothing else is touched."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from neuronstats.errors import SettingsError
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import LOCK, LOGS, NGRAMS, PARTIAL, RUN_FILE, TABLES, ZARR

MARKER = "report.json"  # lists the report's files
MADE_BY = "neuronstats report"
TOP = {MARKER, "index.html", "assets", "figures", "data"}
OF_A_RUN = {RUN_FILE, LOCK, TABLES, PARTIAL, NGRAMS, LOGS, ZARR}
SHOWN = 3  # foreign files named in a message


class Output:
    """A report folder, opened for writing.

    Args:
        location: a path or an object-store URL; the folder need not exist.
        runs: where the runs are that are reported on.

    Raises:
        SettingsError: it is a file, a run or a part of one, or holds files that no report wrote.
    """

    def __init__(self, location: str, runs: Sequence[str]) -> None:
        _refuse_runs(location, runs)
        if "://" not in location and Path(location).expanduser().is_file():
            raise SettingsError(f"out={location} is a file; expected a folder, there or not yet.")
        self._folder = RunFolder(location, create=True)
        self.location = self._folder.location
        self._listed = self._read_list()
        self._written: set[str] = set()
        self._refuse_foreign()

    def _read_list(self) -> set[str]:
        """Return the files that the report in the folder lists as its own."""
        try:
            found = json.loads(self._folder.read(MARKER) or b"{}")
            listed = found["files"] if found["made_by"] == MADE_BY else []
            return {str(name) for name in listed}
        except (ValueError, KeyError, TypeError):
            return set()  # another program's file

    def _refuse_foreign(self) -> None:
        """Raise SettingsError if a file is not the report's; hidden ones do not matter."""
        foreign = {name for name in self._folder.names() if name not in TOP}
        if not any(map(_visible, foreign)):  # else what is below may be a whole disk
            foreign = set(self._folder.sizes()) - self._listed
        shown = sorted(filter(_visible, foreign))
        if shown:
            more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
            raise SettingsError(
                f"out={self.location} holds files that jobs/report.py did not write, or of which"
                f" its {MARKER} does not tell: {', '.join(shown[:SHOWN])}{more}. Nothing was"
                " touched: choose another folder, or an empty one."
            )

    def begin(self, planned: Iterable[str]) -> None:
        """Delete the report that is there.

        Args:
            planned: every file that may be written now, so that after a crash too the folder's
                list holds all of its files.
        """
        there = self._listed & set(self._folder.sizes())
        self._write_list(self._listed | set(planned))
        for name in sorted(there - {MARKER}):
            self._folder.remove(name)

    def write(self, name: str, content: bytes) -> None:
        """Write one of the planned files."""
        assert name in self._listed, name
        self._folder.write(name, content)
        self._written.add(name)

    def finish(self) -> None:
        """List exactly what was written."""
        self._write_list(self._written)

    def _write_list(self, names: set[str]) -> None:
        self._listed = names | {MARKER}
        content = {"made_by": MADE_BY, "files": sorted(self._listed)}
        self._folder.write(MARKER, json.dumps(content, indent=1).encode())


def _visible(name: str) -> bool:
    return not any(part.startswith(".") for part in name.split("/"))


def _refuse_runs(location: str, runs: Sequence[str]) -> None:
    """Raise SettingsError if a folder is a run, or belongs to a run's own data."""
    below: dict[str, str] = {}  # run -> the folder's path below it
    if "://" in location:
        for run in runs:
            if f"{location.rstrip('/')}/".startswith(f"{run.rstrip('/')}/"):
                below[run] = location.rstrip("/").removeprefix(run.rstrip("/")).strip("/")
    else:
        path = Path(location).expanduser().resolve()
        for home in (path, *path.parents):
            if (home / RUN_FILE).is_file():
                below[str(home)] = path.relative_to(home).as_posix().strip(".")
    for run, inside in below.items():
        if not inside or inside.split("/")[0] in OF_A_RUN:
            raise SettingsError(
                f"out={location} is {'in the data of ' if inside else ''}the run {run}: choose"
                f" another folder, such as {run.rstrip('/')}/report."
            )
