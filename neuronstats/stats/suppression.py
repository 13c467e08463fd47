"""Suppression: do detectors suppress the tokens that they detect?

Source: Voita et al. 2023, sec. 4.4, figs. 5 and 6; docs/method.md, "Suppression".
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from neuronstats.stats.output_embedding import (
    NEURON_BLOCK,
    AnyFloats,
    Floats,
    Integers,
    OutputEmbedding,
    Triggers,
)
from neuronstats.stats.view import BlockView, Column, Section, nulls, unknown

# Neurons whose projections are held at once: 200 MB with OPT's vocabulary.
JUDGE_BLOCK = 8 * NEURON_BLOCK
# Rows of other neurons' triggers whose projections are picked out at once.
SHUFFLED_ROWS = 4096


class Updates(Protocol):
    """Columns of the second FFN matrix, [channel, neuron]: an array, or what reads parts of it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels and neurons."""
        ...

    def __getitem__(self, place: tuple[slice, slice], /) -> AnyFloats:
        """Return all channels of some neurons."""
        ...


SUPPRESSES = Column(
    "suppresses", "bool", "trigger_projection is below 0; null where detector_1 is not true"
)
TRIGGER_PROJECTION = Column(
    "trigger_projection",
    "float64",
    "mean of E w over the detected tokens, E the output embedding and w the neuron's column of"
    " the second layer; null where detector_1 is not true",
)
COLUMNS = (SUPPRESSES, TRIGGER_PROJECTION)

SHARE = Column(
    "suppressing_share", "float64", "share of the token detectors that suppress (fig. 6)"
)
SHUFFLED_SHARE = Column(
    "suppressing_shuffled_share",
    "float64",
    "control: the share to expect if each detector had another one's tokens",
)
CONTROL_SHARE = Column(
    "suppressing_control_share",
    "float64",
    "control: the share among as many other neurons, each by its most frequent triggers",
)
LAYER_COLUMNS = (SHARE, SHUFFLED_SHARE, CONTROL_SHARE)

ROW_COLUMNS = (
    TRIGGERS := Column("triggers", "list<int32>", "detected tokens"),
    TRIGGER_RANK := Column(
        "trigger_rank", "list<int64>", "their ranks by projection; 0: the most suppressed token"
    ),
    PROMOTED := Column("promoted", "list<int32>", "tokens of the largest projection (fig. 5)"),
    PROMOTED_PROJECTION := Column("promoted_projection", "list<float64>", "their projections"),
    SUPPRESSED := Column("suppressed", "list<int32>", "tokens of the smallest projection"),
    SUPPRESSED_PROJECTION := Column("suppressed_projection", "list<float64>", "theirs"),
)


def section(view: BlockView, settings: Any) -> Section:
    """Return the columns, not yet known: controls are drawn from the detectors of a whole layer.

    `judge` finds them, once a layer's detectors are known.
    """
    width = view.num_neurons
    return Section(
        {SUPPRESSES: unknown(width, np.bool_), TRIGGER_PROJECTION: unknown(width, np.float64)},
        layer_columns=partial(nulls, LAYER_COLUMNS),
    )


@dataclass(frozen=True, slots=True)
class Suppression:
    """What each neuron writes on its triggers, and on which tokens it writes most."""

    trigger_projection: Floats
    """[neuron]: mean projection of its triggers; NaN without any."""
    suppresses: npt.NDArray[np.bool_]
    """[neuron]: that mean is below 0."""
    trigger_rank: Integers
    """[row of the triggers]: tokens of a smaller projection; equal ones count by ascending id. 0
    is the most suppressed token."""
    promoted: Integers
    """[neuron, place]: token ids by falling projection, equal ones by ascending id."""
    promoted_projection: Floats
    """[neuron, place]"""
    suppressed: Integers
    """[neuron, place]: token ids by rising projection, equal ones by ascending id."""
    suppressed_projection: Floats
    """[neuron, place]"""
    shuffled_share: float
    """Against chance: the share of suppressing neurons to expect if every neuron had another one's
    triggers, the mean over all such pairs; NaN with fewer than two neurons."""


def judge(
    embedding: OutputEmbedding, columns: Updates, triggers: Triggers, *, num_top: int = 20
) -> Suppression:
    """Find whether neurons suppress their triggers, and what else they suppress and promote.

    Args:
        embedding: the output embedding.
        columns: columns of the second FFN matrix, [channel, neuron]: one layer's detectors; taken
            JUDGE_BLOCK neurons at a time.
        triggers: their detected tokens.
        num_top: tokens at the top and at the bottom to name.

    Returns:
        Findings of each neuron, in the columns' order.

    Raises:
        UserError: the columns do not fit the vocabulary.

    Source: Voita et al. 2023, sec. 4.4; method.md, "Suppression".
    """
    num_neurons, num_top = columns.shape[1], min(num_top, embedding.num_tokens)
    means = np.full(num_neurons, np.nan)
    promoted, suppressed = np.zeros((2, num_neurons, num_top), np.int64)
    promoted_projection, suppressed_projection = np.zeros((2, num_neurons, num_top))
    ranks = np.zeros(len(triggers.token), np.int64)
    num_shuffled = 0
    for start in range(0, num_neurons, JUDGE_BLOCK):
        updates = columns[:, start : start + JUDGE_BLOCK]
        part = slice(start, start + updates.shape[1])
        means[part] = _means(embedding, updates, triggers, start)
        projection = embedding.project(updates)
        for column in range(projection.shape[1]):
            values, neuron = projection[:, column].copy(), start + column
            promoted[neuron] = lowest(-values, num_top)
            promoted_projection[neuron] = values[promoted[neuron]]
            suppressed[neuron] = lowest(values, num_top)
            suppressed_projection[neuron] = values[suppressed[neuron]]
            rows = np.flatnonzero(triggers.neuron == neuron)
            ranks[rows] = [_rank(values, token) for token in triggers.token[rows].tolist()]
        num_shuffled += _num_shuffled(projection, start, triggers)
    owners = len(np.unique(triggers.neuron))
    pairs = owners * (owners - 1)
    return Suppression(
        trigger_projection=means,
        suppresses=means < 0,
        trigger_rank=ranks,
        promoted=promoted,
        promoted_projection=promoted_projection,
        suppressed=suppressed,
        suppressed_projection=suppressed_projection,
        shuffled_share=num_shuffled / pairs if pairs else float("nan"),
    )


def mean_projections(embedding: OutputEmbedding, columns: Updates, triggers: Triggers) -> Floats:
    """Return each neuron's mean projection over its triggers, float64 [neuron]; NaN without any."""
    means = np.full(columns.shape[1], np.nan)
    for start in range(0, len(means), JUDGE_BLOCK):
        part = slice(start, start + JUDGE_BLOCK)
        means[part] = _means(embedding, columns[:, part], triggers, start)
    return means


