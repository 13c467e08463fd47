"""What detectors write on the vocabulary: do they suppress the tokens that they detect?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neuronstats.errors import UserError

Floats = npt.NDArray[np.float64]
AnyFloats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]

# Neurons projected at once, always so many (the last ones are zeros): a matrix product may round a
# column differently in a matrix of another width, and results must not depend on the company.
NEURON_BLOCK = 64
# Neurons whose projections are held at once: 200 MB with OPT's vocabulary.
JUDGE_BLOCK = 8 * NEURON_BLOCK
# Bytes of the embedding that are float64 at once.
TOKEN_BLOCK_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Triggers:
    """The detected tokens of some neurons, or others to hold them against: a row each."""

    neuron: Integers
    """[row]: column of the neuron's update."""
    token: Integers
    """[row]: token id."""


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


class Vocabulary:
    """The output embedding, and with it the projection of updates of the residual stream.

    No LayerNorm comes between, as in the paper.

    Args:
        embedding: output embedding [token, embedding channel], any float type.
        project_out: [embedding channel, channel] where the model has one (OPT-350m), else None.
        centred: take each neuron's mean over the vocabulary off its projection: softmax does not
            see it.

    Raises:
        UserError: the shapes do not fit together.

    Source: Voita et al. 2023, sec. 4.4.
    """

    def __init__(
        self,
        embedding: AnyFloats,
        project_out: AnyFloats | None = None,
        *,
        centred: bool = False,
    ) -> None:
        if embedding.ndim != 2 or (
            project_out is not None
            and (project_out.ndim != 2 or len(project_out) != embedding.shape[1])
        ):
            raise UserError(
                f"an output embedding of shape {embedding.shape} does not follow a projection of "
                f"shape {None if project_out is None else project_out.shape}; expected "
                "[token, embedding channel] and [embedding channel, channel]"
            )
        self._embedding = embedding
        self._project_out = None if project_out is None else project_out.astype(np.float64)
        self._mean = np.zeros(embedding.shape[1])
        if centred:
            for _, block in self._token_blocks():
                self._mean += block.sum(axis=0)
            self._mean /= len(embedding)

    @property
    def num_tokens(self) -> int:
        """Tokens of the vocabulary, or rows of the embedding where it has more."""
        return len(self._embedding)

    def project(self, columns: AnyFloats) -> Floats:
        """Project neurons' updates on the vocabulary.

        Args:
            columns: columns of the second FFN matrix, [channel, neuron].

        Returns:
            float64 [token, neuron]: what the neuron adds to each token's logit when its activation
            is 1. A neuron's values do not depend on which others are projected with it.

        Raises:
            UserError: the columns have another number of channels, or NaN or infinity in them.
        """
        updates = self._updates(columns)
        num_neurons = updates.shape[1]
        width = -(-num_neurons // NEURON_BLOCK) * NEURON_BLOCK
        padded = np.zeros((len(updates), width))
        padded[:, :num_neurons] = updates
        projection = np.empty((len(self._embedding), num_neurons))
        for first, block in self._token_blocks():
            centred = block - self._mean
            for start in range(0, num_neurons, NEURON_BLOCK):
                part = np.ascontiguousarray(padded[:, start : start + NEURON_BLOCK])
                values = (centred @ part)[:, : num_neurons - start]
                rows = slice(first, first + len(block))
                projection[rows, start : start + values.shape[1]] = values
        return projection

    def project_tokens(self, columns: AnyFloats, triggers: Triggers) -> Floats:
        """Project updates on some tokens only: float64 [row of the triggers]; see `project`."""
        updates = np.ascontiguousarray(self._updates(columns).T)  # [neuron, embedding channel]
        values = np.empty(len(triggers.token))
        step = max(1, TOKEN_BLOCK_BYTES // (8 * updates.shape[1]))
        for start in range(0, len(values), step):
            rows = slice(start, start + step)
            tokens = self._embedding[triggers.token[rows]].astype(np.float64) - self._mean
            values[rows] = (tokens * updates[triggers.neuron[rows]]).sum(axis=1)
        return values

    def _updates(self, columns: AnyFloats) -> Floats:
        """Bring columns [channel, neuron] before the output embedding."""
        channels = (self._embedding if self._project_out is None else self._project_out).shape[1]
        if columns.ndim != 2 or len(columns) != channels:
            raise UserError(
                f"columns of shape {columns.shape} cannot be projected: expected {channels} "
                "channels, [channel, neuron]"
            )
        updates = columns.astype(np.float64)
        if not np.isfinite(updates).all():
            raise UserError("the second FFN matrix holds NaN or infinity: is the file damaged?")
        if self._project_out is None:
            return updates
        projected = np.empty((len(self._project_out), updates.shape[1]))
        for neuron in range(updates.shape[1]):  # one at a time, for NEURON_BLOCK's reason
            projected[:, neuron] = (self._project_out * updates[:, neuron]).sum(axis=1)
        return projected

    def _token_blocks(self) -> Iterator[tuple[int, Floats]]:
        """Go through the embedding in float64: first token, and rows."""
        step = max(1, TOKEN_BLOCK_BYTES // (8 * self._embedding.shape[1]))
        for first in range(0, len(self._embedding), step):
            yield first, self._embedding[first : first + step].astype(np.float64)


def judge(
    vocabulary: Vocabulary, columns: AnyFloats, triggers: Triggers, *, num_top: int = 20
) -> Suppression:
    """Tell whether neurons suppress their triggers, and what else they suppress and promote.

    Args:
        vocabulary: the output embedding.
        columns: columns of the second FFN matrix, [channel, neuron]: one layer's detectors.
        triggers: their detected tokens.
        num_top: tokens at the top and at the bottom to name.

    Returns:
        Findings of each neuron, in the columns' order.

    Raises:
        UserError: the columns do not fit the vocabulary.

    Source: Voita et al. 2023, sec. 4.4; method.md, "Suppression".
    """
    means = mean_projections(vocabulary, columns, triggers)
    num_neurons, num_top = columns.shape[1], min(num_top, vocabulary.num_tokens)
    promoted, suppressed = np.zeros((2, num_neurons, num_top), np.int64)
    promoted_projection, suppressed_projection = np.zeros((2, num_neurons, num_top))
    ranks = np.zeros(len(triggers.token), np.int64)
    num_shuffled = 0
    for start in range(0, num_neurons, JUDGE_BLOCK):
        projection = vocabulary.project(columns[:, start : start + JUDGE_BLOCK])
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


def mean_projections(vocabulary: Vocabulary, columns: AnyFloats, triggers: Triggers) -> Floats:
    """Give each neuron's mean projection over its triggers, float64 [neuron]; NaN without any."""
    values = vocabulary.project_tokens(columns, triggers)
    counts = np.bincount(triggers.neuron, minlength=columns.shape[1])
    sums = np.bincount(triggers.neuron, weights=values, minlength=columns.shape[1])
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def draw_controls(
    candidates: Integers, num_controls: int, *, layer: int, seed: int = 0
) -> Integers:
    """Draw neurons of a layer to hold its detectors against.

    Meant for the share of suppressing neurons among alive neurons that are no detectors, when each
    is judged by as many of its own most frequent triggers as some detector has.

    Args:
        candidates: the layer's alive neurons that are no detectors, ascending.
        num_controls: how many to draw: as many as there are detectors.
        layer: draws of different layers are independent.
        seed: another seed, other draws.

    Returns:
        Different neurons in the order of the draw, int64 [control]; fewer than asked for where
        there are not so many. They depend on the arguments alone.
    """
    generator = np.random.default_rng([seed, layer])
    return generator.permutation(np.asarray(candidates, np.int64))[:num_controls]


def lowest(values: Floats, number: int) -> Integers:
    """Give the places of the lowest values, ascending, equal ones by ascending place.

    Args:
        values: [place].
        number: how many, from 1 to as many as there are.
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
    values = projection[triggers.token[order]][:, own - first]  # [row, neuron]
    suppressed = np.add.reduceat(values, starts, axis=0) < 0  # [owner of the triggers, neuron]
    return int(
        suppressed.sum() - suppressed[np.searchsorted(owners, own), np.arange(len(own))].sum()
    )
