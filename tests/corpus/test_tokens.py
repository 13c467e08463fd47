"""Corpus: from documents and from arrays. Run: pytest tests/test_tokens.py"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from neuronstats.corpus import corpus as corpus_module
from neuronstats.corpus import packing as tokens_module
from neuronstats.corpus import tokenizer as tokenizer_module
from neuronstats.corpus.corpus import allot, choose_sequences
from neuronstats.corpus.packing import Corpus, load_npy, load_tokenizer, read_corpus, tokenize
from neuronstats.corpus.settings import DataSettings
from neuronstats.errors import SettingsError, UserError

WORDS = {"</s>": 0, "<unk>": 1} | {letter: 2 + number for number, letter in enumerate("abcdefgh")}
BOS, SEPARATOR, VOCAB = 0, 0, len(WORDS)
EXAMPLES = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))

Documents = list[tuple[str, str]]


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """One token for each letter between spaces: easy to foretell."""
    inside = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    inside.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inside, bos_token="</s>", eos_token="</s>")


@pytest.fixture(scope="module")
def bytes_bpe() -> PreTrainedTokenizerFast:
    """Byte-level BPE with the special tokens, start and cutting of OPT's."""
    inside = Tokenizer(models.BPE())
    inside.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inside.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inside.train_from_iterator(["the theme of these theses is there"] * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inside, bos_token="</s>", eos_token="</s>", pad_token="<pad>"
    )


def make(texts: Documents, words: PreTrainedTokenizerFast, **values: object) -> Corpus:
    given = {"bos_id": BOS, "separator_id": SEPARATOR, "vocab_size": VOCAB} | values
    return tokenize(iter(texts), words, **given)


# --- the oracle: plain Python, the whole text in memory -------------------------------------------


def foretell(
    texts: Documents, length: int, limit: int | None, packing: str, shares: dict[str, int] | None
) -> dict[str, list[list[int]]]:
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
    words: PreTrainedTokenizerFast,
    texts: Documents,
    length: int,
    limit: int | None,
    packing: str,
    shares: dict[str, int] | None,
    batch: int,
    piece: int,
    rest: int,
) -> None:
    assume(shares is None or (limit is not None and sum(shares.values()) > 0))
    values = {
        "sequence_length": length,
        "max_tokens": None if limit is None else limit * length + rest * (length - 1),
        "packing": packing,
        "shares": shares,
        "batch_characters": batch,
    }
    expected = foretell(texts, length, limit, packing, shares)
    quotas = allot(limit, shares) if shares and limit else {}
    absent = any(quota and name not in dict(texts) for name, quota in quotas.items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "PIECE_CHARACTERS", piece)
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


@given(texts=texts_strategy, length=st.integers(2, 9))
@EXAMPLES
def test_concat_without_first_tokens_is_a_prefix_of_the_joined_text(
    words: PreTrainedTokenizerFast, texts: Documents, length: int
) -> None:
    joined = {
        name: " </s> ".join(text for domain, text in texts if domain == name).split()
        for name in dict.fromkeys(domain for domain, _ in texts)
    }
    assume(any(len(stream) >= length - 1 for stream in joined.values()))
    corpus = make(texts, words, sequence_length=length)
    assert (corpus.tokens[:, 0] == BOS).all()
    for index, name in enumerate(corpus.domains):
        content = corpus.tokens[corpus.domain == index][:, 1:].ravel().tolist()
        assert content == [WORDS[word] for word in joined[name]][: len(content)]
        assert len(joined[name]) - len(content) < length - 1


# --- reading: how far, and how much is held -------------------------------------------------------


def counted(texts: Documents, read: list[int]) -> Iterator[tuple[str, str]]:
    for number, pair in enumerate(texts, start=1):
        read.append(number)
        yield pair


def test_reading_ends_when_all_shared_domains_are_full(words: PreTrainedTokenizerFast) -> None:
    read: list[int] = []
    full: set[str] = set()
    texts = [("xyz"[number % 3], "a b c d") for number in range(300)]
    corpus = tokenize(
        counted(texts, read),
        words,
        bos_id=BOS,
        separator_id=SEPARATOR,
        vocab_size=VOCAB,
        sequence_length=5,
        max_tokens=20,
        shares={"y": 3, "x": 1},
        full=full,
        batch_characters=1,
    )
    assert corpus.domains == ("y", "x")
    assert np.bincount(corpus.domain).tolist() == [3, 1]
    assert len(read) < 15
    assert full == {"x", "y", "z"}  # z is wanted by nobody