def _means(
    embedding: OutputEmbedding, updates: AnyFloats, triggers: Triggers, first: int
) -> Floats:
    """Do `mean_projections` for some neurons' updates, of which the first has this number."""
    num_neurons = updates.shape[1]
    here = (triggers.neuron >= first) & (triggers.neuron < first + num_neurons)
    own = Triggers(neuron=triggers.neuron[here] - first, token=triggers.token[here])
    values = embedding.project_tokens(updates, own)
    counts = np.bincount(own.neuron, minlength=num_neurons)
    sums = np.bincount(own.neuron, weights=values, minlength=num_neurons)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def draw_controls(candidates: Integers, num_controls: int, *, layer: int) -> Integers:
    """Draw neurons of a layer as controls of its detectors.

    Meant for the share of suppressing neurons among alive neurons that are no detectors, when each
    is judged by as many of its own most frequent triggers as some detector has.

    Args:
        candidates: the layer's alive neurons that are no detectors, ascending.
        num_controls: how many to draw: as many as there are detectors.
        layer: draws of different layers are independent.

    Returns:
        Different neurons in the order of the draw, int64 [control]; fewer than asked for where
        there are not so many. They depend on the arguments alone.
    """
    generator = np.random.default_rng([0, layer])
    return generator.permutation(np.asarray(candidates, np.int64))[:num_controls]


def lowest(values: Floats, number: int) -> Integers:
    """Return the places of the lowest values, ascending, equal ones by ascending place.

    `number` is from 1 to as many as there are.
    """
    bound = np.partition(values, number - 1)[number - 1]
    candidates = np.flatnonzero(values <= bound)
    return candidates[np.argsort(values[candidates], kind="stable")[:number]]


def _rank(values: Floats, token: int) -> int:
    """Count the tokens below one, equal ones by ascending id."""
    below = np.count_nonzero(values < values[token])
    return int(below + np.count_nonzero(values[:token] == values[token]))


def _num_shuffled(projection: Floats, first: int, triggers: Triggers) -> int:
    """Count the pairs in which a neuron of the projection suppresses another one's triggers.

    The projection is of the neurons from `first` on; only neurons with triggers count.
    """
    order = np.argsort(triggers.neuron, kind="stable")
    owners, starts = np.unique(triggers.neuron[order], return_index=True)
    if not len(owners):
        return 0
    own = owners[(owners >= first) & (owners < first + projection.shape[1])]
    tokens, ends = triggers.token[order], np.append(starts[1:], len(order))
    number = begin = 0
    while begin < len(owners):
        end = max(begin + 1, int(np.searchsorted(ends, starts[begin] + SHUFFLED_ROWS, "right")))
        rows = slice(starts[begin], ends[end - 1])
        values = projection[np.ix_(tokens[rows], own - first)]  # [row, neuron]
        # [owner of the triggers, neuron]
        suppressed = np.add.reduceat(values, starts[begin:end] - starts[begin], axis=0) < 0
        itself = owners[begin:end, None] == own[None, :]
        number += int(np.count_nonzero(suppressed & ~itself))
        begin = end
    return number
