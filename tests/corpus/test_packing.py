"""Text -> sequences: against plain Python with the whole text in memory; shares; messages."""

import numpy as np
import pytest
from helpers.words import BOS, SEPARATOR, VOCAB, WORDS
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from neuronstats.corpus import packing as packing_module
from neuronstats.corpus import tokenizer as tokenizer_module
from neuronstats.corpus.corpus import allot, choose_sequences
from neuronstats.corpus.packing import tokenize
from neuronstats.errors import SettingsError, UserError

EXAMPLES = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def make(texts, words, **values):
    given = {"bos_id": BOS, "separator_id": SEPARATOR, "vocab_size": VOCAB} | values
    return tokenize(iter(texts), words, **given)


def foretell(texts, length, limit, packing, shares):
    """Cut each domain's whole text, then take whole sequences by share."""
    body = length - 1
    pieces: dict[str, list[list[int]]] = {}
    for domain in dict.fromkeys(name for name, _ in texts):
        documents = [[WORDS[w] for w in text.split()] for name, text in texts if name == domain]
        if packing == "concat":
            joined: list[int] = []
            for document in documents:
                joined += [SEPARATOR] * (len(joined) > 0) + document
            documents = [joined]
        pieces[domain] = [
            [BOS, *document[start : start + body]]
            for document in documents
            for start in range(0, len(document) - body + 1, body)
        ]
    if shares is not None:
        pieces = {name: pieces.get(name, []) for name in shares}
    weights = shares or {name: len(found) for name, found in pieces.items()}
    total = sum(len(found) for found in pieces.values())
    if limit is not None:
        total = limit if shares else min(limit, total)
        number = {}
        scale = sum(weights.values()) or 1
        for name, weight in weights.items():
            number[name] = total * weight // scale
        left = total - sum(number.values())
        order = list(weights)
        order.sort(key=lambda name: (-(total * weights[name] % scale), list(weights).index(name)))
        for name in order[:left]:
            number[name] += 1
        pieces = {name: found[: number[name]] for name, found in pieces.items()}
    return {name: found for name, found in pieces.items() if found}


texts_strategy = st.lists(
    st.tuples(
        st.sampled_from(["x", "y", "z"]),
        st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12).map(" ".join),
    ),
    max_size=20,
)


@given(
    texts=texts_strategy,
    length=st.integers(2, 9),
    limit=st.none() | st.integers(1, 12),
    packing=st.sampled_from(["concat", "document"]),
    shares=st.none() | st.dictionaries(st.sampled_from("xyz"), st.integers(0, 4), min_size=1),
    batch=st.sampled_from([1, 7, 40, 1 << 20]),
    piece=st.sampled_from([3, 8, 1 << 17]),
    rest=st.integers(0, 1),
)
@EXAMPLES
def test_corpus_is_what_was_foretold(
    words, texts, length, limit, packing, shares, batch, piece, rest
):
    assume(shares is None or (limit is not None and sum(shares.values()) > 0))
    values = {
        "sequence_length": length,
        "max_tokens": None if limit is None else limit * length + rest * (length - 1),
        "packing": packing,
        "shares": shares,
    }
    expected = foretell(texts, length, limit, packing, shares)
    quotas = allot(limit, shares) if shares and limit else {}
    absent = any(quota and name not in dict(texts) for name, quota in quotas.items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "PIECE_CHARACTERS", piece)
        patch.setattr(packing_module, "BATCH_CHARACTERS", batch)
        if absent or not expected:
            match = "there is no text of it" if absent else "too little text"
            with pytest.raises(UserError, match=match):
                make(texts, words, **values)
            return
        corpus = make(texts, words, **values)
    assert corpus.domains == tuple(expected)
    assert corpus.tokens.dtype == np.uint16
    assert corpus.tokens.tolist() == [row for found in expected.values() for row in found]
    assert [corpus.domains[index] for index in corpus.domain] == [
        name for name, found in expected.items() for _ in found
    ]
    assert corpus.row.tolist() == list(range(len(corpus.tokens)))
    if limit is not None:
        assert corpus.tokens.size <= values["max_tokens"]


def counted(texts, read):
    for number, pair in enumerate(texts, start=1):
        read.append(number)
        yield pair


def test_reading_ends_when_all_shared_domains_are_full(words, monkeypatch):
    monkeypatch.setattr(packing_module, "BATCH_CHARACTERS", 1)
    read: list[int] = []
    full: set[str] = set()
    texts = [("xyz"[number % 3], "a b c d") for number in range(300)]
    some = {"sequence_length": 5, "max_tokens": 20, "shares": {"y": 3, "x": 1}, "full": full}
    corpus = make(counted(texts, read), words, **some)
    assert corpus.domains == ("y", "x")
    assert np.bincount(corpus.domain).tolist() == [3, 1]
    assert len(read) < 15
    assert full == {"x", "y", "z"}  # z is wanted by nobody