def test_domains_that_nobody_wants_are_not_tokenised(words: PreTrainedTokenizerFast) -> None:
    texts = [("z", "h"), ("x", "a b"), ("y", "h"), ("x", "h h")]  # h is outside the vocabulary
    corpus = make(
        texts,
        words,
        sequence_length=3,
        vocab_size=9,
        max_tokens=3,
        shares={"x": 9, "y": 1},
        batch_characters=1,
    )
    assert corpus.tokens.tolist() == [[BOS, WORDS["a"], WORDS["b"]]]


def test_without_shares_the_whole_is_read_and_the_proportions_kept(
    words: PreTrainedTokenizerFast,
) -> None:
    read: list[int] = []
    texts = [("x" if number % 4 else "y", "a b c d") for number in range(400)]
    corpus = tokenize(
        counted(texts, read),
        words,
        bos_id=BOS,
        separator_id=SEPARATOR,
        vocab_size=VOCAB,
        sequence_length=5,
        max_tokens=40,
        packing="document",
    )
    assert len(read) == 400
    assert corpus.domains == ("y", "x")
    assert np.bincount(corpus.domain).tolist() == [2, 6]


def test_a_domain_short_of_its_share_gives_what_it_has(
    words: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [("x", "a b c d a b c d"), ("y", "a b c d"), ("z", "a")]
    corpus = make(
        texts, words, sequence_length=5, max_tokens=50, shares={"x": 1, "y": 1}, packing="document"
    )
    assert np.bincount(corpus.domain).tolist() == [2, 1]
    assert "domain x has 2 whole sequences, fewer than its share of 5" in caplog.text
    assert "domain z is left out" in caplog.text


def test_a_share_rounded_to_nothing_is_no_missing_domain(words: PreTrainedTokenizerFast) -> None:
    corpus = make(
        [("x", "a b c d")], words, sequence_length=5, max_tokens=5, shares={"x": 9, "y": 1}
    )
    assert corpus.domains == ("x",)


# --- messages -------------------------------------------------------------------------------------


def test_too_little_text_says_how_much_there_is(words: PreTrainedTokenizerFast) -> None:
    texts = [("x", "a b c"), ("y", "a"), ("x", "d")]
    with pytest.raises(UserError, match=r"takes 7 tokens of one domain.*\{'x': 4, 'y': 1\}"):
        make(texts, words, sequence_length=8)
    with pytest.raises(UserError, match=r"takes 4 tokens of one document.*\{'x': 4, 'y': 1\}"):
        make(texts, words, sequence_length=5, packing="document")
    with pytest.raises(SettingsError, match=r"data.max_tokens=7 is less than one sequence of 8"):
        make(texts, words, sequence_length=8, max_tokens=7)


def test_token_id_outside_the_vocabulary(words: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        UserError, match=r"document 2 \(y\): token id 9 \('h'\) is outside .* 0 to 8"
    ):
        make([("x", "a b"), ("y", "a h g")], words, sequence_length=2, vocab_size=9)


def test_share_of_an_unknown_domain_names_the_known(words: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"'w' has a share, but .* the domains are 'x', 'y'"):
        make([("x", "a b"), ("y", "a")], words, sequence_length=2, max_tokens=9, shares={"w": 1})


# --- the tokenizer --------------------------------------------------------------------------------


def test_special_tokens_in_the_text_are_plain_text(bytes_bpe: PreTrainedTokenizerFast) -> None:
    text = "a</s>b <pad> <s>"
    num_characters = len(bytes_bpe(text, split_special_tokens=True).input_ids)
    assert 2 in bytes_bpe(text).input_ids  # what must not happen; the call before is forgotten
    corpus = tokenize(
        [("x", text)],
        bytes_bpe,
        bos_id=2,
        separator_id=2,
        vocab_size=400,
        sequence_length=1 + num_characters,
    )
    content = corpus.tokens[0, 1:].tolist()
    assert bytes_bpe.decode(content) == text
    assert not {0, 1, 2} & set(content)
    assert 2 in bytes_bpe(text).input_ids  # and the tokenizer is as it was


def test_a_tokenizers_own_cutting_and_padding_are_left_alone(
    bytes_bpe: PreTrainedTokenizerFast,
) -> None:
    inside = bytes_bpe.backend_tokenizer
    inside.enable_truncation(max_length=4)
    inside.enable_padding(length=6, pad_id=1)
    corpus = tokenize(
        [("x", "the theme of these theses is there")],
        bytes_bpe,
        bos_id=2,
        separator_id=2,
        vocab_size=400,
        sequence_length=8,
    )
    assert bytes_bpe.decode(corpus.tokens[0, 1:]) == "the theme of these theses is there"
    assert (inside.truncation["max_length"], inside.padding["length"]) == (4, 6)
    inside.no_truncation()
    inside.no_padding()


@given(
    parts=st.lists(
        st.sampled_from(["the", "theme", "ß", "x1", "don't", " ", " ", "  ", "\n", " \n", ".", ""]),
        max_size=60,
    ),
    piece=st.integers(4, 20),
)
@EXAMPLES
def test_pieces_of_a_long_document_give_the_same_tokens(
    bytes_bpe: PreTrainedTokenizerFast, parts: list[str], piece: int
) -> None:
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "PIECE_CHARACTERS", piece)
        pieces = list(tokenizer_module.cut_document("x", 1, text))
        encoded = list(tokenizer_module.encode(pieces, bytes_bpe, 400, 1))
    assert "".join(piece.text for piece in pieces) == text
    assert all(0 < len(part.text) <= piece for part in pieces)
    assert [part.last for part in pieces] == [False] * (len(pieces) - 1) + [True] * bool(pieces)
    starts = [part.text[:2] for part in pieces[1:]]
    ends = [part.text[-1] for part in pieces[:-1]]
    lone = [a[0] == " " and not (a[1:] or "x").isspace() for a in starts]
    assume(all(lone) and not any(end.isspace() for end in ends))
    whole = bytes_bpe(text, add_special_tokens=False).input_ids
    assert [token for _, ids in encoded for token in ids.tolist()] == whole


