"""Every object of a run damaged in every way: named by the check, and put right."""

import pytest
import yaml
from helpers import models
from helpers.serial import collect_job, make_run, quiet, serial

from neuronstats.check.job import check, find_damage
from neuronstats.check.settings import CheckJob
from neuronstats.collect.job import collect
from neuronstats.errors import UserError
from neuronstats.stats.settings import ReduceSettings
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import LOCK, LOGS, RUN_FILE, TABLES, ZARR
from neuronstats.store.reduced import ReducedRun
from neuronstats.store.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory, smallest_checkpoint):
    """A collected and reduced run, with settings of its own."""
    folder = tmp_path_factory.mktemp("check") / "run"
    tokens, domains = models.random_tokens(6, 16, seed=3), list("aaabbb")
    settings = {"collect__shard_sequences": 3, "collect__bitmaps": 1}
    reduction = ReduceSettings(cover_share=0.5)
    return make_run(folder, smallest_checkpoint, tokens, domains, reduction, **settings)


def contents(location):
    folder = RunFolder(location)
    keys = [key for key in sorted(folder.sizes()) if not key.startswith((LOCK, LOGS))]
    return {key: folder.read(key) for key in keys}


def damages(objects):
    """Yield (what, key, its new bytes or None): flips, cuts, exchanges, ..."""
    keys = list(objects)
    for key, data in objects.items():
        for part in range(min(3, len(data))):
            place = part * (len(data) - 1) // 2
            yield "flip", key, data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]
        yield "cut", key, data[: len(data) // 2]
        yield "empty", key, b""
        yield "deletion", key, None
        others = [k for k in keys if objects[k] != data]
        yield "exchange", key, objects[others[keys.index(key) % len(others)]]


def test_an_undamaged_run_has_no_damage(run):
    assert check(CheckJob(run=run), quiet()) == 0


def leaves(value, path=()):
    """Yield where each single value of a document is, and what to put there instead."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*path, key))
    elif isinstance(value, bool) or not isinstance(value, int | float):
        yield path, "other" if isinstance(value, str | None) else not value
    else:
        yield path, value + 1


def test_every_single_value_of_run_yaml_is_under_its_hash(run):
    folder = RunFolder(run)
    before = folder.read(RUN_FILE)
    places = list(leaves(yaml.safe_load(before)))
    assert len(places) > 100
    silent = []
    for path, value in places:
        info = yaml.safe_load(before)
        at = info
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        folder.write(RUN_FILE, yaml.safe_dump(info, sort_keys=False).encode())
        try:
            Run.open(run)
        except UserError:
            continue
        silent.append(path)
    folder.write(RUN_FILE, before)
    assert silent == []


def test_every_damage_is_found(run):
    """The n-grams' commits may be deleted: they are numbered anew."""
    objects, folder, silent = contents(run), RunFolder(run), []
    cases = 0
    for what, key, data in damages(objects):
        if what == "deletion" and (key == RUN_FILE or (key.endswith(".json") and "records" in key)):
            continue  # no run; an unfinished run
        if what == "deletion" and key.startswith("ngrams/") and key.endswith(".json"):
            continue
        folder.remove(key) if data is None else folder.write(key, data)
        cases += 1
        try:
            if not find_damage(Run.open(run)).all:
                silent.append((what, key))
        except UserError:
            assert key == RUN_FILE
        folder.write(key, objects[key])
    assert silent == []
    assert cases > 250
    print(f"{cases} damages, all found")


def test_all_is_put_right(run, monkeypatch):
    """One object of each kind at a time, and then all that are not run.yaml at once."""
    objects, folder = contents(run), RunFolder(run)
    keys = [key for key in objects if key != RUN_FILE]
    kinds = {}
    for key in keys:
        kinds.setdefault(("zarr.json" in key, *key.split("/")[:2]), key)
    with serial(monkeypatch):
        for batch in [*([key] for key in kinds.values()), [k for k in keys if "manifest" not in k]]:
            for key in batch:
                folder.write(key, objects[key][:-1] + b"#")
            with pytest.raises(UserError, match="repair=true"):
                check(CheckJob(run=run), quiet())
            assert check(CheckJob(run=run, repair=True), quiet()) == 0, batch
            assert contents(run) == objects, batch


@pytest.mark.parametrize("key", ["tokens/zarr.json", "tokens/c/0/0", "domain/c/0", "row/c/0"])
def test_collect_puts_right_what_was_laid_down(key, run, monkeypatch):
    objects, folder = contents(run), RunFolder(run)
    info = Run.open(run).info["settings"]
    folder.write(f"{ZARR}/{key}", b"{}")
    settings = {"collect__shard_sequences": 3, "collect__bitmaps": 1}
    paths = info["model"]["path"], info["data"]["path"]
    with serial(monkeypatch):
        with pytest.raises(UserError, match="repair=true"):
            collect(collect_job(run, *paths, **settings), quiet())
        assert collect(collect_job(run, *paths, repair=True, **settings), quiet()) == 0
    assert contents(run) == objects


def test_a_changed_table_is_never_read(run):
    objects, folder = contents(run), RunFolder(run)
    for what, key, data in damages({k: v for k, v in objects.items() if k.startswith(TABLES)}):
        folder.remove(key) if data is None else folder.write(key, data)
        with pytest.raises(UserError, match=r"jobs/reduce\.py run=.* (again|first)"):
            read_tables(run)
        folder.write(key, objects[key])
        assert what


def read_tables(location):
    run = ReducedRun(location)
    for name in ("ngrams", "triggers", "domains", "suppression", "dead_curve"):
        run.table(name)
    for layer in range(run.num_layers):
        run.position_counts(layer, slice(None))
        run.position_counts_by_domain(layer, slice(None))
        run.shard_counts(layer, slice(None))
