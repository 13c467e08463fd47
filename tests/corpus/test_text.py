"""Documents by domain, from files of every format."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuronstats.corpus import documents as text
from neuronstats.corpus import files as textfiles
from neuronstats.corpus.documents import documents
from neuronstats.corpus.settings import DataSettings
from neuronstats.errors import SettingsError, UserError

TABLE = {"text": ["one", "two", None, "three"], "domain": ["x", None, "y", "z"]}

READ = [("x", "one"), ("unknown", "two"), ("z", "three")]


def local(path, **values):
    return DataSettings(name="local", kind="local", path=str(path), **values)


def read(path, **values):
    return list(documents(local(path, **values)))


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_rows(path, table, kind):
    arrow = pa.table(table)
    if kind == "jsonl":
        return write_jsonl(path, arrow.to_pylist())
    if kind == "parquet":
        pq.write_table(arrow, path, row_group_size=2)
    else:
        new = pa.ipc.new_file if kind == "arrow file" else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, new(sink, arrow.schema) as writer:
            writer.write_table(arrow, max_chunksize=2)
    return path


KINDS = {
    "jsonl": ".jsonl",
    "parquet": ".parquet",
    "arrow file": ".arrow",
    "arrow stream": ".arrow",
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_format(tmp_path, kind):
    path = write_rows(tmp_path / f"a{KINDS[kind]}", TABLE, kind)
    assert read(path, domain="domain") == READ
    assert read(path) == [("text", content) for _, content in READ]


@pytest.mark.parametrize("kind", KINDS)
def test_nested_columns(tmp_path, kind):
    table = {"body": [{"raw": "one"}, {"raw": "two"}], "meta": [{"set": "x"}, {"set": "y"}]}
    path = write_rows(tmp_path / f"a{KINDS[kind]}", table, kind)
    assert read(path, text="body.raw", domain="meta.set") == [("x", "one"), ("y", "two")]


@pytest.mark.parametrize("kind", KINDS)
def test_more_rows_than_a_batch(tmp_path, kind):
    table = {"text": [f"document {number}" for number in range(3 * textfiles.BATCH_ROWS + 1)]}
    path = write_rows(tmp_path / f"a{KINDS[kind]}", table, kind)
    assert [content for _, content in read(path)] == table["text"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", ["text", "domain"])
def test_missing_column_names_those_that_exist(tmp_path, kind, wrong):
    path = write_rows(tmp_path / f"a{KINDS[kind]}", TABLE, kind)
    columns = {"text": "text", "domain": "domain", wrong: "typo"}
    with pytest.raises(UserError, match=r"no column 'typo'; the columns are text, domain"):
        read(path, **columns)


@pytest.mark.parametrize("kind", KINDS)
def test_text_must_be_text(tmp_path, kind):
    path = write_rows(tmp_path / f"a{KINDS[kind]}", {"text": [7]}, kind)
    with pytest.raises(UserError, match=r"'text' holds int 7, not text"):
        read(path)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "jsonl"])
def test_table_cut_short(tmp_path, kind):
    path = write_rows(tmp_path / f"a{KINDS[kind]}", {"text": ["word " * 999] * 9}, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"a\.(parquet|arrow): broken or cut short"):
        read(path)


@pytest.mark.parametrize("kind", ["arrow file", "arrow stream", "parquet"])
@pytest.mark.parametrize("damage", [0x01, 0x80, 0xFF])
def test_any_byte_of_a_table_damaged(tmp_path, kind, damage):
    """Read, or refused: Arrow maps offsets as they are, and would follow them to other memory."""
    path = write_rows(tmp_path / f"a{KINDS[kind]}", TABLE, kind)
    good, refused = path.read_bytes(), 0
    for place, byte in enumerate(good):
        path.write_bytes(good[:place] + bytes([byte ^ damage]) + good[place + 1 :])
        try:
            read(path, domain="domain")
        except UserError:
            refused += 1
    assert 0 < refused < len(good)


@pytest.mark.parametrize("suffix", textfiles.SUFFIXES)
def test_empty_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"there is no text|broken or cut short"):
        read(path)


def test_text_file_is_one_document_byte_for_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo \xc3\xbc\n")
    assert read(tmp_path / "a.txt") == [("text", "one\r\n\r\ntwo ü\n")]


@pytest.mark.parametrize(
    ("name", "content", "offset"),
    [
        ("a.txt", b"fine \xff\xfe", 5),
        ("a.txt", b"\xef\xbb\xbfab\xe2\x82", 5),
        ("a.jsonl", b'{"text": "fine"}\n{"text": "\xe9t\xe9"}\n', 27),
        ("a.jsonl", b'{"text": "\xc3\xa9"}\n{"text": "\xff"}\n', 25),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "\xff"}\n', 13),
    ],
)
def test_undecodable_bytes_name_file_and_offset(tmp_path, name, content, offset):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*at offset {offset} is not UTF-8"):
        read(tmp_path / name)
    assert content[offset] >= 0x80


@pytest.mark.parametrize("kind", ["parquet", "arrow file"])
def test_undecodable_value_in_a_table(tmp_path, kind):
    column = pa.array([b"fine", b"\xff"]).view(pa.string())
    path = write_rows(tmp_path / f"a{KINDS[kind]}", {"text": column}, kind)
    with pytest.raises(UserError, match=r"a\.\w+, rows 1 to .* 0xff at its offset 0"):
        read(path)


def test_half_a_surrogate_pair(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "ab\\ud800"}\n')
    with pytest.raises(UserError, match=r"line 1: half a surrogate pair at character 2"):
        read(tmp_path / "a.jsonl")


def test_json_that_nests_too_deep(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + "[" * 200_000)
    with pytest.raises(UserError, match="line 2: not JSON"):
        read(tmp_path / "a.jsonl")


def test_json_rows_may_leave_out_the_domain_and_lines_may_be_blank(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "domain": 7}\n\n{"text": "b"}\n{"text": "c", "domain": " "}')
    assert read(path, domain="domain") == [("7", "a"), ("unknown", "b"), ("unknown", "c")]


def test_empty_documents_are_left_out_and_said(tmp_path, caplog):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": ""}, {"text": None}])
    assert read(tmp_path) == [("text", "a")]
    assert "left out 2 empty documents" in caplog.text


def test_folder_is_read_in_the_order_of_names_with_subfolders(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / "b" / "c" / "2.txt").write_text("second")
    (tmp_path / "b" / "README.md").write_text("no")
    (tmp_path / ".git" / "a.txt").write_text("no")
    write_jsonl(tmp_path / "a.jsonl", [{"text": "first"}])
    pq.write_table(pa.table({"text": ["third"]}), tmp_path / "c.parquet")
    assert [content for _, content in read(tmp_path)] == ["first", "second", "third"]


def test_glob(tmp_path, monkeypatch):
    for name in ["b1.txt", "a1.txt", "a2.txt", "a3.md"]:
        (tmp_path / name).write_text(name)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "deep.txt").write_text("deep")
    assert [content for _, content in read(tmp_path / "a*")] == ["deep", "a1.txt", "a2.txt"]
    assert [content for _, content in read(tmp_path / "**" / "*p.txt")] == ["deep"]
    monkeypatch.chdir(tmp_path / "a")
    assert [content for _, content in read("*.txt")] == ["deep"]
    assert [content for _, content in read("../b*.txt")] == ["b1.txt"]
    (tmp_path / "[1].txt").write_text("a file's own name comes first")
    assert read(tmp_path / "[1].txt") == [("text", "a file's own name comes first")]


def test_unreadable_file(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"a\.txt: cannot be read \(Permission denied\)"):
        read(tmp_path)


def test_domain_column_for_text_files_only(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(SettingsError, match=r"data.domain=topic: .txt files have no columns"):
        read(tmp_path, domain="topic")
    write_jsonl(tmp_path / "b.jsonl", [{"text": "b", "topic": "x"}])
    assert read(tmp_path, domain="topic") == [("text", "text"), ("x", "b")]


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"text": st.none() | st.text(), "domain": st.none() | st.text(max_size=3)}
        ),
        max_size=9,
    )
)
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_text_comes_back_whatever_the_format(tmp_path, rows):
    expected = [
        ((row["domain"] or "").strip() or "unknown", row["text"])
        for row in rows
        if row["text"] and row["text"].strip()
    ]
    schema = pa.schema({"text": pa.large_string(), "domain": pa.string()})
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet")
    write_jsonl(tmp_path / "a.jsonl", rows)
    for name in ["a.parquet", "a.jsonl"]:
        if expected:
            assert read(tmp_path / name, domain="domain") == expected
        else:
            with pytest.raises(UserError, match="there is no text"):
                read(tmp_path / name, domain="domain")


def test_sample_is_read_from_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "SAMPLE", tmp_path)
    write_rows(tmp_path / "a.parquet", TABLE, "parquet")
    assert list(documents(DataSettings(domain="domain"))) == READ
