"""Matched neurons -> the page's data: data/rR/mLLL.js, for each other run a neuron's match."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from neuronstats.report.notebook import LoadedRun
from neuronstats.report.output import Output
from neuronstats.report.page.search import encoded, script
from neuronstats.store.reduced import matches_of


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
        layers = sorted({k for t in others.values() for k in pc.unique(t["layer"]).to_pylist()})
        layers = [layer for layer in layers if layer < run.num_layers]
        for layer in layers:
            content = {str(other): _columns(table, layer) for other, table in others.items()}
            folder.write(_file(number, layer), script("NS.matched", number, layer, content))
        found.append(layers)
    return found


def _columns(table: pa.Table, layer: int) -> dict[str, Any]:
    rows = table.filter(pc.equal(table["layer"], layer))
    return encoded(
        {
            "neuron": pc.fill_null(rows["match"], -1).to_numpy().astype("<i4"),
            "correlation": pc.fill_null(rows["correlation"], 0.0).to_numpy().astype("<f4"),
            "control": pc.fill_null(rows["control"], 0.0).to_numpy().astype("<f4"),
            "mutual": pc.fill_null(rows["mutual"], False).to_numpy().astype("|u1"),  # noqa: FBT003
        }
    )


def _file(number: int, layer: int) -> str:
    return f"data/r{number}/m{layer:03d}.js"
