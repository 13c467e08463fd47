"""Tokenising is work, too: stopped half-way, it goes on with the domains that are not done."""

import itertools
import json

import pytest
from helpers.serial import quiet, serial

from neuronstats.collect import job as collect_job
from neuronstats.collect.kept import KeptTokens
from neuronstats.collect.settings import CollectJob, CollectSettings
from neuronstats.corpus import packing
from neuronstats.corpus.settings import DataSettings
from neuronstats.model.settings import ModelSettings
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import LOCK, LOGS, RUN_FILE, TOKENS

DOMAINS = ("books", "code", "web")


@pytest.fixture
def job(tmp_path, tiny_checkpoint, monkeypatch):
    """job(folder): collects three domains, one of them shorter than its share."""
    rows = [
        {"text": f"{domain} number {n} of many words. " * 20, "kind": domain}
        for domain, n in itertools.product(DOMAINS, range(12))
        if domain != "web" or n < 2
    ]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSettings(
        name="local",
        kind="local",
        path=str(tmp_path / "text.jsonl"),
        domain="kind",
        max_tokens=16 * 30,
        sequence_length=16,
        shares=dict.fromkeys(DOMAINS, 1.0),
    )
    monkeypatch.setattr("neuronstats.collect.inspect.ESTIMATE_FROM_BYTES", 0)
    monkeypatch.setattr(packing, "BATCH_CHARACTERS", 500)

    def run(folder):
        settings = CollectJob(
            model=ModelSettings(name="local", path=str(tiny_checkpoint("pre"))),
            data=data,
            collect=CollectSettings(shard_sequences=8),
            run=str(folder),
        )
        return lambda: collect_job.collect(settings, quiet())

    with serial(monkeypatch):
        yield run


@pytest.fixture
def tokenised(monkeypatch):
    """The domains whose text was tokenised, in order."""
    seen, encode = [], packing.encode

    def watched(pieces, *args):
        for piece, ids in encode(pieces, *args):
            seen.append(piece.domain)
            yield piece, ids

    monkeypatch.setattr(packing, "encode", watched)
    return seen


def contents(folder):
    found = RunFolder(str(folder))
    keys = [key for key in found.sizes() if not key.startswith((LOCK, LOGS, RUN_FILE))]
    return {key: found.read(key) for key in keys}


def test_a_domain_that_is_done_is_not_tokenised_again(job, tokenised, tmp_path, monkeypatch):
    assert job(tmp_path / "whole")() == 0
    assert set(tokenised) == set(DOMAINS)
    assert not (tmp_path / "whole" / TOKENS).exists()
    keep = KeptTokens.keep

    def keep_and_die(self, domain, tokens):
        keep(self, domain, tokens)
        raise KeyboardInterrupt

    run = tmp_path / "run"
    for done in range(len(DOMAINS)):
        tokenised.clear()
        with monkeypatch.context() as patch:
            patch.setattr(KeptTokens, "keep", keep_and_die)
            with pytest.raises(KeyboardInterrupt):
                job(run)()
        assert not set(tokenised) & set(DOMAINS[:done])
        assert len(list((run / TOKENS).iterdir())) == done + 1
    tokenised.clear()
    assert job(run)() == 0
    assert tokenised == []
    assert contents(run) == contents(tmp_path / "whole")
    assert not (run / TOKENS).exists()


def stop(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("damage", [lambda data: data[:-2], lambda data: b"x" + data])
def test_damaged_tokens_are_made_again(damage, job, tokenised, tmp_path, monkeypatch):
    assert job(tmp_path / "whole")() == 0
    with monkeypatch.context() as patch:
        patch.setattr(packing._Streams, "corpus", stop)
        with pytest.raises(KeyboardInterrupt):
            job(tmp_path / "run")()
    for path in (tmp_path / "run" / TOKENS).iterdir():
        path.write_bytes(damage(path.read_bytes()))
    tokenised.clear()
    assert job(tmp_path / "run")() == 0
    assert set(tokenised) == set(DOMAINS)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_other_settings_do_not_take_it_up(tmp_path):
    folder = RunFolder(str(tmp_path))
    KeptTokens(folder, "a").keep("x", b"1234")
    assert KeptTokens(folder, "a").load("x") == b"1234"
    assert KeptTokens(folder, "b").load("x") is KeptTokens(folder, "a").load("y") is None
