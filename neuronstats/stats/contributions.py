"""How much neurons write, from open and from closed gates, and in which direction.

Of models whose neurons write when their gate is closed, or in either direction; OPT's have none of
these columns. From sums taken in the sweep (bits/sums.py); position 0 is left out.
Source: docs/method.md, "How much neurons write".
"""

from typing import Any

import numpy as np

from neuronstats.bits import quantities
from neuronstats.bits.quantities import first_position
from neuronstats.stats.output_embedding import Floats
from neuronstats.stats.view import (
    NEURON,
    BlockView,
    Column,
    Integers,
    LayerTotals,
    Section,
    unknown,
)

ONE_SIGNED = 0.95  # of one_signedness, from which a layer counts a neuron as writing one way

MEAN = Column("mean_a", "float64", "mean over the tokens of a, what the down projection reads")
MEAN_ABSOLUTE = Column("mean_abs_a", "float64", "mean of |a|")
ROOT_MEAN_SQUARE = Column("rms_a", "float64", "root of the mean of a^2")
MAXIMUM = Column("max_abs_a", "float64", "largest |a|")
OPEN_SHARE = Column(
    "open_write_share", "float64", "share of the sum of |a| that comes from open gates"
)
ONE_SIGNEDNESS = Column(
    "one_signedness", "float64", "|sum of a| / sum of |a|: 1 where a has one sign"
)
CONTRIBUTION = Column(
    "contribution",
    "float64",
    "|w| times mean |a|, w the neuron's column of the second layer; null without reduce.vocabulary",
)
COLUMNS = (
    MEAN,
    MEAN_ABSOLUTE,
    ROOT_MEAN_SQUARE,
    MAXIMUM,
    OPEN_SHARE,
    ONE_SIGNEDNESS,
    CONTRIBUTION,
)

DOMAIN = Column("domain", "string", "the domain")
TOKENS = Column("tokens", "int64", "its tokens, position 0 left out")
CASES = tuple(
    Column(name, "int64", f"tokens of these signs: gate {gate}, up projection {sign}")
    for name, gate, sign in (
        ("open_positive", "open", "above 0"),
        ("open_negative", "open", "not above 0"),
        ("closed_positive", "closed", "above 0"),
        ("closed_negative", "closed", "not above 0"),
    )
)
PLAIN_CASES = (
    Column("open", "int64", "in place of the four, of FFNs without a gate: tokens of an open one"),
    Column("closed", "int64", "the others"),
)
SUMS = (
    Column("sum_a", "float64", "sum of a"),
    Column("sum_abs_a", "float64", "sum of |a|"),
    Column("sum_abs_a_open", "float64", "sum of |a| over tokens of an open gate"),
    Column("sum_square_a", "float64", "sum of a^2"),
    MAXIMUM,
)

LAYER_SHARE = Column("open_write_share", "float64", "the same over the layer's neurons together")
LAYER_ONE_SIGNED = Column("one_signed", "int64", f"neurons of one_signedness {ONE_SIGNED} or more")
LAYER_COLUMNS = (LAYER_SHARE, LAYER_ONE_SIGNED)


def section(view: BlockView, settings: Any) -> Section:
    """Return what follows from the sums; nothing where the run has none."""
    if view.read_sums is None:
        return Section({})
    gated = view.activation.gated
    by_domain = view.sums
    total = by_domain[0].copy()
    for part in by_domain[1:]:
        quantities.merge(total, part)
    amounts = quantities.as_floats(total, gated=gated)
    tokens = view.num_sequences * (view.num_positions - first_position(view.num_positions))
    absolute, one_signedness = (
        amounts["absolute"],
        _shares(abs(amounts["sum"]), amounts["absolute"]),
    )
    mean_absolute = absolute / max(1, tokens)
    lengths = unknown(view.num_neurons, np.float64)
    if settings.vocabulary:  # else the checkpoint is not read
        lengths = np.sqrt((view.weights.updates.astype(np.float64) ** 2).sum(axis=0))
    rows = dict(zip(quantities.names(gated=gated), total, strict=True))
    return Section(
        {
            MEAN: amounts["sum"] / max(1, tokens),
            MEAN_ABSOLUTE: mean_absolute,
            ROOT_MEAN_SQUARE: np.sqrt(amounts["square"] / max(1, tokens)),
            MAXIMUM: amounts["maximum"],
            OPEN_SHARE: _shares(amounts["absolute_open"], absolute),
            ONE_SIGNEDNESS: one_signedness,
            CONTRIBUTION: lengths * mean_absolute,
        },
        layer_sums={
            "absolute": int(rows["absolute"].astype(object).sum()),
            "absolute_open": int(rows["absolute_open"].astype(object).sum()),
            LAYER_ONE_SIGNED: int((one_signedness.filled(0) >= ONE_SIGNED).sum()),
        },
        layer_columns=_layer_columns,
        tables={"contributions": _domain_rows(view, by_domain)},
    )


def _shares(part: Floats, whole: Floats) -> Any:
    """Divide the two; null where there is nothing to take a share of."""
    return np.ma.masked_array(part / np.where(whole > 0, whole, 1), whole == 0)


def _layer_columns(totals: LayerTotals) -> dict[Column, Any]:
    whole = totals.sums["absolute"]
    share = totals.sums["absolute_open"] / whole if whole else None
    return {LAYER_SHARE: share, LAYER_ONE_SIGNED: totals.sums[LAYER_ONE_SIGNED]}


def _domain_rows(view: BlockView, by_domain: Integers) -> dict[Column, Any]:
    """Return a row per neuron and domain, by neuron, then in the domains' order."""
    gated = view.activation.gated
    columns = CASES if gated else PLAIN_CASES
    number, width = len(view.domains), view.num_neurons
    tokens = view.sequences * (view.num_positions - first_position(view.num_positions))
    amounts = [quantities.as_floats(values, gated=gated) for values in by_domain]
    names = ("sum", "absolute", "absolute_open", "square", "maximum")
    return {
        NEURON: np.repeat(np.arange(width), number),
        DOMAIN: np.tile(np.array(view.domains, object), width),
        TOKENS: np.tile(tokens, width),
        **{column: by_domain[:, row].T.ravel() for row, column in enumerate(columns)},
        **{
            column: np.stack([found[name] for found in amounts]).T.ravel()
            for column, name in zip(SUMS, names, strict=True)
        },
    }
