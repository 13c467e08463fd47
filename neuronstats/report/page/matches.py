"""Matched neurons -> the page's data: data/rR/mLLL.js, for each other run a neuron's match."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from neuronstats.report.notebook import LoadedRun
from neuronstats.report.output import Output
from neuronstats.report.page.search import encoded, script
from neuronstats.stats.matches import CONTROL, CORRELATION, MATCH, MUTUAL
from neuronstats.stats.view import LAYER
from neuronstats.store.reduced import matches_of

# Of each neuron: a column, what a missing value is, the type on the page.
SHOWN = (
    (MATCH, -1, "<i4"),
    (CORRELATION, 0.0, "<f4"),
    (CONTROL, 0.0, "<f4"),
    (MUTUAL, False, "|u1"),
)


def planned_files(runs: Sequence[LoadedRun]) -> set[str]:
    """Return every file that `write_matches` may write."""
    return {
        _file(number, layer) for number, run in enumerate(runs) for layer in range(run.num_layers)
    }


def write_matches(folder: Output, runs: Sequence[LoadedRun]) -> list[list[int]]:
    """Write each run's matched neurons in each other run of the report.

    Returns:
        For each run the layers that have such a file.
    """
    found: list[list[int]] = []
    for number, run in enumerate(runs):
        others = {
            other: table
            for other in range(len(runs))
            if other != number
            for table in [matches_of(runs, number, other)]
            if table is not None
        }
        layers = sorted({k for t in others.values() for k in pc.unique(t[LAYER.name]).to_pylist()})
        layers = [layer for layer in layers if layer < run.num_layers]
        for layer in layers:
            content = {str(other): _columns(table, layer) for other, table in others.items()}
            folder.write(_file(number, layer), script("NS.matched", number, layer, content))
        found.append(layers)
    return found


def _columns(table: pa.Table, layer: int) -> dict[str, Any]:
    rows = table.filter(pc.equal(table[LAYER.name], layer))
    return encoded(
        {
            column.name: pc.fill_null(rows[column.name], missing).to_numpy().astype(kind)
            for column, missing, kind in SHOWN
        }
    )


def _file(number: int, layer: int) -> str:
    return f"data/r{number}/m{layer:03d}.js"