def test_a_piece_without_a_lone_space_is_cut_at_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", 4)
    for text, expected in [
        ("abcdefghij", ["abcd", "efgh", "ij"]),
        ("ab  cd e f", ["ab  ", "cd", " e f"]),
        (" abc def", [" abc", " def"]),
        ("ab ", ["ab "]),
        ("abc\n d e", ["abc\n", " d e"]),
    ]:
        found = [piece.text for piece in tokenizer_module.cut_document("x", 1, text)]
        assert found == expected


def test_load_tokenizer(tmp_path: Path, bytes_bpe: PreTrainedTokenizerFast) -> None:
    bytes_bpe.save_pretrained(tmp_path / "one")
    loaded = load_tokenizer(str(tmp_path / "one"))
    assert loaded.get_vocab() == bytes_bpe.get_vocab()


def test_load_tokenizer_from_the_files_that_opts_repositories_have(
    tmp_path: Path, bytes_bpe: PreTrainedTokenizerFast
) -> None:
    model = json.loads(bytes_bpe.backend_tokenizer.to_str())["model"]
    merges = "".join(" ".join(pair) + "\n" for pair in model["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "</s>"})
    )
    text = "the theme</s> of\n\n these"
    values = {"bos_id": 2, "separator_id": 2, "vocab_size": 400, "sequence_length": 8}
    loaded = tokenize([("x", text)], load_tokenizer(str(tmp_path)), **values)
    assert (loaded.tokens == tokenize([("x", text)], bytes_bpe, **values).tokens).all()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": '{"model_type": "opt"}'}, "no tokenizer in this folder"),
        ({"vocab.json": "{}", "config.json": '{"model_type": "opt"}'}, "no tokenizer in this"),
        ({"tokenizer.json": "{"}, "its tokenizer cannot be loaded"),
        ({"tokenizer.json": '{"version": "1.0"}'}, "its tokenizer cannot be loaded"),
        (
            {"vocab.json": "{}", "merges.txt": "", "config.json": '{"model_type": "opt"}'},
            "has no fast version or no vocabulary",
        ),
    ],
)
def test_folder_without_a_tokenizer(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(tmp_path))


def test_code_of_a_model_repository_is_not_run(
    tmp_path: Path, bytes_bpe: PreTrainedTokenizerFast
) -> None:
    bytes_bpe.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}, "tokenizer_class": "Evil"}
    path.write_text(json.dumps(config))
    trace = tmp_path / "was_run"
    (tmp_path / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass Evil: pass\n")
    with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path))
    assert not trace.exists()


# --- shares ---------------------------------------------------------------------------------------


