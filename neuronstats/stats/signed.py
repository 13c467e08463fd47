"""Signed suppression: do neurons lower the tokens that trigger them, by what they really write?

Behind GELU, SiLU and gates a neuron writes in either direction, so that its update's projection
alone tells nothing. Here each trigger counts by the neuron's mean value on it.
Source: docs/method.md, "Signed suppression".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from neuronstats.stats.output_embedding import NEURON_BLOCK, Floats, Triggers
from neuronstats.stats.view import BlockView, Column, Section, nulls, unknown

TRIGGERS = Column(
    "signed_triggers",
    "int64",
    "its triggers (detected tokens; of neurons that detect none, its top triggers) among the tokens"
    " whose values were summed; null where there are none",
)
PROJECTION = Column(
    "signed_projection",
    "float64",
    "mean over them of mean a times E w: below 0, the neuron lowers what triggers it",
)
NORMED = Column("signed_projection_normed", "float64", "the same with the final norm's weight in E")
COLUMNS = (TRIGGERS, PROJECTION, NORMED)

SHARES = ("signed_suppressing_share", "signed_suppressing_normed_share")
LAYER_COLUMNS = tuple(
    Column(name.replace("_share", f"{control}_share"), "float64", meaning + end)
    for name, end in zip(SHARES, ("", ", the final norm's weight in E"), strict=True)
    for control, meaning in (
        ("", "share of the token detectors whose signed projection is below 0"),
        ("_shuffled", "control: the share to expect if each neuron had another one's triggers"),
        ("_control", "control: the share among the neurons that detect no token"),
    )
)

_, SHUFFLED_SHARE, CONTROL_SHARE, _, _, NORMED_CONTROL_SHARE = LAYER_COLUMNS


def section(view: BlockView, settings: Any) -> Section:
    """Return the columns, not yet known; nothing where the run has no sums."""
    if view.read_sums is None:
        return Section({})
    kinds = {TRIGGERS: np.int64, PROJECTION: np.float64, NORMED: np.float64}
    return Section(
        {column: unknown(view.num_neurons, kind) for column, kind in kinds.items()},
        layer_columns=partial(nulls, LAYER_COLUMNS),
    )


@dataclass(frozen=True, slots=True)
class Signed:
    """What neurons write on their triggers."""

    projection: Floats
    """[neuron]: mean effect on its triggers; NaN without any."""
    shuffled_share: float
    """Share below 0 to expect if every neuron had another one's triggers; NaN below two neurons."""


def judge(effects: Floats, triggers: Triggers) -> Signed:
    """Return each neuron's mean effect on its triggers, and the share of chance.

    Args:
        effects: mean a times projection, [slot, neuron].
        triggers: rows of slots, in `token`, by neuron.
    """
    width = effects.shape[1]
    values = effects[triggers.token, triggers.neuron]
    counts = np.bincount(triggers.neuron, minlength=width)
    sums = np.bincount(triggers.neuron, weights=values, minlength=width)
    projection = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    owners = np.flatnonzero(counts)
    if len(owners) < 2:
        return Signed(projection, float("nan"))
    order = np.argsort(triggers.neuron, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts[owners])[:-1]])
    below = 0
    for first in range(0, len(owners), NEURON_BLOCK):
        own = owners[first : first + NEURON_BLOCK]
        part = effects[triggers.token[order]][:, own]  # [row, neuron]
        is_below = np.add.reduceat(part, starts, axis=0) < 0  # [owner of the triggers, neuron]
        below += int(is_below.sum() - is_below[first + np.arange(len(own)), range(len(own))].sum())
    return Signed(projection, below / (len(owners) * (len(owners) - 1)))


def triggers_with_slots(tokens: Mapping[int, Sequence[int]], slots: Sequence[int]) -> Triggers:
    """List neurons' tokens by their slots, given the token of each; leave out those without."""
    slot_of = {token: slot for slot, token in enumerate(slots)}
    rows = [
        (neuron, slot_of[token])
        for neuron in sorted(tokens)
        for token in tokens[neuron]
        if token in slot_of
    ]
    pairs = np.array(rows, np.int64).reshape(-1, 2)
    return Triggers(neuron=pairs[:, 0], token=pairs[:, 1])


def shares(found: Signed, is_detector: npt.NDArray[np.bool_]) -> tuple[float | None, ...]:
    """Return a layer's shares, as `LAYER_COLUMNS` has them: detectors, shuffled, the others."""

    def share(where: npt.NDArray[np.bool_]) -> float | None:
        known = found.projection[where & ~np.isnan(found.projection)]
        return float((known < 0).mean()) if len(known) else None

    shuffled = None if np.isnan(found.shuffled_share) else found.shuffled_share
    return share(is_detector), shuffled, share(~is_detector)
