"""The tables' columns and files: Parquet, with what made it in its metadata."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from neuronstats.errors import UserError
from neuronstats.store import manifest
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import PARTIAL, TABLES

METADATA = b"neuronstats"

NEURON_KEY = [("layer", pa.int32()), ("neuron", pa.int32())]

NGRAM = pa.schema(
    [
        *NEURON_KEY,
        ("n", pa.int32()),
        ("token_ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("occurrences", pa.int64()),
        ("activations", pa.int64()),
        ("rate", pa.float64()),
        ("share", pa.float64()),
    ]
)

DOMAIN = pa.schema(
    [
        *NEURON_KEY,
        ("domain", pa.string()),
        ("tokens", pa.int64()),
        ("activations", pa.int64()),
        ("frequency", pa.float64()),
        ("position_mi", pa.float64()),
    ]
)


def neuron_schema(ngrams: Sequence[int]) -> pa.Schema:
    """Return the columns of neurons.parquet for the n-gram lengths counted."""
    return pa.schema(
        [
            *NEURON_KEY,
            ("tokens", pa.int64()),
            ("activations", pa.int64()),
            ("frequency", pa.float64()),
            ("dead", pa.bool_()),
            *[(f"cover_{n}", pa.int32()) for n in ngrams],
            *[(f"detector_{n}", pa.bool_()) for n in ngrams],
            ("suppresses", pa.bool_()),
            ("trigger_projection", pa.float64()),
            ("position_mi", pa.float64()),
            ("position_mi_corrected", pa.float64()),
            ("position_type", pa.string()),
            ("position_strong", pa.bool_()),
            ("position_consistency", pa.float64()),
        ]
    )


def masked(values: Any, valid: Any, kind: pa.DataType) -> pa.Array:
    """Make a column with nulls where not valid: a boolean, or one for each value."""
    values = np.asarray(values)
    mask = ~np.broadcast_to(np.asarray(valid), values.shape)
    return pa.array(values, type=kind, mask=mask)


class TableFiles:
    """Writes a run's tables beside the old ones, and replaces these all at once.

    Args:
        folder: the run.
        metadata: what made the tables; goes into every file.
    """

    def __init__(self, folder: RunFolder, metadata: Mapping[str, Any]) -> None:
        self._folder, self._about = folder, metadata
        self._metadata = {METADATA: json.dumps(metadata, sort_keys=True, default=str).encode()}
        self._open: dict[str, tuple[pq.ParquetWriter, io.BytesIO]] = {}
        folder.clear(f"{PARTIAL}/")

    def append(self, name: str, table: pa.Table) -> None:
        """Add rows to a table."""
        if name not in self._open:
            sink = io.BytesIO()  # compressed: millions of rows are some hundred MB
            schema = table.schema.with_metadata(self._metadata)
            self._open[name] = (pq.ParquetWriter(sink, schema, compression="zstd"), sink)
        self._open[name][0].write_table(table.replace_schema_metadata(self._metadata))

    def finish(self) -> None:
        """Write all files, then put them in the place of the old ones."""
        for name, (writer, sink) in self._open.items():
            writer.close()
            self._folder.write(f"{PARTIAL}/{name}.parquet", sink.getvalue())
        manifest.publish(self._folder, self._about)


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
    return pq.read_table(io.BytesIO(data))


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
