"""Arrays of token ids, their domains, fingerprints; read_corpus from either."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from neuronstats.corpus import corpus as corpus_module
from neuronstats.corpus import packing as tokens_module
from neuronstats.corpus import tokenizer as tokenizer_module
from neuronstats.corpus.corpus import Corpus, allot, load_npy
from neuronstats.corpus.packing import read_corpus
from neuronstats.corpus.settings import DataSettings
from neuronstats.errors import SettingsError, UserError

EXAMPLES = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def save(path, array, domains=None):
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
def test_array_is_what_was_foretold(tmp_path, domains, length, limit, shares, dtype, order, block):
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
        (np.array(7), r"found int64 of shape \[\]"),
        (np.array([["a"]]), r"found <U1 of shape"),
        (np.array([[1, 2], [-1, 100]]), r"token id -1 at \[1, 0\] is outside"),
        (np.array([[2**64 - 1]], np.uint64), r"token id 18446744073709551615 at \[0, 0\]"),
    ],
)
def test_wrong_array(tmp_path, array, message):
    path = save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=rf"a\.npy: .*{message}"):
        load_npy(path, vocab_size=100, max_positions=8)


def test_wrong_token_id_names_the_row_of_the_array(tmp_path, monkeypatch):
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


def test_broken_array_files(tmp_path):
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
        (b"x\ny\nz\nx", "4 lines for 3 sequences"),
        (b"x\ny\nz\n\n", "line 4 is empty"),
        (b"", "line 1 is empty"),
    ],
)
def test_wrong_domains(tmp_path, domains, message):
    path = save(tmp_path / "a.npy", np.zeros((3, 2), int))
    (tmp_path / "a.domains.txt").write_bytes(domains)
    with pytest.raises(UserError, match=message):
        load_npy(path, vocab_size=10, max_positions=8)


def test_domains_of_any_lines(tmp_path):
    path = save(tmp_path / "a.npy", np.arange(6).reshape(3, 2))
    (tmp_path / "a.domains.txt").write_bytes("\ufeffé z\r\nb\x0b \r\né z\r\n".encode())
    corpus = load_npy(path, vocab_size=10, max_positions=8)
    assert corpus.domains == ("é z", "b")
    assert corpus.row.tolist() == [0, 2, 1]
    (tmp_path / "a.domains.txt").unlink()
    assert load_npy(path, vocab_size=10, max_positions=8).domains == ("text",)


def corpus_of(**changes):
    values = {
        "tokens": np.arange(6, dtype=np.uint16).reshape(3, 2),
        "domain": np.array([0, 0, 1], np.int16),
        "row": np.arange(3),
        "domains": ("x", "y"),
    }
    return Corpus(**(values | changes))


def test_fingerprint_knows_tokens_shape_and_domains_only(monkeypatch):
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


def read(data, tokenizer, **changes):
    model = {"bos_id": 2, "separator_id": 2, "vocab_size": 400, "max_positions": 8} | changes
    return read_corpus(data, tokenizer=str(tokenizer), revision=None, **model)


def test_read_corpus_from_text_and_tokens(tmp_path, bytes_bpe):
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


def test_little_of_much_text_is_not_tokenised_as_a_whole(tmp_path, bytes_bpe, monkeypatch):
    bytes_bpe.save_pretrained(tmp_path / "model")
    rows = [{"text": "the theme of these theses", "domain": "xxy"[n % 3]} for n in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSettings(
        name="local", kind="local", path=str(tmp_path / "a.jsonl"), domain="domain", max_tokens=48
    )
    encoded: list[str] = []

    def spy(pieces, *rest):
        for piece, ids in tokenizer_module.encode(pieces, *rest):
            encoded.append(piece.text)
            yield piece, ids

    monkeypatch.setattr(tokens_module, "encode", spy)
    monkeypatch.setattr(tokens_module, "BATCH_CHARACTERS", 1)
    corpus = read(data, tmp_path / "model")
    assert dict(zip(corpus.domains, np.bincount(corpus.domain), strict=True)) == {"x": 4, "y": 2}
    assert len(encoded) < 30
    data.max_tokens = 300 * 25 // 16 // 8 * 8 + 8
    read(data, tmp_path / "model")
    assert len(encoded) > 300


def test_embedded_sample_fills_the_embedded_models_positions():
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
