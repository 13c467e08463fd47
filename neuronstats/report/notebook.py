"""A reduced run in a notebook or on a page: texts and projections beside its tables and arrays."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronstats.corpus.token_texts import TokenTexts
from neuronstats.errors import UserError
from neuronstats.model.settings import ModelSettings
from neuronstats.model.source import tokenizer_folder
from neuronstats.reduce.project import SuppressionWorker
from neuronstats.stats.suppression import lowest
from neuronstats.store.reduced import ReducedRun


class LoadedRun(ReducedRun):
    """A reduced run with its model's tokenizer and, where they are to be had, its weights."""

    def projection(self, layer: int, neurons: Sequence[int]) -> NDArray[np.float64]:
        """Return what any neurons' updates write on the vocabulary, float64 [token, neuron].

        Raises:
            SettingsError: the checkpoint is no longer where it was.
            UserError: it cannot be had, or holds other weights.

        Source: Voita et al. 2023, sec. 4.4.
        """
        return self._projector.project(layer, neurons)

    def update(self, layer: int, neuron: int, top: int = 20) -> dict[str, list[tuple[str, float]]]:
        """Name the tokens that any neuron's update promotes and suppresses most.

        Returns:
            `promoted` and `suppressed`: texts with their projections, the strongest first.

        Raises:
            SettingsError, UserError: see `projection`.
        """
        values = self.projection(layer, [neuron])[:, 0]
        return {
            side: [(self.texts([int(token)]), float(values[token])) for token in ids]
            for side, ids in top_and_bottom(values, top).items()
        }

    @cached_property
    def projects(self) -> bool:
        """Whether the checkpoint is to be had, for `projection`."""
        try:
            return bool(self._projector)
        except UserError:
            return False

    @cached_property
    def _model(self) -> ModelSettings:
        return self.run.about.model

    @cached_property
    def _projector(self) -> SuppressionWorker:
        weights = self.run.about.weights_fingerprint
        return SuppressionWorker(self._model, weights, bool(self.setting("centred", default=False)))

    @cached_property
    def texts(self) -> TokenTexts:
        """Writes token ids as text."""
        return TokenTexts(tokenizer_folder(self._model))

    def words(self, tokens: Sequence[Any]) -> list[str]:
        """Write single tokens as text, given as ids or as text already."""
        return [token if isinstance(token, str) else self.texts([int(token)]) for token in tokens]


def top_and_bottom(projection: NDArray[np.float64], top: int) -> dict[str, NDArray[np.int64]]:
    """Return the tokens at both ends of a projection [token], ties by ascending id.

    Returns:
        `promoted`, falling, and `suppressed`, rising: int64 [top], or as many as there are.
    """
    number = min(top, len(projection))
    return {"promoted": lowest(-projection, number), "suppressed": lowest(projection, number)}
