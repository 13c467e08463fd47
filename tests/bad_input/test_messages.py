"""Bad input that no row of a table can lay down: disks, machines, hubs, other jobs, stops."""

import contextlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bad_input.rows_runs import flip, objects
from helpers import models
from helpers.desk import (
    DONE,
    FAILED,
    GB,
    INTERRUPTED,
    WRONG_SETTINGS,
    contents,
    cut,
)
from helpers.serial import SerialPool


def test_hub_that_gives_nothing(desk, monkeypatch):
    def refuse(*args, **settings):
        raise OSError("no connection\nand more lines")

    monkeypatch.setattr("neuronstats.model.source.snapshot_download", refuse)
    desk.checkpoint = "facebook/opt-99"
    words = ["model.path=facebook/opt-99", "the hub did not give it (no connection)"]
    err = desk.fails(FAILED, *words, settings=desk.settings)
    assert "more lines" not in err


def test_read_only_disk(desk, collected, disk):
    folder = disk("size=20m")
    shutil.copytree(collected.run, folder / "run")
    disk("remount", "ro")
    desk.run = folder / "new"
    desk.fails(FAILED, desk.run, "read-only", "choose another folder", settings=desk.settings)
    desk.run = folder / "run"
    desk.fails(FAILED, desk.run, "Read-only", settings=[f"run={desk.run}"], job="reduce")
    desk.fails(FAILED, desk.run, "Read-only", settings=desk.settings)


def test_full_disk(desk, collected, disk, monkeypatch):
    monkeypatch.setattr("neuronstats.collect.job.free_disk_bytes", lambda path: 1000)
    words = ["does not fit here", "disk: ", " needed, 1 kB may be used"]
    desk.fails(WRONG_SETTINGS, *words, settings=desk.settings)
    monkeypatch.setattr("neuronstats.collect.job.free_disk_bytes", lambda path: None)
    folder = disk("size=48k")
    desk.run = folder / "run"
    made = []
    for size in range(48, 400, 32):  # while the run is made, and while its shards are written
        disk("remount", f"size={size}k")
        code, _, err = desk.job("collect", *desk.settings)
        if code == DONE:
            break
        assert code == FAILED
        assert "defect" not in err
        for word in ("cannot write", str(desk.run), "No space left", "the disk is full"):
            assert word in err
        made.append((desk.run / "run.yaml").exists())
    assert set(made) == {False, True}
    disk("remount", "size=40m")
    assert desk.job("collect", *desk.settings)[0] == DONE
    name = "activations.zarr"
    assert contents(desk.run / name) == contents(collected.run / name)


def test_what_is_there_already_needs_no_disk(done, monkeypatch):
    monkeypatch.setattr("neuronstats.collect.job.free_disk_bytes", lambda path: 0)
    assert done.job("collect", *done.settings)[0] == DONE


def test_full_disk_under_reduce(desk, collected, disk):
    desk.run = shutil.copytree(collected.run, disk("size=2m") / "run")
    before = contents(desk.run)
    filler = desk.run.parent / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    words = ["cannot ", desk.run, "No space left", "the disk is full"]
    desk.fails(FAILED, *words, settings=[f"run={desk.run}"], job="reduce")
    filler.unlink()
    assert desk.job("reduce", f"run={desk.run}")[0] == DONE
    assert contents(desk.run).keys() == before.keys()


def test_run_of_another_column(desk):
    rows = {"text": ["one text " * 200], "other": ["another one " * 200]}
    pq.write_table(pa.table(rows), desk.folder / "a.parquet")
    settings = [*desk.model, "data=local", "data.path=a.parquet", "run=run"]
    assert desk.job("collect", *settings)[0] == DONE
    words = ["data.text: the run has 'text', asked for is 'other'"]
    desk.fails(WRONG_SETTINGS, *words, settings=[*settings, "data.text=other"])


LOCK = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("process 7 on elsewhere")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


def test_two_jobs_on_one_run(done):
    held = [sys.executable, "-c", LOCK, str(done.run / "run.lock")]
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        words = ["another job is working on", done.run, "process 7 on elsewhere", "stop it"]
        done.fails(FAILED, *words, settings=done.settings)
        done.fails(FAILED, *words, settings=[f"run={done.run}"], job="reduce")
        other.communicate()
    assert done.job("collect", *done.settings)[0] == DONE


@pytest.mark.parametrize("kind", ["bitmaps", "position_counts"])
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_committed_bytes_that_changed_are_put_right(done, kind, damage):
    good = contents(done.run)
    damage(objects(done.run, kind)[0])
    code, out, err = done.job("collect", *done.settings, "repair=true")
    assert (code, err) == (DONE, "")
    assert "repairing shard " in out
    assert contents(done.run) == good


@pytest.mark.parametrize("layer", [1, 2])
def test_weights_that_are_not_finite(desk, layer, tmp_path):
    desk.checkpoint = models.save_with_nan(tmp_path / "damaged", layer)
    code, _, err = desk.job("collect", *desk.settings)
    assert code == FAILED, err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for word in (f"NaN or infinity in layer {layer}, sequence 0 of shard 0", "model.dtype"):
        assert word in err
    assert not list((desk.run / "activations.zarr" / "records").glob("*"))
    desk.fails(FAILED, "3 of 3 shards (100 %)", settings=[f"run={desk.run}"], job="reduce")
    settings = [f"run={desk.run}", "partial=true"]
    desk.fails(FAILED, "3 of 3 shards (100 %)", settings=settings, job="reduce")


def machine(**changes):
    from neuronstats.machine import Machine

    have = {"cores": 2, "host_bytes": 64 * GB, "gpus": 0, "gpu_bytes": 0}
    return lambda: Machine(**{**have, **changes})


