"""The paper's sections, in the order of their columns, and every column for the documents."""

from neuronstats.stats import (
    contributions,
    dead,
    matches,
    ngrams,
    positions,
    signed,
    suppression,
    vocabulary,
)
from neuronstats.stats.view import LAYER, NEURON, Column, Statistic

SECTIONS: tuple[Statistic, ...] = (
    dead.section,
    ngrams.section,
    suppression.section,
    positions.section,
    vocabulary.section,
    contributions.section,
    signed.section,
)

TABLES: dict[str, tuple[str, tuple[Column, ...]]] = {
    "neurons": (
        "neuron",
        (
            LAYER,
            NEURON,
            *dead.COLUMNS,
            dead.NEVER_OPEN,
            *ngrams.columns("n"),
            *suppression.COLUMNS,
            *positions.COLUMNS,
            *vocabulary.COLUMNS,
            *contributions.COLUMNS,
            *signed.COLUMNS,
        ),
    ),
    "ngrams": (
        "n-gram that a detector detects",
        (LAYER, NEURON, *ngrams.ROW_COLUMNS),
    ),
    "triggers": (
        "n-gram of most activations, `top_triggers` of each analysed neuron and n",
        (LAYER, NEURON, *ngrams.ROW_COLUMNS),
    ),
    "domains": ("neuron and domain", (LAYER, NEURON, *positions.DOMAIN_COLUMNS)),
    "layers": (
        "layer",
        (
            LAYER,
            *dead.LAYER_COLUMNS,
            *dead.OPEN_LAYER_COLUMNS[1:],
            *ngrams.layer_columns("n"),
            *suppression.LAYER_COLUMNS,
            *positions.LAYER_COLUMNS,
            *vocabulary.LAYER_COLUMNS,
            *contributions.LAYER_COLUMNS,
            *signed.LAYER_COLUMNS,
        ),
    ),
    "contributions": (
        "neuron and domain, not of OPT",
        (
            LAYER,
            NEURON,
            contributions.DOMAIN,
            contributions.TOKENS,
            *contributions.CASES,
            *contributions.PLAIN_CASES,
            *contributions.SUMS,
        ),
    ),
    "suppression": ("token detector", (LAYER, NEURON, *suppression.ROW_COLUMNS)),
    "dead_curve": ("layer and amount of text", (*dead.CURVE_COLUMNS, dead.NEVER_OPEN_SO_FAR)),
    "matches": ("neuron and other run, beside run.yaml", matches.COLUMNS),
}
"""Each table of the sections, and that of several runs: what a row is of, and its columns.

n stands for a length."""
