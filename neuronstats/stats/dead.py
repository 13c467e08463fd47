"""Dead neurons: how often each neuron is activated, and which ones never are.

Where the activation function is not exactly zero below its threshold (GELU, SiLU), a neuron that is
not activated still writes: its gate is closed, and one that never opened is not called dead.

Source: Voita et al. 2023, sec. 3 and fig. 1; docs/method.md, "Dead neurons".
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from neuronstats.stats.view import LAYER, BlockView, Column, Integers, LayerTotals, Section

NEVER_SEEN_BOUND = 3.0  # one-sided 95 % upper bound of a count of which none was seen

TOKENS = Column("tokens", "int64", "tokens that the neuron was seen on")
ACTIVATIONS = Column("activations", "int64", "tokens on which it was activated")
FREQUENCY = Column("frequency", "float64", "activations / tokens")
DEAD = Column("dead", "bool", "never activated on these tokens")
COLUMNS = (TOKENS, ACTIVATIONS, FREQUENCY, DEAD)
NEVER_OPEN = Column(
    "never_open", "bool", "in place of dead behind GELU, SiLU and the like: its gate never opened"
)

NEURONS = Column("neurons", "int64", "neurons of the layer")
NUM_DEAD = Column("dead", "int64", "dead neurons")
DEAD_SHARE = Column("dead_share", "float64", "dead / neurons (fig. 1a)")
BOUND = Column(
    "dead_frequency_bound",
    "float64",
    "frequency that a dead neuron may still have: 3 / tokens, the one-sided 95 % upper bound",
)
ALIVE_FREQUENCY = Column(
    "alive_frequency", "float64", "mean frequency of the neurons that are not dead (fig. 1b)"
)
LAYER_COLUMNS = (NEURONS, NUM_DEAD, DEAD_SHARE, BOUND, ALIVE_FREQUENCY)
NUM_NEVER_OPEN = Column("never_open", "int64", "in place of dead: neurons that never opened")
OPEN_FREQUENCY = Column(
    "open_frequency", "float64", "mean frequency of the neurons that opened at all"
)
OPEN_LAYER_COLUMNS = (
    NEURONS,
    NUM_NEVER_OPEN,
    Column("never_open_share", "float64", "never_open / neurons"),
    Column("never_open_frequency_bound", "float64", "in place of dead_frequency_bound"),
    OPEN_FREQUENCY,
)

SEEN = Column("tokens", "int64", "tokens seen so far, the domains evenly mixed")
DEAD_SO_FAR = Column("dead", "int64", "neurons not activated so far")
NEVER_OPEN_SO_FAR = Column("never_open", "int64", "in place of dead: neurons not opened so far")
CURVE_COLUMNS = (LAYER, SEEN, NEURONS, DEAD_SO_FAR)


def section(view: BlockView, settings: Any) -> Section:
    """Count each neuron's activations, and the neurons that have none."""
    activations = view.activations
    order = interleave_domains(view.shard_domains)
    seen = np.cumsum(view.shard_counts[order], axis=0)
    exact = view.activation.exact_zeros
    number, declared = (NUM_DEAD, LAYER_COLUMNS) if exact else (NUM_NEVER_OPEN, OPEN_LAYER_COLUMNS)
    return Section(
        {
            TOKENS: np.full(view.num_neurons, view.num_tokens, np.int64),
            ACTIVATIONS: activations,
            FREQUENCY: activations / view.num_tokens,
            DEAD if exact else NEVER_OPEN: activations == 0,
        },
        layer_sums={
            NEURONS: view.num_neurons,
            number: int((activations == 0).sum()),
            TOKENS: view.num_tokens * view.num_neurons,
            ACTIVATIONS: int(activations.sum()),
            "dead_after_shard": (seen == 0).sum(axis=1),
        },
        layer_columns=partial(_layer_columns, declared),
    )


def _layer_columns(declared: Sequence[Column], totals: LayerTotals) -> dict[Column, Any]:
    """Compute a layer's row, from whole numbers: the same however it was cut into blocks."""
    sums = totals.sums
    neurons, dead = sums[NEURONS], sums[declared[1]]
    tokens, alive = sums[TOKENS] // neurons, neurons - dead
    frequency = sums[ACTIVATIONS] / (tokens * alive) if alive else None
    values = (neurons, dead, dead / neurons, NEVER_SEEN_BOUND / tokens, frequency)
    return dict(zip(declared, values, strict=True))


def dead_curve(layer: int, totals: LayerTotals, tokens_seen: Integers) -> dict[Column, Any]:
    """Return a layer's rows of dead_curve.parquet: neurons not activated so far.

    `tokens_seen` is after each shard, in the order of `interleave_domains`, int64 [shard].
    """
    rows = len(tokens_seen)
    return {
        LAYER: np.full(rows, layer, np.int32),
        SEEN: tokens_seen,
        NEURONS: np.full(rows, totals.sums[NEURONS], np.int64),
        NEVER_OPEN_SO_FAR if NUM_NEVER_OPEN in totals.sums else DEAD_SO_FAR: totals.sums[
            "dead_after_shard"
        ],
    }


def interleave_domains(domains: Sequence[str]) -> list[int]:
    """Order shards so that every domain is spread evenly, as more of the same data would be.

    Given each shard's domain; returns indices of all shards.
    """
    of_domain: dict[str, list[int]] = {}
    for index, domain in enumerate(domains):
        of_domain.setdefault(domain, []).append(index)
    place = {i: (k + 0.5) / len(own) for own in of_domain.values() for k, i in enumerate(own)}
    return sorted(place, key=lambda index: (place[index], index))
