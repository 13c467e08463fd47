"""One neuron's detail for the page: curves, domains, n-grams, update, contexts."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuronstats import bits
from neuronstats.report.contexts import example_contexts
from neuronstats.report.notebook import LoadedRun, top_and_bottom

CURVE_POINTS = 256  # of a curve on the page, at most
DOMAIN_POINTS = 64  # of a domain's curve
DENSE = 3  # neurons are read together where they are at least one in so many
TOP = 10  # n-grams shown of each length


Arrays = tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_] | None]


class DetailSettings(Protocol):
    """What of the report's settings a detail depends on."""

    contexts: int
    context_tokens: int


def thin_out(counts: NDArray[np.int64], sequences: int, points: int) -> dict[str, Any]:
    """Write a curve as frequencies, means over neighbouring positions where it is long.

    Args:
        counts: int64 [position].
        sequences: behind the counts.
        points: at most so many.

    Returns:
        The positions in each mean (the last may have fewer), and the values, four digits of each.
    """
    step = -(-len(counts) // points)
    starts = np.arange(0, len(counts), step)
    sums = np.add.reduceat(counts, starts)
    sizes = np.diff(np.append(starts, len(counts)))
    values = sums / (sizes * max(1, sequences))
    return {"step": step, "values": [float(f"{value:.4g}") for value in values]}


def detail(
    run: LoadedRun, layer: int, neurons: list[int], settings: DetailSettings
) -> dict[str, Any]:
    """Return the details of some neurons of one layer, by neuron.

    Args:
        run: the run.
        layer: the layer.
        neurons: ascending.
        settings: contexts and their length.
    """
    first, last = neurons[0], neurons[-1] + 1
    tables = {
        name: run.rows(name, layer, first, last) for name in ("domains", "triggers", "ngrams")
    }
    updates = _updates(run, layer, neurons)
    found: dict[str, Any] = {}
    for neuron, counts, by_domain, activated in _arrays(run, layer, neurons):
        sequences = run.domain_sequences
        entry: dict[str, Any] = {
            "curve": thin_out(counts, run.num_sequences, CURVE_POINTS),
            "domain_curves": {
                domain: thin_out(by_domain[index], sequences[domain], DOMAIN_POINTS)
                for index, domain in enumerate(run.layout.domains)
            },
        }
        for name, table in tables.items():
            if table is not None:
                rows = table.filter(pc.equal(table["neuron"], neuron))
                entry[name] = _clean(rows.drop_columns(["layer", "neuron"]).to_pylist())
        if run.has("position_consistency"):
            row = layer * run.layout.num_neurons + neuron
            entry["consistency"] = _round(run.neurons["position_consistency"][row].as_py())
        if neuron in updates:
            entry["update"] = updates[neuron]
        if activated is not None:
            entry["contexts"] = example_contexts(
                run, activated, settings.contexts, settings.context_tokens
            )
        found[str(neuron)] = entry
    return found


def _updates(run: LoadedRun, layer: int, neurons: list[int]) -> dict[int, dict[str, Any]]:
    """Name the tokens at both ends of the neurons' updates; of detectors, their triggers' ranks.

    Where the checkpoint is gone, only the detectors' are known.
    """
    found: dict[int, dict[str, Any]] = {}
    if run.projects:
        projection = run.projection(layer, neurons)
        for column, neuron in enumerate(neurons):
            tokens = top_and_bottom(projection[:, column], TOP)
            found[neuron] = {side: run.words(ids.tolist()) for side, ids in tokens.items()}
    table = run.rows("suppression", layer, neurons[0], neurons[-1] + 1)
    for row in [] if table is None else table.to_pylist():
        if row["neuron"] in neurons:
            names = ("promoted", "suppressed", "triggers")
            found[row["neuron"]] = {name: run.words(row[name][:TOP]) for name in names} | {
                "trigger_rank": row["trigger_rank"][:TOP]
            }
    return found


def _arrays(run: LoadedRun, layer: int, neurons: list[int]) -> Iterator[Arrays]:
    """Yield each neuron with its counts [position], [domain, position], and bits or None.

    Neurons that are close together are read together: they share chunks.
    """
    dense = neurons[-1] - neurons[0] < DENSE * len(neurons)
    for part in [neurons] if dense else [[neuron] for neuron in neurons]:
        first, span = part[0], slice(part[0], part[-1] + 1)
        counts = run.position_counts(layer, span)
        by_domain = run.position_counts_by_domain(layer, span)
        bitmaps = run.bits(layer, span) if layer < run.layout.num_bitmaps else None
        for neuron in part:
            i = neuron - first
            activated = None
            if bitmaps is not None:
                activated = bits.unpack(bitmaps[i], run.layout.num_positions)
            yield neuron, counts[:, i], by_domain[:, :, i], activated


def _clean(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop what the page does not show, round what it shows, keep the first rows of each length."""
    kept = []
    seen: dict[Any, int] = {}
    for row in rows:
        n = row.get("n")
        seen[n] = seen.get(n, 0) + 1
        if n is not None and seen[n] > TOP:
            continue
        row.pop("token_ids", None)
        kept.append({k: _round(v) for k, v in row.items()})
    return kept


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    if isinstance(value, list):
        return [_round(item) for item in value]
    return value
