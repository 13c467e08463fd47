"""A shard's last layers are written while the next shard is run; nothing is lost or wrong by it."""

import threading

import numpy as np
import pytest
from helpers import models
from helpers.serial import SerialPool, collect_job, contents, quiet, save_tokens, serial

from neuronstats.collect.job import collect
from neuronstats.collect.plan import WRITE_AHEAD
from neuronstats.collect.sweep import Sweep
from neuronstats.errors import UserError
from neuronstats.store.commit import ShardWriter
from neuronstats.store.folder import RunFolder
from neuronstats.store.run import Run

SECONDS = 60  # before a test that waits gives up
LAYERS, SHARDS = 3, 4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writing")
    model = models.tiny_opt(num_layers=LAYERS, hidden=16, heads=2, ffn=24, positions=16)
    checkpoint = models.save_tokenizer(models.save_checkpoint(model, folder / "model"))
    tokens = models.random_tokens(2 * SHARDS, 16, seed=3)
    return checkpoint, save_tokens(folder / "tokens.npy", tokens)


def collecting(place, inputs):
    settings = {"collect__shard_sequences": 2, "collect__bitmaps": "all"}
    return collect(collect_job(place, *inputs, **settings), quiet())


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    place = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch, serial(patch):
        assert collecting(place, inputs) == 0
    return contents(place)


def committed(place):
    return sorted(record.shard.index for record in Run.open(str(place)).records().values())


def test_the_next_shard_is_begun_while_the_last_layer_is_written(
    inputs, whole, tmp_path, monkeypatch
):
    begun = {index: threading.Event() for index in range(SHARDS + 1)}
    begun[SHARDS].set()  # there is none after the last
    write, sweep = ShardWriter.write_layer, Sweep.__call__
    waited = []

    def late(writer, layer, *arrays):
        index = writer.shard.index
        if layer == LAYERS - 1:
            waited.append(begun[index + 1].wait(SECONDS))
        write(writer, layer, *arrays)

    def noted(self, tokens, name):
        begun[int(name.split()[1])].set()
        yield from sweep(self, tokens, name)

    monkeypatch.setattr(ShardWriter, "write_layer", late)
    monkeypatch.setattr(Sweep, "__call__", noted)
    with serial(monkeypatch):
        assert collecting(tmp_path / "run", inputs) == 0
    assert waited == [True] * SHARDS
    assert contents(tmp_path / "run") == whole


def test_few_layers_are_held_and_one_shard_is_behind(inputs, tmp_path, monkeypatch):
    write, commit, sweep = ShardWriter.write_layer, ShardWriter.commit, Sweep.__call__
    held, most, done, behind = [], [], [], []

    def written(writer, layer, *arrays):
        write(writer, layer, *arrays)
        held.pop()

    def noted(self, tokens, name):
        behind.append(int(name.split()[1]) - len(done))
        for record in sweep(self, tokens, name):
            held.append(name)
            most.append(len(held))
            yield record

    monkeypatch.setattr(ShardWriter, "write_layer", written)
    monkeypatch.setattr(ShardWriter, "commit", lambda w: (done.append(w), commit(w))[1])
    monkeypatch.setattr(Sweep, "__call__", noted)
    with serial(monkeypatch):
        assert collecting(tmp_path / "run", inputs) == 0
    assert max(most) <= WRITE_AHEAD + 1  # and the one in hand
    assert max(behind) <= 1
    assert len(done) == SHARDS


def test_a_shard_that_cannot_be_run_leaves_the_one_before_committed(
    inputs, whole, tmp_path, monkeypatch
):
    sweep = Sweep.__call__

    def failing(self, tokens, name):
        if "shard 2 " in name:
            raise UserError(f"{name} is bad")
        yield from sweep(self, tokens, name)

    with serial(monkeypatch), monkeypatch.context() as patch:
        patch.setattr(Sweep, "__call__", failing)
        with pytest.raises(UserError, match=r"shard 2 .* is bad"):
            collecting(tmp_path / "run", inputs)
    assert committed(tmp_path / "run") == [0, 1]
    with serial(monkeypatch):
        assert collecting(tmp_path / "run", inputs) == 0
    assert contents(tmp_path / "run") == whole


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("index", [1, SHARDS - 1])
def test_a_layer_that_cannot_be_written_is_told_and_its_shard_not_committed(
    layer, index, inputs, whole, tmp_path, monkeypatch
):
    write = RunFolder.write

    def full(folder, key, data):
        if f"bitmaps/{layer:03d}/c/0/{index}/" in key:
            raise OSError(28, "No space left on device")
        return write(folder, key, data)

    with serial(monkeypatch), monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", full)
        with pytest.raises(UserError, match=f"cannot write shard {index} .*layer {layer} "):
            collecting(tmp_path / "run", inputs)
    assert index not in committed(tmp_path / "run")
    assert set(range(index)) <= set(committed(tmp_path / "run"))
    with serial(monkeypatch):
        assert collecting(tmp_path / "run", inputs) == 0
    assert contents(tmp_path / "run") == whole


def test_seconds_of_all_shards_are_the_workers_time(inputs, tmp_path, monkeypatch):
    summaries = []
    run = SerialPool.run

    def noted(self, *args, **kwargs):
        for task, summary in run(self, *args, **kwargs):
            summaries.append((task.index, summary))
            yield task, summary

    monkeypatch.setattr(SerialPool, "run", noted)
    with serial(monkeypatch):
        assert collecting(tmp_path / "run", inputs) == 0
    assert [index for index, _ in summaries] == list(range(SHARDS))
    for _, summary in summaries:
        assert summary.tokens == 2 * 16
        assert summary.peak_bytes > 0
        assert 0 <= summary.writer_wait_seconds <= summary.seconds
    assert np.sum([s.weight_bytes for _, s in summaries]) > 0
