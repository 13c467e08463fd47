"""The thresholds of covers and detectors by hand, and pruning, which changes none of them."""

import numpy as np
import pytest
from helpers.ngrams import BOS, pack, random_case

from neuronstats.stats import ngram_rules
from neuronstats.stats.ngram_counts import count_ngrams
from neuronstats.stats.ngram_ids import build_ngram_ids
from neuronstats.stats.settings import NgramSettings


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