@given(
    total=st.integers(0, 10_000),
    weights=st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=9),
)
@EXAMPLES
def test_allotted_sequences_are_within_one_of_their_share(total: int, weights: list[float]) -> None:
    assume(sum(weights) > 0)
    named = {str(number): weight for number, weight in enumerate(weights)}
    allotted = allot(total, named)
    assert sum(allotted.values()) == total
    for name, weight in named.items():
        assert abs(allotted[name] - total * weight / sum(weights)) < 1 + 1e-6
        assert weight or not allotted[name]


def test_the_largest_remainder_gets_what_is_left() -> None:
    assert allot(4, {"a": 1.0, "b": 1.4, "c": 1.6}) == {"a": 1, "b": 1, "c": 2}


def test_equal_remainders_go_to_the_first() -> None:
    assert allot(5, {"b": 1, "a": 1, "c": 1}) == {"b": 2, "a": 2, "c": 1}
    assert allot(1, {"a": 0.1, "b": 0.1}) == {"a": 1, "b": 0}


def test_choose_sequences_without_a_limit_takes_all() -> None:
    assert choose_sequences({"a": 2, "b": 0, "c": 3}, None, None) == {"a": 2, "c": 3}
    assert choose_sequences({"a": 2, "c": 3}, None, {"c": 9.0}) == {"c": 3}


# --- arrays ---------------------------------------------------------------------------------------


def save(path: Path, array: object, domains: str | None = None) -> Path:
    np.save(path, np.asarray(array))
    if domains is not None:
        path.with_name(path.stem + ".domains.txt").write_text(domains, encoding="utf-8")
    return path


@given(
    domains=st.lists(st.sampled_from("xyz"), min_size=1, max_size=20),
    length=st.integers(1, 9),
    limit=st.none() | st.integers(1, 12),
    shares=st.none() | st.dictionaries(st.sampled_from("xyz"), st.integers(0, 4), min_size=1),
    dtype=st.sampled_from(["u1", "<i2", ">i4", "i8", "u8"]),
    order=st.sampled_from("CF"),
    block=st.sampled_from([1, 10, 1 << 22]),
)
@EXAMPLES
def test_array_is_what_was_foretold(
    tmp_path: Path,
    domains: list[str],
    length: int,
    limit: int | None,
    shares: dict[str, int] | None,
    dtype: str,
    order: str,
    block: int,
) -> None:
    assume(shares is None or (limit is not None and sum(shares.values()) > 0))
    array = np.random.default_rng(0).integers(0, 100, (len(domains), length)).astype(dtype)
    save(tmp_path / "a.npy", np.asarray(array, order=order), "\n".join(domains) + "\n")
    max_tokens = None if limit is None else limit * length
    found = Counter(domains)
    values = {"vocab_size": 100, "max_positions": 9, "max_tokens": max_tokens, "shares": shares}
    quotas = allot(limit, shares) if shares and limit else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "BLOCK_TOKENS", block)
        if any(quota and name not in found for name, quota in quotas.items()):
            with pytest.raises(UserError, match="there is no text of it"):
                load_npy(tmp_path / "a.npy", **values)
            return
        corpus = load_npy(tmp_path / "a.npy", **values)
    if quotas:
        number = {name: min(quota, found[name]) for name, quota in quotas.items()}
    else:
        total = len(domains) if limit is None else min(limit, len(domains))
        number = allot(total, dict(found))
    expected = [
        row
        for name in number
        for row in [row for row, domain in enumerate(domains) if domain == name][: number[name]]
    ]
    assert corpus.row.tolist() == expected
    assert corpus.tokens.tolist() == array[expected].tolist()
    assert [corpus.domains[index] for index in corpus.domain] == [domains[row] for row in expected]
    assert isinstance(corpus.tokens, np.ndarray)
    assert not isinstance(corpus.tokens, np.memmap)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3)), r"expected integers \[sequence, position\], found float64 of shape"),
        (np.zeros((2, 3), bool), r"found bool of shape \[2, 3\]"),
        (np.zeros(4, int), r"found int64 of shape \[4\]"),
        (np.zeros((2, 3, 1), int), r"found int64 of shape \[2, 3, 1\]"),
        (np.array(7), r"found int64 of shape \[\]"),
        (np.zeros((0, 3), int), r"shape \[0, 3\] holds not one sequence"),
        (np.zeros((3, 0), int), r"shape \[3, 0\] holds not one sequence"),
        (np.array([["a"]]), r"found <U1 of shape"),
        (np.zeros((2, 9), int), r"sequences of 9 tokens are longer than the model's 8 positions"),
        (np.array([[1, 2], [3, 100]]), r"token id 100 at \[1, 1\] is outside .* 0 to 99"),
        (np.array([[1, 2], [-1, 100]]), r"token id -1 at \[1, 0\] is outside"),
        (np.array([[2**64 - 1]], np.uint64), r"token id 18446744073709551615 at \[0, 0\]"),
    ],
)
def test_wrong_array(tmp_path: Path, array: np.ndarray, message: str) -> None:
    path = save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=rf"a\.npy: .*{message}"):
        load_npy(path, vocab_size=100, max_positions=8)


