"""Settings of data, the hub (a folder stands in for it, read by the same library), fingerprints."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from datasets.exceptions import DatasetNotFoundError
from omegaconf import OmegaConf

from neuronstats.corpus import files as textfiles
from neuronstats.corpus.corpus import choose_sequences
from neuronstats.corpus.documents import content_fingerprint, documents
from neuronstats.corpus.settings import DataSettings, Source, domain_shares
from neuronstats.errors import UserError

CONF = Path(__file__).parents[2] / "conf" / "data"


def local(path, **values):
    return DataSettings(name="local", kind="local", path=str(path), **values)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_papers_sources_are_pinned():
    values = OmegaConf.merge(DataSettings, OmegaConf.load(CONF / "paper.yaml"))
    paper = OmegaConf.to_object(values)
    assert all(len(source.revision or "") == 40 for source in paper.sources)


def test_domain_shares():
    assert domain_shares(local("a")) == {"text": 1.0}
    assert domain_shares(local("a", domain="d")) is None
    assert domain_shares(DataSettings(domain="d")) is None
    assert domain_shares(local("a", shares={"b": 2.0, "a": 1.0}, max_tokens=9)) == {"b": 2, "a": 1}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    pile, code = tmp_path / "pile", tmp_path / "code"
    pile.mkdir()
    code.mkdir()
    sets = ["Wikipedia (en)", "HackerNews", "Other"]
    rows = [{"text": f"{n}", "meta": {"pile_set_name": sets[n % 3]}} for n in range(30)]
    write_jsonl(pile / "test.jsonl", rows)
    write_jsonl(code / "train.jsonl", [{"content": f"code {n}", "size": n} for n in range(10)])
    by_set = {"split": "test", "filter_column": "meta.pile_set_name"}
    return DataSettings(
        name="paper",
        kind="hub",
        max_tokens=100,
        sources=[
            Source(domain="hackernews", path=str(pile), filter_value="HackerNews", **by_set),
            Source(domain="wiki", path=str(pile), filter_value="Wikipedia (en)", **by_set),
            Source(domain="code", path=str(code), text="content", share=2.0),
        ],
    )


def test_hub_domains_of_one_set_are_streamed_together(hub):
    expected = [
        ("wiki" if n % 3 == 0 else "hackernews", f"{n}") for n in range(30) if n % 3 != 2
    ] + [("code", f"code {n}") for n in range(10)]
    assert list(documents(hub)) == expected
    assert list(documents(hub)) == expected
    assert domain_shares(hub) == {"hackernews": 1.0, "wiki": 1.0, "code": 2.0}


def test_hub_stream_is_left_when_its_domains_are_full(hub):
    full: set[str] = set()
    given = []
    for domain, content in documents(hub, full):
        given.append(content)
        if content in ("3", "4"):
            full.add(domain)
    assert given == ["0", "1", "3", "4", *(f"code {n}" for n in range(10))]
    assert {content for _, content in documents(hub, {"wiki", "hackernews"})} == set(given[4:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "/nowhere/at/all"}, r"/nowhere/at/all .*cannot be read from the hub"),
        ({"split": "validation"}, r"split validation\) cannot be read from the hub"),
        ({"text": "body"}, r"no column 'body'; the columns are content, size"),
    ],
)
def test_hub_that_cannot_be_read(hub, change, message):
    hub.sources = hub.sources[2:]
    for name, value in change.items():
        setattr(hub.sources[0], name, value)
    with pytest.raises(UserError, match=message):
        list(documents(hub))


def test_hub_reads_the_piles_compression(hub, tmp_path):
    pytest.importorskip("zstandard")
    plain = tmp_path / "pile" / "test.jsonl"
    expected = list(documents(hub))
    with pa.CompressedOutputStream(f"{plain}.zst", "zstd") as file:
        file.write(plain.read_bytes())
    plain.unlink()
    assert list(documents(hub)) == expected


def test_hub_without_network(hub, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(
        UserError, match=r"not known\nCheck the network and the id, or .*data=local"
    ):
        list(documents(hub))


def test_hub_source_that_is_gone_leaves_the_others(hub, monkeypatch, caplog):
    """It ended the job; what cannot be reached for now still does (tests/test_hub.py)."""
    expected = [pair for pair in documents(hub) if pair[0] != "code"]
    real, lost = datasets.load_dataset, hub.sources[2].path

    def load(path, *args, **settings):
        if path == lost:
            raise DatasetNotFoundError("Dataset 'code' doesn't exist on the Hub")
        return real(path, *args, **settings)

    monkeypatch.setattr("datasets.load_dataset", load)
    gone: set[str] = set()
    caplog.clear()
    assert list(documents(hub, gone=gone)) == expected
    assert gone == {"code"}
    (record,) = caplog.records
    assert record.getMessage().startswith("code: left out; ")
    assert "\n" not in record.getMessage()
    with pytest.raises(UserError, match="doesn't exist on the Hub"):
        list(documents(hub))
    hub.sources = hub.sources[2:]
    with pytest.raises(UserError, match="doesn't exist on the Hub"):
        list(documents(hub, gone=set()))  # none is left
    shares = {"wiki": 1.0, "code": 1.0}
    assert choose_sequences({"wiki": 9}, 8, shares, gone) == {"wiki": 4}


def test_hub_file_is_named_where_the_splits_do_not_tell(hub, tmp_path):
    """As the Pile's copy: beside a folder train/, the library finds no split but train."""
    expected = list(documents(hub))
    (tmp_path / "pile" / "train").mkdir()
    write_jsonl(tmp_path / "pile" / "train" / "00.jsonl", [{"text": "x", "meta": {}}])
    with pytest.raises(UserError, match="split test"):
        list(documents(hub))
    for source in hub.sources[:2]:
        source.files = "test.jsonl"
    assert list(documents(hub)) == expected
    assert content_fingerprint(hub)["sources"][0]["files"] == "test.jsonl"
    assert "files" not in content_fingerprint(hub)["sources"][2]


