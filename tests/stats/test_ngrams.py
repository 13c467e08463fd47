"""Counts of n-grams, covers and detectors: against the oracle, whatever the split and order."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from helpers.ngrams import BOS, assert_equals_oracle, cases, ngrams_of, pack, random_case
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronstats.errors import UserError
from neuronstats.stats import ngram_ids, ngram_kernels, ngram_rules
from neuronstats.stats.ngram_counts import count_ngrams, projected_bytes
from neuronstats.stats.ngram_ids import build_ngram_ids
from neuronstats.stats.settings import NgramSettings


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


def test_counts_above_the_tally_are_sorted():
    # Token 3 + i occurs TALLY + i times, all of them activated: every count is a large one.
    tokens = np.repeat(np.arange(3, 13), ngram_rules.TALLY + np.arange(10))
    tokens = np.concatenate([tokens, tokens[-ngram_rules.TALLY - 9 :] + 1])  # a tie: 12 and 13
    active = np.ones((1, 1, len(tokens)), bool)
    options = NgramSettings(ngrams=[1], max_cover={1: 20}, cover_share=0.5)
    assert_equals_oracle(tokens[None], active, options)


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
