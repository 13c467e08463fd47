"""The oracle on a case small enough to count by hand."""

import math

import numpy as np
import pytest
from helpers import oracle, oracle_ngrams, oracle_updates

BOS = 2

A, B, C, D = 5, 6, 7, 8


def bits_of(*rows: str) -> np.ndarray:
    """One layer of neurons, a string each: "x" activated, "." not, "|" between sequences."""
    return np.array([[[mark == "x" for mark in part] for part in row.split("|")] for row in rows])


# By hand: one corpus of two sequences.
#            BOS A  B  A  B | BOS B  A  B  C
TOKENS = [[BOS, A, B, A, B], [BOS, B, A, B, C]]

BITS = bits_of(
    ".....|.....",  # 0: dead
    "xxxxx|xxxxx",  # 1: always
    "x....|x....",  # 2: on BOS alone
    ".x.x.|..x..",  # 3: on A
    ".x...|..x..",  # 4: on A, two times of three
    "..x.x|...x.",  # 5: on B after A
    ".....|....x",  # 6: on C
)


@pytest.fixture(scope="module")
def rows():
    return oracle.tables([BITS], TOKENS, ["wiki", "code"], bos=BOS)


def column(rows, name):
    return [row[name] for row in rows["neurons"]]


def test_frequencies_by_hand(rows):
    assert column(rows, "tokens") == [10] * 7
    assert column(rows, "activations") == [0, 10, 2, 3, 2, 3, 1]
    assert column(rows, "frequency") == [0, 1, 0.2, 0.3, 0.2, 0.3, 0.1]
    assert column(rows, "dead") == [True] + [False] * 6


def test_domains_by_hand(rows):
    found = [
        (row["neuron"], row["domain"], row["tokens"], row["activations"], row["frequency"])
        for row in rows["domains"]
    ]
    assert found[6:12] == [
        (3, "code", 5, 1, 0.2),
        (3, "wiki", 5, 2, 0.4),
        (4, "code", 5, 1, 0.2),
        (4, "wiki", 5, 1, 0.2),
        (5, "code", 5, 1, 0.2),
        (5, "wiki", 5, 2, 0.4),
    ]


def test_occurrences_by_hand():
    counted = {n: oracle_ngrams.count_ngrams(TOKENS, BOS, n) for n in (1, 2, 3, 4)}
    assert counted[1] == {(A,): 3, (B,): 4, (C,): 1}
    assert counted[2] == {(A, B): 3, (B, A): 2, (B, C): 1}
    assert counted[3] == {(A, B, A): 1, (B, A, B): 2, (A, B, C): 1}
    assert counted[4] == {(A, B, A, B): 1, (B, A, B, C): 1}


def test_an_ngram_with_bos_inside_does_not_count():
    assert oracle_ngrams.count_ngrams([[A, BOS, B, C]], BOS, 1) == {(A,): 1, (B,): 1, (C,): 1}
    assert oracle_ngrams.count_ngrams([[A, BOS, B, C]], BOS, 2) == {(B, C): 1}
    assert oracle_ngrams.count_ngrams([[A, BOS, B, C]], BOS, 3) == {}


def test_cover_and_detectors_by_hand(rows):
    # neuron 1 takes all of 8 tokens, 6 bigrams, 4 trigrams: no cover of fewer
    assert column(rows, "cover_1") == [0, 3, 0, 1, 1, 1, 1]
    assert column(rows, "cover_2") == [0, 3, 0, 1, 1, 1, 1]
    assert column(rows, "cover_3") == [0, 3, 0, 1, 0, 1, 1]
    # neuron 4: A in 2 of 3 occurrences; (B, A) in 1 of 2. neuron 5: B in 3 of 4; (A, B) in all
    assert column(rows, "detector_1") == [False, True, False, True, False, False, True]
    assert column(rows, "detector_2") == [False, True, False, True, False, True, True]
    assert column(rows, "detector_3") == [False, True, False, True, False, True, True]


def test_ngrams_by_hand(rows):
    neuron_1 = [
        (r["n"], tuple(r["token_ids"]), r["occurrences"], r["activations"], r["rate"], r["share"])
        for r in rows["ngrams"]
        if r["neuron"] == 1
    ]
    assert neuron_1 == [
        (1, (B,), 4, 4, 1.0, 4 / 8),
        (1, (A,), 3, 3, 1.0, 3 / 8),
        (1, (C,), 1, 1, 1.0, 1 / 8),
        (2, (A, B), 3, 3, 1.0, 3 / 6),
        (2, (B, A), 2, 2, 1.0, 2 / 6),
        (2, (B, C), 1, 1, 1.0, 1 / 6),
        (3, (B, A, B), 2, 2, 1.0, 2 / 4),
        (3, (A, B, A), 1, 1, 1.0, 1 / 4),  # a tie with (A, B, C): the smaller ids first
        (3, (A, B, C), 1, 1, 1.0, 1 / 4),
    ]
    assert {r["neuron"] for r in rows["ngrams"]} == {1, 3, 5, 6}
    triggers = [
        (r["n"], tuple(r["token_ids"]), r["rate"], r["share"])
        for r in rows["triggers"]
        if r["neuron"] == 4
    ]
    assert triggers == [(1, (A,), 2 / 3, 1.0), (2, (B, A), 1 / 2, 1.0)]