def test_fingerprint_knows_content_and_names_but_no_place(tmp_path):
    found = []
    for folder, name, content in [
        ("a", "x.txt", "same"),
        ("b", "x.txt", "same"),
        ("c", "x.txt", "SAME"),
        ("d", "y.txt", "same"),
    ]:
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "deep" / name).write_text(content)
        found.append(content_fingerprint(local(tmp_path / folder)))
    assert found[0] == found[1]
    assert found[0]["files"][0].keys() == {"name", "bytes", "xxh3"}
    assert found[0]["files"][0]["name"] == "deep/x.txt"
    assert found[2] != found[0] != found[3]


def test_fingerprint_of_a_large_file(tmp_path, monkeypatch):
    for name, size in [("WHOLE", 1000), ("STRIDE", 500), ("SAMPLE", 10)]:
        monkeypatch.setattr(textfiles, f"{name}_BYTES", size)
    path = tmp_path / "a.txt"

    def changed_at(size, place):
        path.write_bytes(b"a" * size)
        before = content_fingerprint(local(path))
        content = bytearray(b"a" * size)
        content[place] = ord("b")
        path.write_bytes(content)
        return before != content_fingerprint(local(path))

    assert all(changed_at(1000, place) for place in [0, 9, 10, 499, 999])
    assert [changed_at(1600, place) for place in [9, 10, 505, 1509, 1510, 1590, 1599]] == [
        *(True, False, True, True, False, True, True),
    ]


def test_fingerprint_of_tokens_knows_the_domains(tmp_path):
    array = tmp_path / "a.npy"
    array.write_bytes(b"content is not looked at")
    tokens = DataSettings(name="tokens", kind="tokens", path=str(array))
    alone = content_fingerprint(tokens)
    (tmp_path / "a.domains.txt").write_text("x\n")
    assert [file["name"] for file in content_fingerprint(tokens)["files"]] == [
        *("a.npy", "a.domains.txt"),
    ]
    assert content_fingerprint(tokens)["files"][:1] == alone["files"]
    array.unlink()
    with pytest.raises(UserError, match=r"a\.npy: cannot be read \(No such file"):
        content_fingerprint(tokens)


def test_fingerprint_of_the_hub_is_its_ids_and_revisions(hub):
    hub.sources[2].revision = "abc"
    assert content_fingerprint(hub)["sources"][2] == {
        **{"path": hub.sources[2].path, "config": None, "split": "train", "revision": "abc"},
    }
