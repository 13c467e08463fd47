"""The counts of n-grams held against the oracle's, and random cases."""

import numpy as np
from helpers import oracle_ngrams
from hypothesis import strategies as st

from neuronstats.stats.ngram_counts import count_ngrams
from neuronstats.stats.ngram_ids import build_ngram_ids

BOS = 2


def pack(active):
    """[neuron, sequence, position] bool -> bits, written out with shifts, not with packbits."""
    neurons, sequences, positions = active.shape
    bits = np.zeros((neurons, sequences, (positions + 7) // 8), np.uint8)
    for position in range(positions):
        bits[:, :, position // 8] |= active[:, :, position].astype(np.uint8) << (position % 8)
    return bits


def ngrams_of(tokens, n):
    """The n-gram ending at each (sequence, position), as a tuple of tokens."""
    found = {}
    for s, row in enumerate(tokens.tolist()):
        for k in range(n - 1, len(row)):
            ngram = tuple(row[k - n + 1 : k + 1])
            if BOS not in ngram:
                found[s, k] = ngram
    return found


def rows_of(rows, neuron):
    chosen = np.flatnonzero(rows.neuron == neuron)
    return [
        (tuple(rows.token_ids[r].tolist()), int(rows.occurrences[r]), int(rows.activations[r]))
        for r in chosen
    ]


def expected_rows(ngrams, occurrences, triggered):
    return [(ngram, occurrences[ngram], triggered[ngram]) for ngram in ngrams]


def assert_equals_oracle(tokens, active, options):
    found = count_ngrams(pack(active), build_ngram_ids(tokens, BOS, options.ngrams), options)
    assert list(found) == sorted(options.ngrams)
    for n, counts in found.items():
        occurrences = oracle_ngrams.count_ngrams(tokens.tolist(), BOS, n)
        for neuron, fires in enumerate(active.tolist()):
            triggered = oracle_ngrams.count_triggers(fires, tokens.tolist(), BOS, n)
            expected = oracle_ngrams.detect(triggered, occurrences, n, options)
            limit = len(triggered) if options.cover_limit is None else options.cover_limit
            assert counts.counted[neuron] == triggered.total()
            assert counts.cover[neuron] == min(len(expected.cover), limit + 1)
            assert counts.detector[neuron] == expected.detector
            assert counts.detector_loose[neuron] == expected.detector_loose
            detected = expected.detected if expected.detector else []
            assert rows_of(counts.detected, neuron) == expected_rows(
                detected, occurrences, triggered
            )
            top = oracle_ngrams.falling(triggered)[: options.top_triggers]
            assert rows_of(counts.triggers, neuron) == expected_rows(top, occurrences, triggered)
        for rows in (counts.detected, counts.triggers):
            np.testing.assert_array_equal(rows.rate, rows.activations / rows.occurrences)
            np.testing.assert_array_equal(
                rows.share, rows.activations / counts.counted[rows.neuron]
            )


def random_case(seed, sequences, positions, vocabulary, densities):
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, vocabulary + 1)
    tokens = rng.choice(vocabulary, (sequences, positions), p=weights / weights.sum())
    tokens[:, 0] = BOS
    active = rng.random((len(densities), sequences, positions)) < np.reshape(densities, (-1, 1, 1))
    return tokens.astype(np.uint16), active


@st.composite
def cases(draw):
    seed = draw(st.integers(0, 2**32 - 1))
    # Positions that fill bytes and that do not; rows that fill 64-bit words and that do not.
    positions = draw(st.sampled_from([1, 2, 5, 8, 16, 19, 64]))
    sequences = draw(st.integers(1, 12))
    vocabulary = draw(st.sampled_from([3, 6, 40]))  # from 3 on: one n-gram has most occurrences
    densities = draw(st.lists(st.sampled_from([0, 0.02, 0.3, 0.9, 1]), min_size=1, max_size=4))
    return random_case(seed, sequences, positions, vocabulary, densities)
