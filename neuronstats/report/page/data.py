"""Tables -> the page's data, in script files that are loaded when asked for.

data/rR/nLLL.js   columns of all neurons of one layer of run R, as base64 of little-endian arrays
data/rR/dNNNNN.js a few neurons' details: curves, n-grams, updates, contexts
and what search.py writes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronstats.report.notebook import LoadedRun
from neuronstats.report.output import Output
from neuronstats.report.page.columns import CLASSIFIED, flags, neuron_arrays
from neuronstats.report.page.detail import details
from neuronstats.report.page.search import encoded, script, write_search
from neuronstats.report.settings import ReportSettings

PIECE_NEURONS = 16  # details loaded together
GROUP_NEURONS = 256  # details computed together: a whole number of pieces
GOLDEN = (5**0.5 - 1) / 2

Ints = NDArray[np.int64]
Advance = Callable[[int, str], None]


def layer_script(run: LoadedRun, number: int, layer: int, details: Ints) -> bytes:
    """Return the script of one layer's neurons, as columns.

    `details` is the piece that holds each neuron's detail, -1 for none, int64 [neuron].
    """
    width = run.layout.num_neurons
    rows = run.neurons.slice(layer * width, width)
    columns = neuron_arrays(rows, run.ngrams) | {"piece": details.astype("<i4")}
    return script("NS.layer", number, layer, encoded(columns))


def chosen(run: LoadedRun, settings: ReportSettings) -> Ints:
    """Return the neurons that get detail.

    Returns:
        Rows of neurons.parquet, of which a size limit cuts off the end: the classified first, in
        the table's order, then all others in groups that any beginning spreads over the layers, or
        the sample in the table's order.
    """
    if settings.neurons == "none":
        return np.zeros(0, np.int64)
    is_classified = (flags(run.neurons) & CLASSIFIED) != 0
    classified, others = np.flatnonzero(is_classified), np.flatnonzero(~is_classified)
    if settings.neurons == "all":
        group = np.arange(len(run.neurons)) // GROUP_NEURONS
        spread = np.argsort(group * GOLDEN % 1, kind="stable")
        return np.concatenate([classified, spread[~is_classified[spread]]])
    count = min(settings.sample, len(others))
    picks = (np.arange(count) + 0.5) * len(others) / max(1, count)
    return np.concatenate([classified, others[picks.astype(np.int64)]])


def groups(rows: Ints, width: int) -> Iterator[tuple[int, list[int]]]:
    """Yield rows in groups of one layer, as (layer, neurons), in their order."""
    start = 0
    while start < len(rows):
        layer = int(rows[start]) // width
        end = start + 1
        while end < len(rows) and end - start < GROUP_NEURONS and rows[end] // width == layer:
            end += 1
        yield layer, [int(row % width) for row in rows[start:end]]
        start = end


def neuron_script(
    run: LoadedRun, number: int, layer: int, neuron: int, settings: ReportSettings
) -> bytes | None:
    """Return the script of one neuron's detail; None where the run has no such neuron."""
    if layer >= run.num_layers or neuron >= run.layout.num_neurons:
        return None
    return script("NS.detail", number, layer, details(run, layer, [neuron], settings))


def _pieces(
    run: LoadedRun, rows: Ints, settings: ReportSettings
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield details by neuron, a file's at a time, with their layer."""
    for layer, neurons in groups(rows, run.layout.num_neurons):
        found = list(details(run, layer, neurons, settings).items())
        for start in range(0, len(found), PIECE_NEURONS):
            yield layer, dict(found[start : start + PIECE_NEURONS])


@dataclass
class Budget:
    """Bytes that details may still take, over all runs."""

    left: int
    details: int = 0
    """Neurons that got detail."""
    left_out: int = 0
    """Neurons chosen that did not: the limit was reached."""


def planned_files(run: LoadedRun, number: int, settings: ReportSettings) -> set[str]:
    """Return every file that write_run may write."""
    parts = groups(chosen(run, settings), run.layout.num_neurons)
    pieces = sum(-(-len(neurons) // PIECE_NEURONS) for _, neurons in parts)
    names = [f"d{index:05d}" for index in range(pieces)]
    names += [f"{kind}{layer:03d}" for kind in "nt" for layer in range(run.num_layers)]
    return {f"data/r{number}/{name}.js" for name in (*names, "search", "words")}


def write_run(
    folder: Output,
    run: LoadedRun,
    number: int,
    settings: ReportSettings,
    budget: Budget,
    advance: Advance,
) -> dict[str, Any]:
    """Write a run's pieces, and use up the budget.

    `advance` is called with neurons newly done, and where things stand.

    Returns:
        What the page must know of the pieces.
    """
    width = run.layout.num_neurons
    where = np.full(len(run.neurons), -1, np.int64)
    before = budget.details
    rows = chosen(run, settings)
    for index, (layer, found) in enumerate(_pieces(run, rows, settings)):
        content = script("NS.detail", number, layer, found)
        if len(content) > budget.left:
            break
        budget.left -= len(content)
        budget.details += len(found)
        where[layer * width + np.array(list(map(int, found)))] = index
        folder.write(f"data/r{number}/d{index:05d}.js", content)
        advance(len(found), f"layer {layer}")
    budget.left_out += len(rows) - (budget.details - before)
    for layer in range(run.num_layers):
        content = layer_script(run, number, layer, where[layer * width : (layer + 1) * width])
        folder.write(f"data/r{number}/n{layer:03d}.js", content)
    return {"details": budget.details - before, **write_search(folder, run, number)}