def test_wrong_token_id_names_the_row_of_the_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.zeros((6, 2), np.int32)
    array[4, 1] = 70_000
    path = save(tmp_path / "a.npy", array, "x\ny\nx\ny\nx\ny")
    monkeypatch.setattr(corpus_module, "BLOCK_TOKENS", 4)
    with pytest.raises(UserError, match=r"token id 70000 at \[4, 1\]"):
        load_npy(path, vocab_size=65_536, max_positions=8)
    bytes_only = save(tmp_path / "b.npy", np.full((1, 2), 255, np.uint8))
    narrow = load_npy(bytes_only, vocab_size=65_536, max_positions=8)
    assert (narrow.tokens.dtype, narrow.tokens.tolist()) == (np.uint16, [[255, 255]])
    wide = load_npy(path, vocab_size=70_001, max_positions=8)
    assert (wide.tokens.dtype, wide.tokens.max()) == (np.uint32, 70_000)


def test_broken_array_files(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.npy", np.zeros((100, 8), int)).read_bytes()
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for content in [whole[:-1], whole[:200], whole[:9], objects.read_bytes()]:
        path = tmp_path / "broken.npy"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.npy: broken, cut short or of objects"):
            load_npy(path, vocab_size=10, max_positions=8)
    archive = tmp_path / "archive.npy"
    with archive.open("wb") as file:
        np.savez(file, a=np.zeros((1, 2), int))
    for content in [b"", b"no array at all", archive.read_bytes()]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.npy: not an \.npy file; save the array"):
            load_npy(path, vocab_size=10, max_positions=8)
    for missing in [tmp_path, tmp_path / "none.npy"]:
        with pytest.raises(UserError, match="there is no such file"):
            load_npy(missing, vocab_size=10, max_positions=8)


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        (b"x\n", r"a\.domains\.txt: 1 lines for 3 sequences"),
        (b"x\ny\nz\nx", "4 lines for 3 sequences"),
        (b"x\n\nz\n", "line 2 is empty"),
        (b"x\ny\nz\n\n", "line 4 is empty"),
        (b"", "line 1 is empty"),
        (b"x\n\xff\nz\n", "cannot be read as UTF-8"),
    ],
)
def test_wrong_domains(tmp_path: Path, domains: bytes, message: str) -> None:
    path = save(tmp_path / "a.npy", np.zeros((3, 2), int))
    (tmp_path / "a.domains.txt").write_bytes(domains)
    with pytest.raises(UserError, match=message):
        load_npy(path, vocab_size=10, max_positions=8)


