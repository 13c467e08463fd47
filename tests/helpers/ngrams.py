"""N-grams by the definition, word by word, with loops, Counter and Fraction; and random cases."""

from collections import Counter
from fractions import Fraction

import numpy as np
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


def oracle(here, active, n, options):
    """One neuron's findings, with loops, Counter and Fraction: the definition, word by word."""
    occurrences = Counter(here.values())
    triggered = Counter(ngram for place, ngram in here.items() if active[place])
    counted = sum(triggered.values())
    share, rate = Fraction(str(options.cover_share)), Fraction(str(options.detect_rate))
    ranked = sorted(triggered, key=lambda ngram: (-triggered[ngram], ngram))
    cover, reached = 0, 0
    for ngram in ranked if counted else []:
        if Fraction(reached, counted) >= share:
            break
        reached += triggered[ngram]
        cover += 1

    def keeps(ngram):
        often = occurrences[ngram] >= options.min_count
        return often and Fraction(triggered[ngram], occurrences[ngram]) >= rate

    def holds(kept):
        few = 0 < cover <= options.max_cover[n]
        return few and Fraction(sum(triggered[g] for g in kept), counted) >= share

    def rows(chosen):
        return [(g, occurrences[g], triggered[g]) for g in chosen]

    kept = [ngram for ngram in ranked[:cover] if keeps(ngram)]
    limit = options.cover_limit
    return {
        "counted": counted,
        "cover": cover if limit is None else min(cover, limit + 1),
        "detector": holds(kept),
        "loose": holds([ngram for ngram in ranked if keeps(ngram)]),
        "detected": rows(kept) if holds(kept) else [],
        "triggers": rows(ranked[: options.top_triggers]),
    }


def rows_of(rows, neuron):
    chosen = np.flatnonzero(rows.neuron == neuron)
    return [
        (tuple(rows.token_ids[r].tolist()), int(rows.occurrences[r]), int(rows.activations[r]))
        for r in chosen
    ]


def assert_equals_oracle(tokens, active, options):
    corpus = build_ngram_ids(tokens, BOS, options.ngrams)
    found = count_ngrams(pack(active), corpus, options)
    assert list(found) == sorted(options.ngrams)
    for n, counts in found.items():
        here = ngrams_of(tokens, n)
        for neuron in range(len(active)):
            expected = oracle(here, active[neuron], n, options)
            assert counts.counted[neuron] == expected["counted"]
            assert counts.cover[neuron] == expected["cover"]
            assert counts.detector[neuron] == expected["detector"]
            assert counts.detector_loose[neuron] == expected["loose"]
            assert rows_of(counts.detected, neuron) == expected["detected"]
            assert rows_of(counts.triggers, neuron) == expected["triggers"]
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
