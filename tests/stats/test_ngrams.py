import tracemalloc
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronstats.errors import SettingsError, UserError
from neuronstats.stats import ngram_ids, ngram_kernels, ngram_rules
from neuronstats.stats.ngram_counts import count_ngrams, projected_bytes
from neuronstats.stats.ngram_ids import build_ngram_ids
from neuronstats.stats.settings import NgramSettings

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


@given(
    case=cases(),
    ngrams=st.sampled_from([[1, 2, 3], [1], [3, 1], [2], [4, 5]]),
    cover_share=st.sampled_from([0.95, 0.5, 1.0, 0.3]),
    detect_rate=st.sampled_from([0.95, 0.5, 1.0, 0.01]),
    max_cover=st.sampled_from([1, 5, 60]),
    min_count=st.sampled_from([1, 3]),
    top_triggers=st.sampled_from([0, 2, 10]),
    limited=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_every_finding_equals_the_oracle(case, ngrams, max_cover, limited, **options):
    options = NgramSettings(
        ngrams=ngrams,
        max_cover=dict.fromkeys(ngrams, max_cover),
        cover_limit=max_cover if limited else None,
        **options,
    )
    assert_equals_oracle(*case, options)


def detector_case():
    """Neurons that detect planted tokens, fully or not, with noise beside: sums near 95 %."""
    rng = np.random.default_rng(5)
    tokens = rng.integers(3, 30, (40, 33)).astype(np.uint32)
    tokens[:, 0] = BOS
    active = np.zeros((8, 40, 33), bool)
    for neuron, (planted, rate, noise) in enumerate(
        [
            ([3], 1, 0),
            ([3, 4], 1, 0),
            ([5, 6, 7], 0.97, 0),
            ([8, 9], 0.9, 0),
            ([10], 1, 0.001),
            ([11, 12, 13, 14, 15, 16], 1, 0),
            ([17, 18], 0.96, 0.0005),
            ([19], 1, 0.01),
        ]
    ):
        active[neuron] = np.isin(tokens, planted) & (rng.random(tokens.shape) < rate)
        active[neuron] |= rng.random(tokens.shape) < noise
    return tokens, active


@pytest.mark.parametrize("top_triggers", [0, 3])
@pytest.mark.parametrize("cover_limit", [None, 50, 70])
def test_detectors_equal_the_oracle(top_triggers, cover_limit):
    tokens, active = detector_case()
    options = NgramSettings(top_triggers=top_triggers, cover_limit=cover_limit)
    assert_equals_oracle(tokens, active, options)
    found = count_ngrams(
        pack(active), build_ngram_ids(tokens, BOS, [1]), NgramSettings(ngrams=[1], max_cover={1: 5})
    )
    assert found[1].detector.tolist()[:4] == [True, True, True, False]
    assert not found[1].detector[5]  # six tokens are more than five


# --- thresholds, by hand ---------------------------------------------------------------------


def single(tokens, active, **options):
    """Findings for unigrams of one neuron over one sequence."""
    tokens, active = np.array([tokens]), np.array([[active]], bool)
    options = NgramSettings(ngrams=[1], **options)
    return count_ngrams(pack(active), build_ngram_ids(tokens, BOS, [1]), options)[1]


def test_a_share_of_exactly_95_percent_is_enough():
    # Nineteen of twenty activations on token 7, one on token 8; 0.95 * 20 is not 19.0 in floats
    # everywhere, so only whole numbers decide.
    tokens = [BOS] + [7] * 19 + [8]
    found = single(tokens, [0] + [1] * 20)
    assert found.cover[0] == 1
    assert found.detector[0]
    found = single([*tokens, 8], [0] + [1] * 21)
    assert found.cover[0] == 2  # 19 of 21


def test_a_rate_of_exactly_95_percent_is_enough():
    found = single([BOS] + [7] * 20, [0] + [1] * 19 + [0])
    assert found.detector[0]
    assert found.detected.rate.tolist() == [0.95]
    found = single([BOS] + [7] * 39, [0] + [1] * 37 + [0] * 2)  # 37 of 39 is 94.9 %
    assert found.cover[0] == 1
    assert not found.detector[0]


def test_step_three_asks_again_for_95_percent():
    # Token 7: 18 of 18; token 8: 2 of 4, so not kept, and 18 of 20 activations are too few.
    tokens = [BOS] + [7] * 18 + [8] * 4
    found = single(tokens, [0] + [1] * 20 + [0] * 2)
    assert found.cover[0] == 2
    assert not found.detector[0]
    assert not found.detector_loose[0]


def test_the_loose_reading_keeps_ngrams_past_the_cover():
    # The cover (95 % of 100) is token 7 (94) and token 8 (1 of 2, not kept). Strictly 94 % are
    # left; tokens 9 to 13, once each and always, make it 99 % in the loose reading.
    tokens = [BOS] + [7] * 94 + [8] * 2 + [9, 10, 11, 12, 13]
    found = single(tokens, [0] + [1] * 94 + [1, 0] + [1] * 5)
    assert found.cover[0] == 2
    assert not found.detector[0]
    assert found.detector_loose[0]


def test_min_count_asks_for_occurrences():
    tokens, active = [BOS, 7, 7, 8], [0, 1, 1, 0]
    assert single(tokens, active, min_count=2).detector[0]
    assert not single(tokens, active, min_count=3).detector[0]
    assert not single(tokens, active, min_count=3).detector_loose[0]


def test_the_begin_of_sequence_token_counts_nowhere():
    found = single([BOS, 7, BOS, 7], [1, 0, 1, 0])
    assert found.counted[0] == 0
    assert found.cover[0] == 0
    assert not found.detector[0]
    assert len(found.triggers.neuron) == 0
    tokens = np.array([[BOS, 7, BOS, 7, 8]])
    ids = build_ngram_ids(tokens, BOS, [2])[2]
    assert ids.token_ids.tolist() == [[7, 8]]
    assert ids.ids.tolist() == [1, 1, 1, 1, 0, 1, 1, 1]


def test_an_ngram_never_reaches_across_the_start_of_its_sequence():
    tokens = np.array([[5, 6], [7, 8]])
    ids = build_ngram_ids(tokens, BOS, [2, 3])
    assert ids[2].token_ids.tolist() == [[5, 6], [7, 8]]
    assert len(ids[3].occurrences) == 0


def test_ties_are_broken_by_ascending_token_ids():
    # Four tokens, equally often; two of them cover half. 4 comes last in the text, first in the
    # cover; bigrams are compared from their first token on.
    tokens = [BOS, 30, 9, 12, 4]
    found = single(tokens, [0, 1, 1, 1, 1], cover_share=0.5, top_triggers=3)
    assert found.detected.token_ids.tolist() == [[4], [9]]
    assert found.triggers.token_ids.tolist() == [[4], [9], [12]]
    options = NgramSettings(ngrams=[2], top_triggers=3)
    corpus = build_ngram_ids(np.array([tokens]), BOS, [2])
    found = count_ngrams(pack(np.ones((1, 1, 5), bool)), corpus, options)[2]
    assert found.triggers.token_ids.tolist() == [[9, 12], [12, 4], [30, 9]]


def test_counts_above_the_tally_are_sorted():
    # Token 3 + i occurs TALLY + i times, all of them activated: every count is a large one.
    tokens = np.repeat(np.arange(3, 13), ngram_rules.TALLY + np.arange(10))
    tokens = np.concatenate([tokens, tokens[-ngram_rules.TALLY - 9 :] + 1])  # a tie: 12 and 13
    active = np.ones((1, 1, len(tokens)), bool)
    options = NgramSettings(ngrams=[1], max_cover={1: 20}, cover_share=0.5)
    assert_equals_oracle(tokens[None], active, options)


# --- sizes, splits, orders -------------------------------------------------------------------


def test_many_ngrams_in_many_buckets_equal_the_oracle():
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, 60000, (50, 2048)).astype(np.uint16)
    tokens[:, 0] = BOS
    tokens[:25, 1:1000] = rng.integers(3, 40, (25, 999))
    active = rng.random((4, 50, 2048)) < np.reshape([0, 0.001, 0.05, 0.6], (4, 1, 1))
    active[1] |= np.isin(tokens, [7, 8, 9])
    assert_equals_oracle(tokens, active, NgramSettings())
    assert_equals_oracle(tokens, active, NgramSettings(top_triggers=0, cover_limit=50))
    many = build_ngram_ids(tokens, BOS, [2])[2]
    assert len(many.occurrences) > 2 << ngram_kernels.BUCKET_SHIFT
    assert many.ids.dtype == np.uint32