def test_more_memory_than_there_is(desk, monkeypatch):
    monkeypatch.setattr("neuronstats.collect.job.probe", machine(host_bytes=GB // 8))
    words = ["does not fit here", "host memory", "needed", "may be used", "largest part"]
    desk.fails(WRONG_SETTINGS, *words, settings=desk.settings)


def test_gpu_that_is_not_there(desk, monkeypatch):
    monkeypatch.setattr("neuronstats.collect.job.probe", machine())
    words = ["1 GPUs each do not fit", "0 GPUs", "ray.gpus_per_worker lower"]
    desk.fails(WRONG_SETTINGS, *words, settings=[*desk.settings, "ray.gpus_per_worker=1"])


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "auto"])
def test_ray_that_is_not_there(desk, monkeypatch, address):
    from neuronstats.cluster import local
    from neuronstats.cluster import start as cluster

    local.prepare_environment(remote=False)  # ray reads it once, also for this process's own later
    monkeypatch.setattr("neuronstats.collect.job.connect", cluster.connect)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # what auto finds: a cluster that has ended
    words = [f"ray.address={address} cannot be reached", "ray start --head"]
    if address.startswith("ray://") and importlib.util.find_spec("grpc") is None:
        words = [f"ray.address={address} needs Ray's client", "pip install"]
    desk.fails(FAILED, *words, settings=[*desk.settings, f"ray.address={address}"])


def test_unfinished_run(done):
    whole = pq.read_table(done.run / "tables" / "neurons.parquet")
    (done.run / "activations.zarr" / "records" / "00001.json").unlink()
    words = ["1 of 3 shards (33 %) are missing", "collect again", "partial=true"]
    done.fails(FAILED, *words, settings=[f"run={done.run}"], job="reduce")
    code, out, err = done.job("reduce", f"run={done.run}", "partial=true")
    assert (code, err) == (DONE, "")
    assert "2 of 3 shards (partial)" in out
    part = pq.read_table(done.run / "tables" / "neurons.parquet")
    marks = [json.loads(table.schema.metadata[b"neuronstats"]) for table in (whole, part)]
    assert [mark["complete"] for mark in marks] == [True, False]
    assert [mark["shards"] for mark in marks] == [3, 2]
    assert part["tokens"][0].as_py() < whole["tokens"][0].as_py()


class StoppedPool(SerialPool):
    """The user asks to stop after the first task."""

    def run(self, make, args, tasks, tick=lambda: None):
        yield from super().run(make, args, tasks[:1], tick)


def test_interrupted(desk, collected, monkeypatch):
    @contextlib.contextmanager
    def connect(settings, on_message):
        yield StoppedPool()

    with monkeypatch.context() as patch:
        patch.setattr("neuronstats.collect.job.connect", connect)
        patch.setattr("neuronstats.reduce.job.connect", connect)
        code, out, err = desk.job("collect", *desk.settings)
        assert (code, err) == (INTERRUPTED, "")
        assert "2 shards are left. The same command goes on" in out
    code, out, _ = desk.job("collect", *desk.settings)
    assert code == DONE
    assert "1 of 3 shards are committed already" in out
    name = "activations.zarr"
    assert contents(desk.run / name) == contents(collected.run / name)


def test_interrupted_at_once(done, monkeypatch):
    def stop(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("neuronstats.collect.job.connect", stop)
    monkeypatch.setattr("neuronstats.reduce.job.connect", stop)
    (done.run / "activations.zarr" / "records" / "00001.json").unlink()
    before = contents(done.run)
    for job, chosen in (
        ("collect", done.settings),
        ("reduce", ["partial=true", f"run={done.run}"]),
    ):
        code, _, err = done.job(job, *chosen)
        assert code == INTERRUPTED
        assert "what was committed stays" in err
        assert contents(done.run) == before


def test_plan_makes_nothing(desk):
    before = contents(desk.folder)
    for settings in ([*desk.settings, "plan=true"], ["plan=true"]):
        code, out, err = desk.job("collect", *settings)
        assert (code, err) == (DONE, "")
        for word in ("tokens", "layers", "host memory", "disk", "FLOP"):
            assert word in out
        assert contents(desk.folder) == before


def test_plan_fetches_no_weights(desk, own_checkpoint, monkeypatch):
    (own_checkpoint / "model.safetensors").unlink()
    asked = []

    def give(name, revision, allow_patterns):
        asked.append((name, allow_patterns))
        return str(own_checkpoint)

    monkeypatch.setattr("neuronstats.model.source.snapshot_download", give)
    code, out, err = desk.job("collect", "model=opt-66b", "data=paper", "plan=true")
    assert (code, err) == (DONE, "")
    assert "about 20M" in out
    assert [name for name, _ in asked] == ["facebook/opt-66b"]
    assert not any("safetensors" in pattern or ".bin" in pattern for pattern in asked[0][1])
    assert not (desk.folder / "runs").exists()


def test_what_does_not_fit_is_refused_before_the_weights_are_fetched(
    desk, own_checkpoint, monkeypatch
):
    (own_checkpoint / "model.safetensors").unlink()
    asked = []

    def give(name, revision, allow_patterns):
        asked.append(allow_patterns)
        return str(own_checkpoint)

    monkeypatch.setattr("neuronstats.model.source.snapshot_download", give)
    monkeypatch.setattr("neuronstats.collect.job.probe", machine(host_bytes=GB // 8))
    settings = ["model=opt-125m", *desk.settings[2:]]
    desk.fails(WRONG_SETTINGS, "does not fit here", "host memory", settings=settings)
    assert len(asked) == 1
    assert not any("safetensors" in pattern or ".bin" in pattern for pattern in asked[0])