def test_layer_row_by_hand(rows):
    (layer,) = rows["layers"]
    assert layer["neurons"] == 7
    assert layer["dead"] == 1
    assert layer["dead_share"] == 1 / 7
    assert layer["alive_frequency"] == pytest.approx(21 / 60)
    assert [layer[f"detectors_{n}"] for n in (1, 2, 3)] == [3, 4, 4]
    assert [layer[f"detected_{n}"] for n in (1, 2, 3)] == [3, 3, 3]
    assert layer["suppressing_share"] is None


def test_new_ngrams_by_hand():
    tokens = [[BOS, A, B, C, D]]
    on = {A: ".x...", B: "..x..", C: "...x.", D: "....x"}
    layers = [[A, B], [B, C], [A, D], [A, D]]
    bits = [bits_of(*(on[token] for token in layer)) for layer in layers]
    rows = oracle.tables(bits, tokens, ["x"], bos=BOS)["layers"]
    names = ("detected_1", "detected_cumulative_1", "new_overall_1", "new_to_previous_1")
    assert [tuple(row[name] for name in names) for row in rows] == [
        (2, 2, 2, 2),
        (2, 3, 1, 1),
        (2, 4, 1, 2),
        (2, 4, 0, 0),
    ]


def test_layers_without_bitmaps_have_no_ngrams():
    rows = oracle.tables([BITS, BITS], TOKENS, ["x", "x"], bos=BOS, bitmap_layers=1)
    for row in rows["neurons"]:
        assert (row["cover_2"] is None) == (row["detector_3"] is None) == (row["layer"] == 1)
    assert {row["layer"] for row in rows["ngrams"] + rows["triggers"]} == {0}
    assert [row["detectors_1"] for row in rows["layers"]] == [3, None]
    assert [row["new_overall_2"] for row in rows["layers"]] == [3, None]
    assert [row["dead"] for row in rows["layers"]] == [1, 1]


def test_projection_by_hand():
    embedding = [[1.0, 0.0], [0.0, 1.0], [2.0, -1.0]]
    assert oracle_updates.project([3.0, 4.0], embedding) == [3.0, 4.0, 2.0]
    assert oracle_updates.project([3.0, 4.0], embedding, centred=True) == [0.0, 1.0, -1.0]
    assert oracle_updates.project(
        [1.0, 0.0, 1.0], embedding, [[1.0, 0.0, 2.0], [0.0, 1.0, 4.0]]
    ) == [
        3.0,
        4.0,
        2.0,
    ]


def test_suppression_by_hand():
    tokens = [[BOS, 0, 1, 0, 3]]
    bits = bits_of(".xxx.", "..x..", ".x...", "....x")  # 0 and 1; 1; 0 half of the time; 3
    embedding = np.array([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0], [1.0, 1.0]])
    fc2 = np.array([[1.0, 1.0, -1.0, 0.5], [-3.0, 1.0, 1.0, -0.5]])
    rows = oracle.tables([bits], tokens, ["x"], bos=BOS, embedding=embedding, fc2=[fc2])
    assert column(rows, "detector_1") == [True, True, False, True]
    # the mean over detected tokens, each once, however often it occurs: (1 - 3) / 2
    assert column(rows, "trigger_projection") == [-1.0, 1.0, None, 0.0]
    assert column(rows, "suppresses") == [True, False, None, False]
    assert rows["layers"][0]["suppressing_share"] == 1 / 3


def test_position_information_by_hand():
    half = bits_of("xx..|xx..")[0].tolist()
    assert oracle.position_information(half) == pytest.approx(math.log(2))
    assert oracle.position_information(bits_of("xxxx|xxxx")[0].tolist()) == 0
    assert oracle.position_information(bits_of("....|....")[0].tolist()) == 0
    assert oracle.position_information(bits_of("xx..|..xx")[0].tolist()) == 0  # 1/2 everywhere
    # f = 1/2, 0: mean 1/4; ((1/2 ln 2 + 1/2 ln 2/3) + ln 4/3) / 2
    expected = (0.5 * math.log(2) + 0.5 * math.log(2 / 3) + math.log(4 / 3)) / 2
    assert oracle.position_information(bits_of("x.|..")[0].tolist()) == pytest.approx(expected)
