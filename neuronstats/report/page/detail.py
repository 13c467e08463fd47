"""Neurons' details for the page, by block: curves, domains, n-grams, updates, contexts."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuronstats import bits
from neuronstats.errors import UserError
from neuronstats.report.notebook import LoadedRun, contexts_of_bitmap, top_and_bottom
from neuronstats.report.page.columns import WRITING_COLUMNS
from neuronstats.report.settings import ReportSettings
from neuronstats.stats import ngrams, positions
from neuronstats.stats.suppression import PROMOTED, SUPPRESSED, TRIGGER_RANK, TRIGGERS
from neuronstats.stats.view import LAYER, NEURON

CURVE_POINTS = 256  # of a curve on the page, at most
DOMAIN_POINTS = 64  # of a domain's curve
BLOCK_BYTES = 64 << 20  # bitmaps read at once, where those of a chunk's neurons are not more
TOP = 10  # n-grams shown of each length

Curve = dict[str, Any]


def details(
    run: LoadedRun, layer: int, neurons: Sequence[int], settings: ReportSettings
) -> dict[str, Any]:
    """Return the details of some neurons of a layer, each once, by neuron, in the order given."""
    ascending = sorted(neurons)
    found: dict[int, dict[str, Any]] = {neuron: {} for neuron in neurons}
    for block in _blocks(run, ascending):
        _add_arrays(run, layer, block, settings, found)
    for name in ("domains", "triggers", "ngrams"):
        rows = _rows_by_neuron(run, name, layer, ascending)
        if rows is not None:
            for neuron in neurons:
                found[neuron][name] = rows.get(neuron, [])
    for neuron, update in _updates(run, layer, ascending).items():
        found[neuron]["update"] = update
    if run.has(positions.CONSISTENCY.name):
        column = run.neurons[positions.CONSISTENCY.name]
        for neuron in neurons:
            row = layer * run.layout.num_neurons + neuron
            found[neuron]["consistency"] = _round(column[row].as_py())
    written = [shown.column.name for shown in WRITING_COLUMNS if run.has(shown.column.name)]
    if written:
        places = [layer * run.layout.num_neurons + neuron for neuron in neurons]
        amounts = run.neurons.select(written).take(places).to_pylist()
        for neuron, amount in zip(neurons, amounts, strict=True):
            found[neuron]["writing"] = {name: _round(value) for name, value in amount.items()}
    return {str(neuron): entry for neuron, entry in found.items()}


def _blocks(run: LoadedRun, ascending: Sequence[int]) -> Iterator[list[int]]:
    """Yield neurons that are read together: their chunks touch, and none is read for two blocks."""
    chunk = run.layout.neurons_per_chunk
    chunk_bytes = len(run.layout.shards) * chunk * run.layout.row_bytes
    most = max(1, BLOCK_BYTES // chunk_bytes) * chunk
    block: list[int] = []
    for neuron in ascending:
        apart = block and neuron - block[-1] > chunk
        if block and (apart or neuron >= block[0] // chunk * chunk + most):
            yield block
            block = []
        block.append(neuron)
    if block:
        yield block


def _add_arrays(
    run: LoadedRun,
    layer: int,
    block: Sequence[int],
    settings: ReportSettings,
    found: dict[int, dict[str, Any]],
) -> None:
    """Add what is read from arrays: curves, and contexts where there are bitmaps."""
    span = slice(block[0], block[-1] + 1)
    columns = np.array(block) - span.start
    counts = run.position_counts(layer, span)[:, columns]
    by_domain = run.position_counts_by_domain(layer, span)[:, :, columns]
    sequences = run.domain_sequences
    curves = thin_out(counts, run.num_sequences, CURVE_POINTS)
    domain_curves = {
        domain: thin_out(by_domain[index], sequences[domain], DOMAIN_POINTS)
        for index, domain in enumerate(run.layout.domains)
    }
    bitmaps = run.bits(layer, span) if layer < run.layout.num_bitmaps else None
    if bitmaps is not None:
        dense = len(block) == len(bitmaps)  # then not copied
        _compare(run, layer, block, bitmaps if dense else bitmaps[columns], by_domain)
    for index, neuron in enumerate(block):
        entry = found[neuron]
        entry["curve"] = curves[index]
        entry["domain_curves"] = {domain: each[index] for domain, each in domain_curves.items()}
        if bitmaps is not None:
            bitmap = bitmaps[columns[index]]
            entry["contexts"] = contexts_of_bitmap(
                run, bitmap, settings.contexts, settings.context_tokens
            )


def _compare(
    run: LoadedRun,
    layer: int,
    block: Sequence[int],
    bitmaps: NDArray[np.uint8],
    by_domain: NDArray[np.int64],
) -> None:
    """Compare neurons' activations in each domain with those that the tables were made of.

    Raises:
        UserError: the bits are of another reduction or run, or were changed.
    """
    ends = np.searchsorted(run.sequence_domains, np.arange(len(by_domain) + 1))
    for domain, (first, last) in enumerate(itertools.pairwise(ends)):
        wrong = bits.count(bitmaps[:, first:last]) != by_domain[domain].sum(0)
        if wrong.any():
            raise UserError(
                f"{run.location}: the bits of neuron {block[int(wrong.argmax())]} in layer {layer}"
                " are not those that were reduced: jobs/check.py"
                f" run={run.location} repair=true puts them right."
            )


def thin_out(counts: NDArray[np.int64], sequences: int, points: int) -> list[Curve]:
    """Return curves as frequencies, means over neighbouring positions where they are long.

    Args:
        counts: int64 [position, neuron].
        sequences: behind the counts.
        points: at most so many.

    Returns:
        For each neuron the positions in each mean (the last may have fewer), and the values, four
        digits of each.
    """
    step = -(-len(counts) // points)
    starts = np.arange(0, len(counts), step)
    sums = np.add.reduceat(counts, starts, axis=0)
    sizes = np.diff(np.append(starts, len(counts)))
    values = sums.T / (sizes * max(1, sequences))
    return [{"step": step, "values": list(map(_four_digits, row))} for row in values.tolist()]


@functools.lru_cache(maxsize=1 << 16)  # frequencies are few
def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")


def _rows_by_neuron(
    run: LoadedRun, name: str, layer: int, ascending: Sequence[int]
) -> dict[int, list[dict[str, Any]]] | None:
    """Return what the page shows of a table's rows; None where the run has no such table."""
    table = run.rows(name, layer, ascending[0], ascending[-1] + 1)
    if table is None:
        return None
    key, text, length = NEURON.name, ngrams.TEXT.name, ngrams.N.name
    table = table.filter(pc.is_in(table[key], pa.array(ascending, pa.int32())))
    columns: dict[str, list[Any]] = {}
    for column in table.column_names:
        if column == ngrams.TOKEN_IDS.name:  # the table's text cannot show parts of characters
            columns[text] = list(map(run.texts, table[column].to_pylist()))
        elif column not in (LAYER.name, text):
            columns[column] = table[column].to_pylist()
    shown: dict[int, list[dict[str, Any]]] = {}
    number: dict[tuple[int, int], int] = {}  # of the rows so far, by neuron and length
    names = [column for column in columns if column != key]
    others = [columns[column] for column in names]
    for neuron, *values in zip(columns[key], *others, strict=True):
        row = dict(zip(names, map(_round, values), strict=True))
        if length in row:
            same = (neuron, row[length])
            number[same] = number.get(same, 0) + 1
            if number[same] > TOP:
                continue
        shown.setdefault(neuron, []).append(row)
    return shown


def _updates(run: LoadedRun, layer: int, ascending: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return the tokens at both ends of the neurons' updates; of detectors, their triggers' ranks.

    Where the checkpoint is gone, only the detectors' are known.
    """
    found: dict[int, dict[str, Any]] = {}
    if run.projects:
        projection = np.ascontiguousarray(run.projection(layer, ascending).T)
        for neuron, values in zip(ascending, projection, strict=True):
            tokens = top_and_bottom(values, TOP)
            found[neuron] = {side: run.words(ids.tolist()) for side, ids in tokens.items()}
    table = run.rows("suppression", layer, ascending[0], ascending[-1] + 1)
    wanted = set(ascending)
    for row in [] if table is None else table.to_pylist():
        if row[NEURON.name] in wanted:
            names = [column.name for column in (PROMOTED, SUPPRESSED, TRIGGERS)]
            found[row[NEURON.name]] = {name: run.words(row[name][:TOP]) for name in names} | {
                TRIGGER_RANK.name: row[TRIGGER_RANK.name][:TOP]
            }
    return found


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return _four_digits(value) if np.isfinite(value) else None
    return value
