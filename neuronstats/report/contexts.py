"""Example contexts: text of the corpus, the tokens on which a neuron was activated marked."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronstats.report.notebook import LoadedRun

Segment = str | list[str]  # text, or [the text of one token on which the neuron was activated]


def spread_out(activated: NDArray[np.bool_], count: int, reach: int) -> list[tuple[int, int]]:
    """Choose activations evenly over all, no two within reach of each other in one sequence.

    Args:
        activated: bool [sequence, position].
        count: how many at most.
        reach: positions.

    Returns:
        (sequence, position) of each.
    """
    places = np.flatnonzero(activated)
    if not len(places) or not count:
        return []
    # evenly first; then more of them, where some were too near to others
    steps = [np.linspace(0, len(places) - 1, number) for number in (count, 4 * count)]
    order = dict.fromkeys(np.concatenate(steps).astype(np.int64).tolist())
    taken: list[tuple[int, int]] = []
    for place in places[list(order)]:
        sequence, position = divmod(int(place), activated.shape[1])
        near = (s == sequence and abs(p - position) <= reach for s, p in taken)
        if not any(near):
            taken.append((sequence, position))
        if len(taken) == count:
            break
    return sorted(taken)


def example_contexts(
    run: LoadedRun, activated: NDArray[np.bool_], count: int, reach: int
) -> list[dict[str, Any]]:
    """Write contexts of a neuron's activations, the begin-of-sequence token's aside.

    Args:
        run: the run.
        activated: the neuron's, bool [sequence, position], in the order of the run's token_ids.
        count: how many contexts at most.
        reach: tokens on either side.

    Returns:
        For each its sequence, first and activated position, domain, and segments of text.
    """
    tokens = run.token_ids
    found = []
    for sequence, position in spread_out(activated & (tokens != run.bos_id), count, reach):
        first, last = max(0, position - reach), min(tokens.shape[1], position + reach + 1)
        found.append(
            {
                "sequence": sequence,
                "position": position,
                "first": first,
                "domain": run.layout.domains[run.sequence_domains[sequence]],
                "text": segments(
                    run, tokens[sequence, first:last], activated[sequence, first:last]
                ),
            }
        )
    return found


def segments(
    run: LoadedRun, token_ids: NDArray[np.integer[Any]], activated: NDArray[np.bool_]
) -> list[Segment]:
    """Write tokens as text, each activated one apart."""
    ids = token_ids.tolist()
    found: list[Segment] = []
    start = 0
    for index in np.flatnonzero(activated).tolist():
        if start < index:
            found.append(run.texts(ids[start:index]))
        found.append([run.texts(ids[index : index + 1])])
        start = index + 1
    if start < len(ids):
        found.append(run.texts(ids[start:]))
    return found
