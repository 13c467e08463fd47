"""The output embedding, and the projection of neurons' updates on the vocabulary."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
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
# Bytes of the embedding that are float64 at once.
TOKEN_BLOCK_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Triggers:
    """The detected tokens of some neurons, or those of controls: a row each."""

    neuron: Integers
    """[row]: column of the neuron's update."""
    token: Integers
    """[row]: token id."""


class OutputEmbedding:
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
        num_neurons = columns.shape[-1]  # `parts` refuses other shapes
        projection = np.empty((len(self._embedding), num_neurons))
        for tokens, neurons, values in self.parts(columns):
            projection[tokens, neurons] = values[:, : num_neurons - neurons.start]
        return projection

    def parts(self, columns: AnyFloats) -> Iterator[tuple[slice, slice, Floats]]:
        """Project updates, some tokens and `NEURON_BLOCK` neurons at a time; see `project`.

        Yields:
            Tokens, neurons, and float64 [token, neuron] of them. The last neurons' part is as wide
            as the others, with zeros: sums over tokens, too, must not depend on the company.
        """
        updates = self._updates(columns)
        num_neurons = updates.shape[1]
        width = -(-num_neurons // NEURON_BLOCK) * NEURON_BLOCK
        padded = np.zeros((len(updates), width))
        padded[:, :num_neurons] = updates
        for first, block in self._token_blocks():
            centred = block - self._mean
            tokens = slice(first, first + len(block))
            for start in range(0, num_neurons, NEURON_BLOCK):
                neurons = slice(start, start + NEURON_BLOCK)
                yield tokens, neurons, centred @ np.ascontiguousarray(padded[:, neurons])

    def random_variances(self, columns: AnyFloats) -> Floats:
        """Return what the variance over the vocabulary would be in random directions.

        Args:
            columns: updates [channel, neuron]; their lengths count alone.

        Returns:
            float64 [neuron]: the squared length of the update as the embedding reads it, times the
            mean over the embedding's channels of their variance over the vocabulary.
        """
        lengths = (np.ascontiguousarray(self._updates(columns).T) ** 2).sum(axis=1)
        return np.asarray(lengths * self._channel_variance)

    @cached_property
    def _channel_variance(self) -> float:
        """The mean over channels of the embedding's variance over the vocabulary."""
        mean = sum(block.sum(axis=0) for _, block in self._token_blocks()) / len(self._embedding)
        squares = sum(((block - mean) ** 2).sum() for _, block in self._token_blocks())
        return float(squares / self._embedding.size)

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

    def project_on(self, tokens: Integers, columns: AnyFloats) -> Floats:
        """Project all updates on some tokens: float64 [token, neuron]; see `project`."""
        updates = self._updates(columns)
        num_neurons = updates.shape[1]
        rows = self._embedding[tokens].astype(np.float64) - self._mean
        projection = np.empty((len(tokens), num_neurons))
        for start in range(0, num_neurons, NEURON_BLOCK):
            part = updates[:, start : start + NEURON_BLOCK]
            padded = np.zeros((len(updates), NEURON_BLOCK))
            padded[:, : part.shape[1]] = part
            projection[:, start : start + NEURON_BLOCK] = (rows @ padded)[:, : part.shape[1]]
        return projection

    def _updates(self, columns: AnyFloats) -> Floats:
        """Return columns [channel, neuron] as the output embedding reads them."""
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
        """Yield the embedding in float64, in parts: first token, and rows."""
        step = max(1, TOKEN_BLOCK_BYTES // (8 * self._embedding.shape[1]))
        for first in range(0, len(self._embedding), step):
            yield first, self._embedding[first : first + step].astype(np.float64)
