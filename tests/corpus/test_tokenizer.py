"""The tokenizer: loaded without running code, applied to plain text, in pieces."""

import json

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from neuronstats.corpus import tokenizer as tokenizer_module
from neuronstats.corpus.packing import tokenize
from neuronstats.corpus.tokenizer import load_tokenizer
from neuronstats.errors import UserError

EXAMPLES = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def test_special_tokens_in_the_text_are_plain_text(bytes_bpe):
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


def test_a_tokenizers_own_cutting_and_padding_are_left_alone(bytes_bpe):
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
def test_pieces_of_a_long_document_give_the_same_tokens(bytes_bpe, parts, piece):
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


def test_a_piece_without_a_lone_space_is_cut_at_its_limit(monkeypatch):
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


def test_load_tokenizer_from_the_files_that_opts_repositories_have(tmp_path, bytes_bpe):
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
def test_folder_without_a_tokenizer(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(tmp_path))


def test_code_of_a_model_repository_is_not_run(tmp_path, bytes_bpe):
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
