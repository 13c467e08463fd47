"""The same neuron in two runs: whose bits go together, over the same tokens.

Source: Gurnee et al. 2024, "Universal neurons in GPT2 language models" (arXiv 2401.12181), sec. 3,
on bits in place of activations; docs/method.md, "The same neuron in two runs".
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neuronstats.stats.view import LAYER, NEURON, Column

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]

BLOCK = 64  # neurons of the one run that are held against all of the other
RUN = Column("run", "string", "fingerprint of the run that the neuron is of")
OTHER = Column("other", "string", "fingerprint of the run that its match is of")
MATCH = Column("match", "int32", "neuron of the other run's same layer of highest correlation")
CORRELATION = Column("correlation", "float64", "of their bits over the tokens compared")
CONTROL = Column(
    "control", "float64", "highest correlation where the other run's sequences are shuffled"
)
MUTUAL = Column("mutual", "bool", "the match's own match is this neuron")
TOKENS = Column("tokens", "int64", "tokens compared")
COLUMNS = (RUN, OTHER, LAYER, NEURON, MATCH, CORRELATION, CONTROL, MUTUAL, TOKENS)
EXCESS = 0.5  # a universal neuron's correlation less its control is above this (Gurnee et al.)


@dataclass(frozen=True)
class Best:
    """Each neuron's best match in the other run."""

    neuron: Integers
    """[neuron]: of the other run, the lowest of several; -1 where nothing can be said."""
    correlation: Floats
    """[neuron]: NaN where this neuron's bits, or all of the other run's, never change."""


def words(bits: npt.NDArray[np.uint8]) -> Words:
    """Return bits [neuron, sequence, byte] as uint64 [neuron, word], zeros at the end."""
    flat = bits.reshape(len(bits), -1)
    missing = -flat.shape[1] % 8
    padded = np.pad(flat, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(flat)
    return padded.view(np.uint64)


def best_matches(first: Words, second: Words, num_tokens: int) -> tuple[Best, Best]:
    """Find for each neuron of two runs the one of the other run of highest correlation.

    The bits set in both rows of every pair are counted, so the correlation is exact but for the
    rounding of one division.

    Args:
        first: the one run's bits, uint64 [neuron, word].
        second: the other run's, of the same tokens in the same places.
        num_tokens: bits of a row that are tokens; the others are zero in both.

    Returns:
        The first run's matches, and the second's.
    """
    from neuronstats.stats.match_kernels import count_common  # compiles

    set_first, set_second = (
        np.bitwise_count(w).sum(axis=1, dtype=np.int64) for w in (first, second)
    )
    found = Best(np.full(len(first), -1), np.full(len(first), np.nan))
    back = Best(np.full(len(second), -1), np.full(len(second), np.nan))
    for start in range(0, len(first), BLOCK):
        rows = slice(start, start + BLOCK)
        common = np.zeros((len(first[rows]), len(second)), np.int64)
        count_common(first[rows], second, common)
        phi = correlations(common, set_first[rows], set_second, num_tokens)
        phi = np.where(np.isnan(phi), -np.inf, phi)
        _take_better(found, rows, phi.argmax(axis=1), phi.max(axis=1))
        _take_better(back, slice(None), start + phi.argmax(axis=0), phi.max(axis=0))
    return found, back


def correlations(
    common: Integers, set_first: Integers, set_second: Integers, num_tokens: int
) -> Floats:
    """Return the correlation of the bits of each pair of rows, float64 [first, second].

    It is `(N n11 - n1 n2) / sqrt(n1 (N - n1) n2 (N - n2))`; NaN where a row's bits never change.

    Args:
        common: n11, bits set in both, int64 [first, second].
        set_first: n1, bits set in each row of the first.
        set_second: n2, in each row of the second.
        num_tokens: N; below 2**31, so that the products fit 64 bits.
    """
    covariance = num_tokens * common - set_first[:, None] * set_second
    deviations = [
        np.sqrt((n * (num_tokens - n)).astype(np.float64)) for n in (set_first, set_second)
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(covariance / (deviations[0][:, None] * deviations[1]))


def _take_better(best: Best, rows: slice, neuron: Integers, correlation: Floats) -> None:
    """Keep what is higher than before; an equal one came earlier."""
    before = np.nan_to_num(best.correlation[rows], nan=-np.inf)
    better = correlation > before
    best.neuron[rows] = np.where(better, neuron, best.neuron[rows])
    best.correlation[rows] = np.where(better, correlation, best.correlation[rows])


def shuffled(domains: npt.NDArray[np.integer[Any]]) -> Integers:
    """Return for each sequence another one of its domain: half as many further, int64 [sequence].

    Position and domain stay what they were, the text does not. A domain's only sequence stays.
    """
    order = np.argsort(domains, kind="stable")
    moved = np.empty_like(order)
    for domain in np.unique(domains):
        own = order[domains[order] == domain]
        moved[own] = np.roll(own, -(len(own) // 2))
    return moved