def flatten(found):
    """All findings as bytes, row numbers of the neurons kept apart."""
    parts = []
    for counts in found.values():
        parts += [counts.counted, counts.cover, counts.detector, counts.detector_loose]
        for rows in (counts.detected, counts.triggers):
            parts += [rows.token_ids, rows.occurrences, rows.activations, rows.rate, rows.share]
    return [part.tobytes() for part in parts]


@given(case=cases(), cut=st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_the_split_of_neurons_into_blocks_does_not_matter(case, cut):
    tokens, active = case
    options = NgramSettings(cover_limit=50)
    corpus, bits = build_ngram_ids(tokens, BOS, [1, 2, 3]), pack(active)
    whole = count_ngrams(bits, corpus, options)
    for n, counts in whole.items():
        parts = [
            count_ngrams(bits[part], corpus, options)[n] for part in (slice(cut), slice(cut, None))
        ]
        for name in ("counted", "cover", "detector", "detector_loose"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(getattr(counts, name), joined)
        for table in ("detected", "triggers"):
            rows = [getattr(part, table) for part in parts]
            for name in ("token_ids", "occurrences", "activations", "rate", "share"):
                joined = np.concatenate([getattr(part, name) for part in rows])
                np.testing.assert_array_equal(getattr(getattr(counts, table), name), joined)


@given(case=cases(), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_order_of_sequences_does_not_matter(case, seed):
    tokens, active = case
    order = np.random.default_rng(seed).permutation(len(tokens))
    options = NgramSettings()
    found, shuffled = (
        count_ngrams(pack(active[:, o]), build_ngram_ids(tokens[o], BOS, [1, 2, 3]), options)
        for o in (np.arange(len(tokens)), order)
    )
    assert flatten(found) == flatten(shuffled)


def test_a_block_is_decoded_in_as_many_steps_as_its_activations_ask_for(monkeypatch):
    tokens, active = random_case(3, 4, 64, 30, [1, 1, 0, 0.5, 1, 1, 1, 0.1])
    calls = []
    decode = ngram_kernels.decode_positions
    monkeypatch.setattr(
        ngram_kernels, "decode_positions", lambda *args: calls.append(decode(*args)) or calls[-1]
    )
    monkeypatch.setattr(ngram_kernels, "SLACK", 64 * 64 + 8)
    assert_equals_oracle(tokens, active, NgramSettings())
    assert len(calls) > 1
    assert sum(calls) == 8


def test_pruned_equals_full_up_to_the_limit():
    tokens, active = random_case(7, 40, 512, 5000, [0.3, 0.4, 0.9, 0.0005, 0.25, 0])
    active[4] &= tokens < 6  # few tokens, many activations, so not pruned
    active[5] = tokens == 40
    # Neuron 0 fires first on the first position of sequences, where a token but no bigram ends:
    # its bigrams may cover it with fewer than its tokens do.
    active[0, :, 1] = True
    corpus, bits = build_ngram_ids(tokens, BOS, [1, 2, 3]), pack(active)
    full = count_ngrams(bits, corpus, NgramSettings(top_triggers=0))
    for limit in (50, 51, 200):
        pruned = count_ngrams(bits, corpus, NgramSettings(top_triggers=0, cover_limit=limit))
        for n in (1, 2, 3):
            np.testing.assert_array_equal(pruned[n].cover, np.minimum(full[n].cover, limit + 1))
            np.testing.assert_array_equal(pruned[n].counted, full[n].counted)
            np.testing.assert_array_equal(pruned[n].detector, full[n].detector)
            np.testing.assert_array_equal(pruned[n].detector_loose, full[n].detector_loose)
            np.testing.assert_array_equal(pruned[n].detected.token_ids, full[n].detected.token_ids)


@pytest.mark.parametrize("seed", range(6))
def test_pruned_equals_full_for_detectors_and_busy_neurons(seed):
    rng = np.random.default_rng(seed)
    tokens, active = random_case(seed, 60, 512, 2000, rng.choice([0.15, 0.3, 0.5], 12))
    frequent = np.bincount(tokens.ravel()).argsort()[::-1]
    for neuron in range(10):  # some tokens, always or mostly, and some noise or none
        own = rng.choice(frequent[1 : rng.choice([12, 100, 1500])], rng.integers(1, 120))
        active[neuron] = np.isin(tokens, own) & (rng.random(tokens.shape) < rng.choice([0.96, 1]))
        active[neuron] |= rng.random(tokens.shape) < rng.choice([0, 0.003])
        active[neuron, :, rng.integers(1, 4)] |= rng.random() < 0.3
    assert (active.sum(axis=(1, 2)) >= ngram_rules.PRUNE_LEAST).sum() > 3
    ngrams = [[1, 2, 3], [3], [2, 4]][seed % 3]
    corpus, bits = build_ngram_ids(tokens, BOS, ngrams), pack(active)
    options = {"ngrams": ngrams, "max_cover": dict.fromkeys(ngrams, 50), "top_triggers": 0}
    full = count_ngrams(bits, corpus, NgramSettings(**options))
    for limit in (50, 90):
        pruned = count_ngrams(bits, corpus, NgramSettings(**options, cover_limit=limit))
        for n in ngrams:
            np.testing.assert_array_equal(pruned[n].cover, np.minimum(full[n].cover, limit + 1))
            for name in ("counted", "detector", "detector_loose"):
                np.testing.assert_array_equal(getattr(pruned[n], name), getattr(full[n], name))
            for name in ("neuron", "token_ids", "activations"):
                found, expected = (getattr(x[n].detected, name) for x in (pruned, full))
                np.testing.assert_array_equal(found, expected)


def covers(tokens, own):
    """Covering numbers of the neuron that detects its own tokens: exact, and above 50 pruned."""
    corpus, bits = build_ngram_ids(tokens[None], BOS, [1]), pack(np.isin(tokens, own)[None, None])
    options = {"ngrams": [1], "top_triggers": 0}
    found = [
        count_ngrams(bits, corpus, NgramSettings(**options, cover_limit=limit))[1].cover[0]
        for limit in (None, 50)
    ]
    assert (bits.shape[0], np.bitwise_count(bits).sum() >= ngram_rules.PRUNE_LEAST) == (1, True)
    return found


def test_a_bound_that_is_just_enough_proves_nothing():
    # The 50 most frequent tokens have exactly 95 % of the activations, and cover.
    tokens = np.concatenate([np.repeat(np.arange(3, 53), 95), np.arange(53, 303)])
    assert covers(tokens, np.arange(3, 303)) == [50, 50]
    assert covers(tokens, np.arange(3, 303)[1:]) == [54, 51]  # 4655 of 4905, 5 more


def test_a_neuron_on_infrequent_tokens_alone_is_counted():
    # 600 tokens, equally often; the neuron detects the last ones, which are none of the 512.
    tokens = np.repeat(np.arange(3, 603), 100)
    assert covers(tokens, np.arange(553, 603)) == [48, 48]


def test_a_longer_ngram_can_have_the_smaller_cover():
    # Why pruning compares activations, not covering numbers: position 1 ends a token but no bigram
    # (the one there holds the begin-of-sequence token), so its tokens drop out for n = 2.
    tokens = np.array([[BOS, 10 + s, 5, 6] for s in range(20)])
    active = np.zeros((1, 20, 4), bool)
    active[0, :, [1, 3]] = True
    found = count_ngrams(
        pack(active), build_ngram_ids(tokens, BOS, [1, 2]), NgramSettings(ngrams=[1, 2])
    )
    assert found[1].cover[0] == 19  # token 6 twenty times, and 18 of 20 others
    assert found[2].cover[0] == 1


# --- ids -------------------------------------------------------------------------------------


@given(case=cases(), n=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_ids_name_the_ngram_that_ends_at_each_position(case, n):
    tokens, _ = case
    ids = build_ngram_ids(tokens, BOS, [n])[n]
    here = ngrams_of(tokens, n)
    occurrences = Counter(here.values())
    ranked = sorted(occurrences, key=lambda ngram: (-occurrences[ngram], ngram))
    assert list(map(tuple, ids.token_ids.tolist())) == ranked
    assert ids.occurrences.tolist() == [occurrences[ngram] for ngram in ranked]
    assert np.argsort(ids.lexical).tolist() == sorted(range(len(ranked)), key=ranked.__getitem__)
    grid = ids.ids.reshape(len(tokens), -1)
    for s in range(grid.shape[0]):
        for k in range(grid.shape[1]):
            expected = ranked.index(here[s, k]) if (s, k) in here else len(ranked)
            assert grid[s, k] == expected


@pytest.mark.parametrize("piece_bits", [1, 3, 22])
def test_numbering_does_not_depend_on_the_pieces(monkeypatch, piece_bits):
    monkeypatch.setattr(ngram_ids, "_PIECE_BITS", piece_bits)
    tokens, _ = random_case(11, 9, 30, 12, [0])
    for n, ids in build_ngram_ids(tokens, BOS, [1, 2, 3]).items():
        assert Counter(ngrams_of(tokens, n).values()) == {
            tuple(ngram): count
            for ngram, count in zip(ids.token_ids.tolist(), ids.occurrences.tolist(), strict=True)
        }


def test_token_ids_may_be_as_large_as_int32():
    rng = np.random.default_rng(0)
    tokens = rng.choice([3, 2**31 - 1, 2**31 - 2], (30, 20)).astype(np.uint32)
    ids = build_ngram_ids(tokens, BOS, [4])[4]
    assert Counter(ngrams_of(tokens, 4).values()) == {
        tuple(ngram): count
        for ngram, count in zip(ids.token_ids.tolist(), ids.occurrences.tolist(), strict=True)
    }
    keys = rng.integers(0, 2**60, 100)
    found = ngram_ids._number(keys[rng.integers(0, 100, 500)])
    assert found[2].sum() == 500


def test_memory_stays_below_what_is_projected():
    tokens, active = random_case(2, 300, 500, 20000, [0.5] * 30)
    bits, options = pack(active), NgramSettings()
    corpus = build_ngram_ids(tokens, BOS, [1, 2, 3])
    count_ngrams(bits, corpus, options)  # compile
    tracemalloc.start()
    try:
        corpus = build_ngram_ids(tokens, BOS, [1, 2, 3])
        built, peak = tracemalloc.get_traced_memory()
        projected = ngram_ids.projected_bytes(300, 500, [1, 2, 3])
        assert built <= projected["n-gram ids"]
        assert peak <= sum(projected.values())
        tracemalloc.reset_peak()
        count_ngrams(bits, corpus, options)
        peak = tracemalloc.get_traced_memory()[1] - built
        assert peak <= sum(projected_bytes(30, 300, 500, options).values())
    finally:
        tracemalloc.stop()


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ngrams": []}, r"ngrams=\[\]"),
        ({"ngrams": [0]}, "at least 1"),
        ({"ngrams": [1, 1]}, "different"),
        ({"cover_share": 0.0}, r"cover_share=0\.0"),
        ({"detect_rate": 1.5}, r"detect_rate=1\.5"),
        ({"detect_rate": 1 / 3}, "nine decimals"),
        ({"cover_share": float("nan")}, "cover_share=nan"),
        ({"min_count": 0}, "min_count=0"),
        ({"top_triggers": -1}, "top_triggers=-1"),
        ({"ngrams": [4]}, "n=4"),
        ({"cover_limit": 49}, "at least max_cover=50"),
    ],
)
def test_settings_that_cannot_be_counted_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        NgramSettings(**options)


def test_bits_of_another_corpus_are_refused():
    corpus = build_ngram_ids(np.full((2, 16), 5), BOS, [1, 2, 3])
    with pytest.raises(UserError, match="3 sequences of 2 bytes"):
        count_ngrams(np.zeros((1, 3, 2), np.uint8), corpus, NgramSettings())
    with pytest.raises(UserError, match="expected uint8"):
        count_ngrams(np.zeros((1, 2, 2), np.int64), corpus, NgramSettings())
    options = NgramSettings(ngrams=[4], max_cover={4: 50})
    with pytest.raises(UserError, match="4-grams"):
        count_ngrams(np.zeros((1, 2, 2), np.uint8), corpus, options)
    with pytest.raises(UserError, match="expected integers"):
        build_ngram_ids(np.zeros((2, 2)), BOS, [1])


def test_pruning_longer_ngrams_does_not_touch_shorter_ones():
    """A token detector of many activations, all lengths pruned together."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 400, (200, 512)).astype(np.uint16)
    tokens[:, 0] = BOS
    tokens[rng.random(tokens.shape) < 0.05] = 399
    fired = np.isin(tokens, [7, 8, 399])
    assert fired.sum() >= 4096
    row = np.packbits(fired, axis=-1, bitorder="little")[None]
    corpus = build_ngram_ids(tokens, BOS, [1, 2, 3])
    exact = count_ngrams(row, corpus, NgramSettings())
    pruned = count_ngrams(row, corpus, NgramSettings(cover_limit=50, top_triggers=0))
    for n in (1, 2, 3):
        assert pruned[n].cover[0] == min(exact[n].cover[0], 51)
        assert pruned[n].detector[0] == exact[n].detector[0]
    assert exact[1].detector[0]
    assert exact[3].cover[0] > 50
