"""How much a neuron tells of its position: mutual information, from counts by position."""

import numpy as np
import numpy.typing as npt

from neuronstats.errors import UserError

Counts = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]

# Neurons taken at once, so that the float64 temporaries of a 66b layer stay at tens of MB.
NEURON_BLOCK = 512


def mutual_information(position_counts: Counts, num_sequences: int) -> Floats:
    """Mutual information between the position and the bit "activated", for each neuron.

    `I = 1/T * sum_p [ f(p) ln(f(p)/f) + (1-f(p)) ln((1-f(p))/(1-f)) ]` with `f(p)` the share of
    sequences in which the neuron was activated at position p, `f` its mean, and 0 ln 0 = 0. Exactly
    0 for a neuron whose counts are the same at every position (dead or always activated among
    them). Each neuron is summed by itself, in one fixed order, so the split of the neurons into
    blocks never changes a bit of the result.

    Args:
        position_counts: sequences in which each neuron was activated at each position, integers
            [position, neuron] from 0 to `num_sequences`.
        num_sequences: full-length sequences behind the counts, at least 1.

    Returns:
        Nats, float64 [neuron], from 0 to ln 2.

    Raises:
        UserError: no sequences, no positions, or counts outside 0..num_sequences.

    Source: Voita et al. 2023, sec. 5.
    """
    check_counts(position_counts, num_sequences)
    num_neurons = position_counts.shape[1]
    information = np.empty(num_neurons, np.float64)
    for start in range(0, num_neurons, NEURON_BLOCK):
        block = slice(start, start + NEURON_BLOCK)
        information[block] = _block_information(position_counts[:, block], num_sequences)
    return information


def information_bias(num_positions: int, num_sequences: int) -> float:
    """What few sequences add to the mutual information of a neuron that knows no position.

    First order (Miller and Madow): `(T-1)/(2*S*T)`, about `1/(2S)`. It overstates the bias of
    neurons that are activated less than a few times per position.

    Args:
        num_positions: T, positions of a sequence.
        num_sequences: S, sequences behind the counts.

    Returns:
        Nats.

    Source: method.md, "Positional neurons".
    """
    return (num_positions - 1) / (2 * num_sequences * num_positions)


def corrected_information(information: Floats, num_positions: int, num_sequences: int) -> Floats:
    """Take the bias of few sequences off the plain mutual information.

    Not clipped at 0: around 0 the correction is right on average only if values below it stay.
    The same amount is taken off every neuron, dead ones too.

    Args:
        information: plain values in nats, float64 [neuron].
        num_positions: T, positions of a sequence.
        num_sequences: S, sequences behind the counts.

    Returns:
        Nats, float64 [neuron]; may be slightly negative.
    """
    return information - information_bias(num_positions, num_sequences)


def check_counts(position_counts: Counts, num_sequences: int) -> None:
    """Refuse counts that cannot be activations of `num_sequences` sequences by position.

    Raises:
        UserError: wrong dimensions or dtype, no sequences, no positions, or a count out of range.
    """
    if position_counts.ndim != 2 or not np.issubdtype(position_counts.dtype, np.integer):
        raise UserError(
            f"position counts are {position_counts.dtype} of shape {position_counts.shape}; "
            "expected integers [position, neuron]"
        )
    if num_sequences < 1 or position_counts.shape[0] < 1:
        raise UserError(
            f"{position_counts.shape[0]} positions of {num_sequences} sequences: "
            "at least one of each is needed; were no full-length sequences collected?"
        )
    if position_counts.size and (
        position_counts.min() < 0 or position_counts.max() > num_sequences
    ):
        raise UserError(
            f"position counts run from {position_counts.min()} to {position_counts.max()}, "
            f"but there are {num_sequences} sequences: do both come from the same run?"
        )


def _block_information(position_counts: Counts, num_sequences: int) -> Floats:
    """Mutual information of few neurons; rows are neurons, so each is summed contiguously."""
    active = np.ascontiguousarray(position_counts.T, dtype=np.int64)  # [neuron, position]
    silent = num_sequences - active
    num_positions = active.shape[1]
    total = (_divergence(active) + _divergence(silent)) / (num_sequences * num_positions)
    return np.maximum(total, 0.0)


def _divergence(counts: npt.NDArray[np.int64]) -> Floats:
    """Sum over positions of `c ln(c * T / sum(c))` for each row; 0 ln 0 = 0.

    The quotient is formed from integers, so it is exactly 1 wherever the curve is flat.
    """
    totals = counts.sum(axis=1, keepdims=True)
    ratio = (counts * counts.shape[1]) / np.maximum(totals, 1)
    ratio[counts == 0] = 1.0
    terms: Floats = counts * np.log(ratio)
    return terms.sum(axis=1)