def test_domains_of_any_lines(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", np.arange(6).reshape(3, 2))
    (tmp_path / "a.domains.txt").write_bytes("\ufeffé z\r\nb\x0b \r\né z\r\n".encode())
    corpus = load_npy(path, vocab_size=10, max_positions=8)
    assert corpus.domains == ("é z", "b")
    assert corpus.row.tolist() == [0, 2, 1]
    (tmp_path / "a.domains.txt").unlink()
    assert load_npy(path, vocab_size=10, max_positions=8).domains == ("text",)


def test_array_with_too_small_a_budget(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", np.zeros((3, 8), int))
    with pytest.raises(SettingsError, match=r"max_tokens=7 is less than one sequence of 8"):
        load_npy(path, vocab_size=10, max_positions=8, max_tokens=7)


# --- the corpus as a whole ------------------------------------------------------------------------


def corpus_of(**changes: object) -> Corpus:
    values = {
        "tokens": np.arange(6, dtype=np.uint16).reshape(3, 2),
        "domain": np.array([0, 0, 1], np.int16),
        "row": np.arange(3),
        "domains": ("x", "y"),
    }
    return Corpus(**(values | changes))


def test_fingerprint_knows_tokens_shape_and_domains_only(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = corpus_of().tokens
    same = [
        corpus_of(),
        corpus_of(tokens=tokens.astype(np.uint32)),
        corpus_of(tokens=np.asfortranarray(tokens)),
        corpus_of(row=np.array([5, 7, 6])),
    ]
    different = [
        corpus_of(tokens=tokens[::-1].copy()),
        corpus_of(tokens=tokens + np.uint16(1)),
        corpus_of(tokens=tokens[:, :1].copy()),
        corpus_of(domain=np.array([0, 1, 1], np.int16)),
        corpus_of(domains=("x", "z")),
    ]
    monkeypatch.setattr(corpus_module, "BLOCK_TOKENS", 1)
    assert len({corpus.fingerprint for corpus in same}) == 1
    assert len({corpus.fingerprint for corpus in [*same, *different]}) == 1 + len(different)
    assert len(same[0].fingerprint) == 32
    monkeypatch.setattr(corpus_module, "BLOCK_TOKENS", 1 << 22)
    assert corpus_of().fingerprint == same[0].fingerprint


def read(data: DataSettings, tokenizer: Path, **changes: int) -> Corpus:
    model = {"bos_id": 2, "separator_id": 2, "vocab_size": 400, "max_positions": 8} | changes
    return read_corpus(data, tokenizer=str(tokenizer), revision=None, **model)


def test_read_corpus_from_text_and_tokens(
    tmp_path: Path, bytes_bpe: PreTrainedTokenizerFast
) -> None:
    bytes_bpe.save_pretrained(tmp_path / "model")
    (tmp_path / "a.txt").write_text("the theme of these theses is there " * 9)
    local = DataSettings(name="local", kind="local", path=str(tmp_path / "a.txt"))
    corpus = read(local, tmp_path / "model")
    assert corpus.tokens.shape[1] == 8
    np.save(tmp_path / "a.npy", corpus.tokens)
    tokens = DataSettings(name="tokens", kind="tokens", path=str(tmp_path / "a.npy"))
    assert read(tokens, tmp_path / "no tokenizer").fingerprint == corpus.fingerprint
    tokens.sequence_length = 8
    assert read(tokens, tmp_path / "no tokenizer").fingerprint == corpus.fingerprint
    tokens.sequence_length = 7
    with pytest.raises(SettingsError, match=r"sequence_length=7, but the array's .* have 8"):
        read(tokens, tmp_path)
    local.sequence_length = 9
    with pytest.raises(SettingsError, match=r"sequence_length=9 is longer than .* 8 positions"):
        read(local, tmp_path / "model")
    local.sequence_length, local.max_tokens = 5, 12
    assert read(local, tmp_path / "model").tokens.shape == (2, 5)


def test_little_of_much_text_is_not_tokenised_as_a_whole(
    tmp_path: Path, bytes_bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_bpe.save_pretrained(tmp_path / "model")
    rows = [{"text": "the theme of these theses", "domain": "xxy"[n % 3]} for n in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSettings(
        name="local", kind="local", path=str(tmp_path / "a.jsonl"), domain="domain", max_tokens=48
    )
    encoded: list[str] = []

    def spy(pieces: Iterator[tokenizer_module.Piece], *rest: object) -> Iterator[object]:
        for piece, ids in tokenizer_module.encode(pieces, *rest):
            encoded.append(piece.text)
            yield piece, ids

    monkeypatch.setattr(tokens_module, "encode", spy)
    one_by_one = tokens_module.tokenize.__kwdefaults__ | {"batch_characters": 1}
    monkeypatch.setattr(tokens_module.tokenize, "__kwdefaults__", one_by_one)
    corpus = read(data, tmp_path / "model")
    assert dict(zip(corpus.domains, np.bincount(corpus.domain), strict=True)) == {"x": 4, "y": 2}
    assert len(encoded) < 30
    data.max_tokens = 300 * 25 // 16 // 8 * 8 + 8
    read(data, tmp_path / "model")
    assert len(encoded) > 300


def test_embedded_sample_fills_the_embedded_models_positions() -> None:
    model = Path(corpus_module.__file__).parents[1] / "embedded" / "opt-mini"
    config = json.loads((model / "config.json").read_text())
    corpus = read(
        DataSettings(domain="domain", max_tokens=64 * 512),
        model,
        bos_id=config["bos_token_id"],
        separator_id=config["eos_token_id"],
        vocab_size=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
    )
    assert corpus.tokens.shape == (64, config["max_position_embeddings"])
    assert (corpus.tokens[:, 0] == config["bos_token_id"]).all()
    assert len(corpus.domains) > 1
