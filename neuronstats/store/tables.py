"""The tables' files: Parquet, with what made it in its metadata; written as rows arrive."""

import contextlib
import io
import json
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from neuronstats.errors import UserError
from neuronstats.store import manifest
from neuronstats.store.faults import storage_errors
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import PARTIAL, TABLES

GROUP_ROWS = 1 << 16  # of a row group: every read looks at each group's range of neurons
METADATA = b"neuronstats"  # of a table: what made it
MEANING = b"meaning"  # of a column: one line for people


class TableFiles:
    """Writes a run's tables beside the old ones, and replaces these all at once.

    Rows go to disk in groups: into the run folder, or, for an object store, into a temporary folder
    whose files are sent at the end. At most a group of each table is kept in memory.

    Args:
        folder: the run.
        metadata: what made the tables; goes into every file.
    """

    def __init__(self, folder: RunFolder, metadata: Mapping[str, Any]) -> None:
        self._folder, self._about = folder, metadata
        self._metadata = {METADATA: json.dumps(metadata, sort_keys=True, default=str).encode()}
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._waiting: dict[str, list[pa.Table]] = {}
        self._num_parked = 0
        folder.clear(f"{PARTIAL}/")
        with self._errors():
            if folder.is_local:
                self._place = Path(folder.location) / PARTIAL
                self._place.mkdir(exist_ok=True)
            else:
                self._place = Path(tempfile.mkdtemp(prefix="neuronstats-"))

    def append(self, name: str, table: pa.Table, *, group: bool = False) -> None:
        """Add rows to a table; they are on disk when a group is full, or with `group`, at once.

        Raises:
            UserError: they cannot be written.
        """
        waiting = self._waiting.setdefault(name, [])
        waiting.append(table)
        if group:
            self._write(name)
        elif (num_rows := sum(map(len, waiting))) >= GROUP_ROWS:
            self._write(name, num_rows // GROUP_ROWS * GROUP_ROWS)

    def _write(self, name: str, num_rows: int | None = None) -> None:
        """Write all rows of a table that wait as one group, or so many as groups.

        The file is the same however its rows came.
        """
        waiting = self._waiting.pop(name, None)
        if waiting is None:
            return
        with self._errors():
            rows = pa.concat_tables(waiting).replace_schema_metadata(self._metadata)
            rows = rows.combine_chunks()
            if name not in self._writers:
                path = self._place / f"{name}.parquet"
                self._writers[name] = pq.ParquetWriter(path, rows.schema, compression="zstd")
            size = len(rows) if num_rows is None else GROUP_ROWS
            self._writers[name].write_table(rows.slice(0, num_rows), row_group_size=max(1, size))
            if num_rows is not None and num_rows < len(rows):
                self._waiting[name] = [rows.slice(num_rows)]

    def take(self, name: str) -> Iterator[pa.Table]:
        """Yield a table's rows, one group at a time; the table is then gone.

        Raises:
            UserError: they cannot be read.
        """
        self._write(name)
        if name not in self._writers:
            return
        path = self._place / f"{name}.parquet"
        with self._errors():
            self._writers.pop(name).close()
            with pq.ParquetFile(path) as file:
                for index in range(file.num_row_groups):
                    yield file.read_row_group(index)
            path.unlink()

    def park(self, tables: Mapping[str, pa.Table]) -> Callable[[], dict[str, pa.Table]]:
        """Write early rows to a file of their own; return what reads them back, once."""
        path = self._place / f"waiting-{self._num_parked}"
        self._num_parked += 1
        with self._errors():
            path.write_bytes(pickle.dumps(dict(tables)))

        def bring_back() -> dict[str, pa.Table]:
            with self._errors():
                data = path.read_bytes()
                path.unlink()
            return dict(pickle.loads(data))

        return bring_back

    def finish(self) -> None:
        """Complete all files, then put them in the place of the old ones."""
        self._complete()
        manifest.publish(self._folder, self._about)

    def _complete(self) -> None:
        """Write the files' ends, and send them where they are not in the run folder yet.

        Called after all rows are appended and before the old tables are replaced.
        """
        for name in [*self._waiting]:
            self._write(name)
        for name, writer in self._writers.items():
            with self._errors():
                writer.close()
            if not self._folder.is_local:
                self._folder.write(f"{PARTIAL}/{name}.parquet", self._place / f"{name}.parquet")

    def close(self) -> None:
        """Close the files and remove the temporary folder, after an error too."""
        for writer in self._writers.values():
            with contextlib.suppress(OSError, pa.ArrowException):
                writer.close()
            writer.is_open = False  # else one that cannot be closed is tried again when collected
        if not self._folder.is_local:
            shutil.rmtree(self._place, ignore_errors=True)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return storage_errors("write", f"{self._folder.location}/{PARTIAL}")


def read_table(folder: RunFolder, name: str) -> pa.Table:
    """Read one of a run's tables.

    Raises:
        UserError: the run was not reduced.
    """
    data = folder.read(f"{TABLES}/{name}.parquet")
    if data is None:
        raise UserError(
            f"{folder.location}/{TABLES}/{name}.parquet is missing: run jobs/reduce.py"
            f" run={folder.location} first."
        )
    return pq.ParquetFile(pa.BufferReader(data)).read()  # pq.read_table takes twice the time


def open_table(folder: RunFolder, name: str) -> pq.ParquetFile | None:
    """Open one of a run's tables to be read in parts; None where it is not there.

    A local file is mapped, an object of a store is read as a whole.
    """
    key = f"{TABLES}/{name}.parquet"
    path = Path(folder.location) / key
    if folder.is_local:
        return pq.ParquetFile(path, memory_map=True) if path.exists() else None
    data = folder.read(key)
    return None if data is None else pq.ParquetFile(io.BytesIO(data))


def table_metadata(table: pa.Table) -> dict[str, Any]:
    """Return what made a table: fingerprint, settings, tokens, completeness."""
    return dict(json.loads(table.schema.metadata[METADATA]))
