"""A layer's neurons and their triggers -> what they really write on them, from sums by token."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuronstats.bits import quantities
from neuronstats.machine import PROCESS_BYTES, Term, allocator
from neuronstats.model.shape import Shape
from neuronstats.reduce.project import LayerSuppression, LayerTokens
from neuronstats.reduce.weights import ModelWeights, embedding_terms, update_terms
from neuronstats.stats import signed
from neuronstats.stats.output_embedding import Floats
from neuronstats.stats.view import Column
from neuronstats.store.layout import Layout, Shard
from neuronstats.store.run import Run


def memory_terms(shape: Shape, layout: Layout) -> tuple[Term, ...]:
    """Bound the memory of a worker, by what it is for."""
    slots = 8 * len(layout.sum_tokens) * shape.neurons
    terms = [
        Term("process", PROCESS_BYTES),
        *embedding_terms(shape),
        *update_terms(shape, 2 * shape.neurons),
        Term("sums by token", 6 * slots),
        Term("tokens", 8 * layout.num_sequences * layout.num_positions),
    ]
    return (*terms, allocator(terms))


class SignedJudge:
    """Judges a model's neurons by what they write on their triggers, a layer at a time.

    Args:
        run: the run.
        shards: those that count.
        weights: the model's.
    """

    def __init__(self, run: Run, shards: Sequence[Shard], weights: ModelWeights) -> None:
        self._run, self._shards, self._weights = run, shards, weights
        self._slots = np.array(self._run.layout.sum_tokens, np.int64)
        first = quantities.first_position(self._run.layout.num_positions)
        tokens = self._run.corpus().tokens[:, first:]
        counts = np.zeros(max(self._slots.max(initial=0), int(tokens.max(initial=0))) + 1, np.int64)
        for shard in shards:
            counts += np.bincount(tokens[shard.sequences].ravel(), minlength=len(counts))
        self._occurrences = counts[self._slots]

    def __call__(self, task: LayerTokens) -> LayerSuppression:
        """Judge one layer's neurons."""
        triggers = signed.triggers_with_slots(
            {**task.controls, **task.detected}, self._slots.tolist()
        )
        mean = self._mean_values(task.layer)
        updates = self._weights.updates(task.layer, slice(None))
        is_detector = np.isin(np.arange(mean.shape[1]), list(task.detected))
        neurons = np.unique(triggers.neuron)
        columns: dict[Column, Any] = {}
        by_neuron: dict[Column, Any] = {
            signed.TRIGGERS: np.bincount(triggers.neuron, minlength=mean.shape[1])[neurons]
        }
        places = np.array_split(np.array(signed.LAYER_COLUMNS, object), 2)
        kinds = zip(
            (signed.PROJECTION, signed.NORMED),
            (updates, self._weights.normed(updates)),
            places,
            strict=True,
        )
        for column, written, names in kinds:
            effects = mean * self._weights.embedding.project_on(self._slots, written)
            found = signed.judge(effects, triggers)
            by_neuron[column] = found.projection[neurons]
            columns |= dict(zip(names, signed.shares(found, is_detector), strict=True))
        return LayerSuppression(task.layer, neurons.tolist(), by_neuron, columns, tables={})

    def _mean_values(self, layer: int) -> Floats:
        """Return the mean of a over each token's occurrences, float64 [slot, neuron]."""
        width = self._run.layout.num_neurons
        total = np.zeros((len(self._slots), width), np.int64)
        for _, part in self._run.read_sums("token_sums", layer, slice(0, width), self._shards):
            total += part
        return total / 2.0**quantities.FRACTION / np.maximum(self._occurrences, 1)[:, None]