def test_domains_that_nobody_wants_are_not_tokenised(words, monkeypatch):
    monkeypatch.setattr(packing_module, "BATCH_CHARACTERS", 1)
    texts = [("z", "h"), ("x", "a b"), ("y", "h"), ("x", "h h")]  # h is outside the vocabulary
    some = {"sequence_length": 3, "vocab_size": 9, "max_tokens": 3, "shares": {"x": 9, "y": 1}}
    corpus = make(texts, words, **some)
    assert corpus.tokens.tolist() == [[BOS, WORDS["a"], WORDS["b"]]]


def test_without_shares_the_whole_is_read_and_the_proportions_kept(words):
    read: list[int] = []
    texts = [("x" if number % 4 else "y", "a b c d") for number in range(400)]
    some = {"sequence_length": 5, "max_tokens": 40, "packing": "document"}
    corpus = make(counted(texts, read), words, **some)
    assert len(read) == 400
    assert corpus.domains == ("y", "x")
    assert np.bincount(corpus.domain).tolist() == [2, 6]


def test_a_domain_short_of_its_share_gives_what_it_has(words, caplog):
    texts = [("x", "a b c d a b c d"), ("y", "a b c d"), ("z", "a")]
    corpus = make(
        texts, words, sequence_length=5, max_tokens=50, shares={"x": 1, "y": 1}, packing="document"
    )
    assert np.bincount(corpus.domain).tolist() == [2, 1]
    assert "domain x has 2 whole sequences, fewer than its share of 5" in caplog.text
    assert "domain z is left out" in caplog.text


def test_a_share_rounded_to_nothing_is_no_missing_domain(words):
    corpus = make(
        [("x", "a b c d")], words, sequence_length=5, max_tokens=5, shares={"x": 9, "y": 1}
    )
    assert corpus.domains == ("x",)


def test_too_little_text_says_how_much_there_is(words):
    texts = [("x", "a b c"), ("y", "a"), ("x", "d")]
    with pytest.raises(UserError, match=r"takes 7 tokens of one domain.*\{'x': 4, 'y': 1\}"):
        make(texts, words, sequence_length=8)
    with pytest.raises(UserError, match=r"takes 4 tokens of one document.*\{'x': 4, 'y': 1\}"):
        make(texts, words, sequence_length=5, packing="document")
    with pytest.raises(SettingsError, match=r"data.max_tokens=7 is less than one sequence of 8"):
        make(texts, words, sequence_length=8, max_tokens=7)


def test_token_id_outside_the_vocabulary(words):
    with pytest.raises(
        UserError, match=r"document 2 \(y\): token id 9 \('h'\) is outside .* 0 to 8"
    ):
        make([("x", "a b"), ("y", "a h g")], words, sequence_length=2, vocab_size=9)


def test_share_of_an_unknown_domain_names_the_known(words):
    with pytest.raises(UserError, match=r"'w' has a share, but .* the domains are 'x', 'y'"):
        make([("x", "a b"), ("y", "a")], words, sequence_length=2, max_tokens=9, shares={"w": 1})


@given(
    total=st.integers(0, 10_000),
    weights=st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=9),
)
@EXAMPLES
def test_allotted_sequences_are_within_one_of_their_share(total, weights):
    assume(sum(weights) > 0)
    named = {str(number): weight for number, weight in enumerate(weights)}
    allotted = allot(total, named)
    assert sum(allotted.values()) == total
    for name, weight in named.items():
        assert abs(allotted[name] - total * weight / sum(weights)) < 1 + 1e-6
        assert weight or not allotted[name]


@pytest.mark.parametrize(
    ("total", "weights", "expected"),
    [
        (4, {"a": 1.0, "b": 1.4, "c": 1.6}, {"a": 1, "b": 1, "c": 2}),  # the largest remainder
        (5, {"b": 1, "a": 1, "c": 1}, {"b": 2, "a": 2, "c": 1}),  # equal ones: the first
        (1, {"a": 0.1, "b": 0.1}, {"a": 1, "b": 0}),
    ],
)
def test_what_is_left_goes_to_the_largest_remainder(total, weights, expected):
    assert allot(total, weights) == expected


def test_choose_sequences_without_a_limit_takes_all():
    assert choose_sequences({"a": 2, "b": 0, "c": 3}, None, None) == {"a": 2, "c": 3}
    assert choose_sequences({"a": 2, "c": 3}, None, {"c": 9.0}) == {"c": 3}
