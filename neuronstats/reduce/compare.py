"""Several reduced runs side by side: their dead, detectors, suppressors and positional neurons."""

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neuronstats.console import Console
from neuronstats.stats.curves import TYPES
from neuronstats.store.folder import RunFolder
from neuronstats.store.reduced import ReducedRun, labels

FILE = "comparison.parquet"


def compare(folders: Sequence[RunFolder], console: Console) -> None:
    """Print a table of some runs, and write it into the first one's folder.

    Raises:
        UserError: nothing can be written.
    """
    runs = [ReducedRun(folder.location) for folder in folders]
    rows = [summary(run, label) for run, label in zip(runs, labels(runs), strict=True)]
    names = list(dict.fromkeys(name for row in rows for name in row))  # lengths may differ
    columns = [[_written(name, row.get(name)) for name in names[1:]] for row in rows]
    widths = [
        max(map(len, [str(row["run"]), *column])) for row, column in zip(rows, columns, strict=True)
    ]
    head = [str(row["run"]) for row in rows]
    lines = [head, *(list(cells) for cells in zip(*columns, strict=True))]
    written = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]
    console.table("comparison", list(zip(["", *names[1:]], written, strict=True)))
    sink = io.BytesIO()
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    pq.write_table(table, sink)
    folders[0].write(FILE, sink.getvalue())
    console.say(f"compared: {len(runs)} runs: {folders[0].location}/{FILE}")


def summary(run: ReducedRun, label: str) -> dict[str, Any]:
    """Sum up one run over its layers.

    Returns:
        Values by name; shares from 0 to 1, None where there is nothing to take a share of.
    """
    neurons, layers = run.neurons, run.layers
    found: dict[str, Any] = {
        "run": label,
        "location": run.location,
        "layers": len(layers),
        "tokens": run.tokens,
        "complete": bool(run.metadata["complete"]),
        "neurons": len(neurons),
        f"{run.never}_share": _sum(neurons[run.never]) / len(neurons),
    }
    for n in run.ngrams:
        for name in (f"detectors_{n}", f"detectors_few_{n}"):
            known = layers[name].null_count < len(layers)
            found[name] = _sum(layers[name]) if known else None
    judged = len(neurons) - neurons["suppresses"].null_count
    found["suppressing_share"] = _sum(neurons["suppresses"]) / judged if judged else None
    weights = layers["detectors_1"] if "detectors_1" in layers.column_names else None
    for name in ("suppressing_shuffled_share", "suppressing_control_share"):
        found[name] = None if weights is None else _weighted(layers[name], weights)
    found["positional"] = _sum(layers["positional"])
    for kind in TYPES:
        found[kind] = _sum(layers[kind])
        found[f"{kind}_strong"] = _sum(layers[f"{kind}_strong"])
    return found


def _sum(column: Any) -> int:
    return int(pc.sum(column, min_count=0).as_py())


def _weighted(shares: Any, detectors: Any) -> float | None:
    """Return the mean of layers' shares, each weighted by its detectors."""
    pairs = [
        (share, count)
        for share, count in zip(shares.to_pylist(), detectors.to_pylist(), strict=True)
        if share is not None
    ]
    total = sum(count for _, count in pairs)
    return sum(share * count for share, count in pairs) / total if total else None


def _written(name: str, value: Any) -> str:
    if value is None:
        return "none to take it of" if name.endswith("share") else "no bitmaps"
    if name.endswith("share"):
        return f"{value:.2%}"
    return f"{value:,}" if type(value) is int else str(value)
