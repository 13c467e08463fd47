"""The model behind a run, for what follows from weights alone: output embedding and updates."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neuronstats.errors import UserError
from neuronstats.machine import Term
from neuronstats.model.settings import ModelSettings
from neuronstats.model.shape import Shape
from neuronstats.model.source import locate
from neuronstats.stats.output_embedding import NEURON_BLOCK, TOKEN_BLOCK_BYTES, OutputEmbedding


class ModelWeights:
    """A model's output embedding and its neurons' updates, a layer's at a time.

    Args:
        model: where the checkpoint is.
        fingerprint: of the weights that the run was made with.
        centred: take each update's mean over the vocabulary off.

    Raises:
        UserError: the checkpoint is not to be had, or holds other weights.
    """

    def __init__(self, model: ModelSettings, fingerprint: str, *, centred: bool = False) -> None:
        folder = locate(model, cached=True)
        # With torch, which takes seconds; the job that hands out the work does without.
        from neuronstats.model.checkpoint import Checkpoint
        from neuronstats.model.decoder import Decoder

        self._checkpoint = Checkpoint(folder)
        if self._checkpoint.fingerprint() != fingerprint:
            raise UserError(
                f"{self._checkpoint.folder} holds other weights than the run was made with: what"
                " neurons write cannot be told from them."
            )
        self._decoder = Decoder(self._checkpoint)
        embedding, project = self._decoder.output_embedding()
        self.embedding = OutputEmbedding(
            embedding.float().numpy(),
            None if project is None else project.float().numpy(),
            centred=centred,
        )

    @property
    def num_channels(self) -> int:
        """Channels of an update."""
        return self._decoder.shape.hidden

    def updates(self, layer: int, neurons: slice | Sequence[int]) -> NDArray[np.float32]:
        """Read what some of a layer's neurons write: float32 [channel, neuron]."""
        updates = self._decoder.updates(layer)[:, neurons]
        found: NDArray[np.float32] = updates.float().numpy().copy()
        self._checkpoint.release()
        return found

    def normed(self, updates: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return updates as the output embedding reads them through the final norm.

        Its weight multiplies each channel, and a LayerNorm takes the channels' mean off; what it
        divides by changes no sign and no rank. Unchanged where the model has none.
        """
        norm = self._decoder.final_norm()
        self._checkpoint.release()
        if norm is None:
            return updates
        weight, centres = norm
        if centres:
            updates = updates - updates.mean(axis=0)
        return weight.numpy()[:, None] * updates

    def project(self, layer: int, neurons: Sequence[int]) -> NDArray[np.float64]:
        """Project some neurons' updates on the vocabulary, float64 [token, neuron]."""
        return self.embedding.project(self.updates(layer, list(neurons)))


def embedding_terms(shape: Shape) -> list[Term]:
    """Bound the memory of the output embedding, and of the parts that it is used in."""
    tokens = min(shape.vocabulary, TOKEN_BLOCK_BYTES // (8 * shape.embedding))
    return [
        Term("output embedding", 2 * 4 * shape.vocabulary * shape.embedding),  # as stored, too
        Term("its parts", 2 * 8 * tokens * (shape.embedding + NEURON_BLOCK)),
    ]


def update_terms(shape: Shape, num_neurons: int) -> list[Term]:
    """Bound the memory of some neurons' updates, in float32, in float64, padded, and as stored."""
    copies = (4 + 2 * 8) * num_neurons + 4 * shape.neurons
    return [Term("updates", copies * shape.hidden)]
