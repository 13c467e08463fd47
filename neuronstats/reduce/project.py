"""Detectors of a layer -> whether they suppress their tokens, from fc2 and the embedding alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from neuronstats.machine import PROCESS_BYTES, Term, allocator
from neuronstats.model.shape import Shape
from neuronstats.reduce.rows import to_table
from neuronstats.reduce.weights import ModelWeights, embedding_terms, update_terms
from neuronstats.stats import suppression
from neuronstats.stats.output_embedding import Triggers
from neuronstats.stats.suppression import (
    JUDGE_BLOCK,
    SHUFFLED_ROWS,
    draw_controls,
    judge,
    mean_projections,
)
from neuronstats.stats.view import LAYER, NEURON, Column, Lists

NUM_TOP = 20

Tokens = Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class LayerTokens:
    """What one layer's projections are asked for: small, so that it can be a task."""

    layer: int
    detected: Tokens
    """Detected tokens of each token detector."""
    controls: Tokens
    """Most frequent triggers of neurons that detect none, as many as the detectors have."""

    def __str__(self) -> str:
        return f"projections of layer {self.layer}"


@dataclass(frozen=True)
class LayerSuppression:
    """What one layer's detectors write on their tokens."""

    layer: int
    neurons: list[int]
    """The detectors, or all neurons with triggers."""
    neuron_columns: dict[Column, Any]
    """Of neurons.parquet: values [neuron] of these."""
    columns: dict[Column, Any]
    """Of layers.parquet."""
    tables: dict[str, pa.Table]
    """`suppression`: a row per detector."""


def layer_tokens(
    layer: int, detected: Tokens, triggers: Tokens, alive: Sequence[int]
) -> LayerTokens:
    """Build the task of one layer: its detectors, and as many others drawn at random as controls.

    Args:
        layer: the layer; with it the draw is the same every time.
        detected: detected tokens of each token detector.
        triggers: tokens of each neuron by falling activations.
        alive: neurons that were activated.
    """
    others = np.array([n for n in alive if n not in detected and triggers.get(n)], np.int64)
    drawn = draw_controls(np.sort(others), len(detected), layer=layer)
    lengths = [len(detected[neuron]) for neuron in sorted(detected)]
    controls = {
        int(neuron): list(triggers[int(neuron)][:length])
        for neuron, length in zip(drawn, lengths, strict=False)
    }
    return LayerTokens(layer, detected, controls)


def memory_terms(shape: Shape) -> tuple[Term, ...]:
    """Bound the memory of a worker, by what it is for."""
    terms = [
        Term("process", PROCESS_BYTES),
        *embedding_terms(shape),
        *update_terms(shape, min(shape.neurons, JUDGE_BLOCK)),
        Term("projections", 8 * shape.vocabulary * min(shape.neurons, JUDGE_BLOCK)),
        Term("projections on others' tokens", 2 * 8 * SHUFFLED_ROWS * JUDGE_BLOCK),
    ]
    return (*terms, allocator(terms))


class _Updates:
    """Some neurons' updates, read in parts: all of a wide layer's may be detectors."""

    def __init__(self, weights: ModelWeights, layer: int, neurons: Sequence[int]) -> None:
        self._weights, self._layer, self._neurons = weights, layer, neurons
        self.shape = weights.num_channels, len(neurons)

    def __getitem__(self, place: tuple[slice, slice]) -> NDArray[np.float32]:
        return self._weights.updates(self._layer, self._neurons[place[1]])


def judge_layer(weights: ModelWeights, task: LayerTokens) -> LayerSuppression:
    """Judge one layer's detectors and controls."""
    embedding = weights.embedding
    neurons = sorted(task.detected)
    triggers = _triggers(task.detected)
    own = _Updates(weights, task.layer, neurons)
    others = _Updates(weights, task.layer, sorted(task.controls))
    found = judge(embedding, own, triggers, num_top=NUM_TOP)
    controls = mean_projections(embedding, others, _triggers(task.controls))
    order = np.argsort(triggers.neuron, kind="stable")
    lengths = np.bincount(triggers.neuron, minlength=len(neurons))
    columns: dict[Column, Any] = {
        LAYER: np.full(len(neurons), task.layer, np.int32),
        NEURON: np.array(neurons, np.int32),
        suppression.TRIGGERS: Lists(triggers.token[order], lengths),
        suppression.TRIGGER_RANK: Lists(found.trigger_rank[order], lengths),
        suppression.PROMOTED: _lists(found.promoted),
        suppression.PROMOTED_PROJECTION: _lists(found.promoted_projection),
        suppression.SUPPRESSED: _lists(found.suppressed),
        suppression.SUPPRESSED_PROJECTION: _lists(found.suppressed_projection),
    }
    shuffled = found.shuffled_share
    return LayerSuppression(
        layer=task.layer,
        neurons=neurons,
        neuron_columns={
            suppression.SUPPRESSES: found.suppresses,
            suppression.TRIGGER_PROJECTION: found.trigger_projection,
        },
        columns={
            suppression.SHARE: float(found.suppresses.mean()),
            suppression.SHUFFLED_SHARE: None if np.isnan(shuffled) else float(shuffled),
            suppression.CONTROL_SHARE: float((controls < 0).mean()) if len(controls) else None,
        },
        tables={"suppression": to_table(columns)},
    )


def no_rows() -> pa.Table:
    """Return suppression.parquet of a run without token detectors."""
    return to_table(dict.fromkeys((LAYER, NEURON, *suppression.ROW_COLUMNS), ()))


def _lists(values: NDArray[Any]) -> Lists:
    """Return the rows of [row, item] as lists."""
    return Lists(values.ravel(), np.full(len(values), values.shape[1], np.int64))


def _triggers(tokens: Tokens) -> Triggers:
    """Number the neurons of a mapping, ascending, and list their tokens."""
    rows = [(i, token) for i, neuron in enumerate(sorted(tokens)) for token in tokens[neuron]]
    pairs = np.array(rows, np.int64).reshape(-1, 2)
    return Triggers(neuron=pairs[:, 0], token=pairs[:, 1])
