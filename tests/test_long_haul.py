"""1500 shards with workers killed at random: nothing grows, and a resume starts as quickly."""

import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import models
from helpers.serial import collect_job, save_tokens, serial

from neuronstats.collect.job import collect
from neuronstats.store.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parent.parent
SHARDS, KILLS = 1500, 6
FLAT = 1.05  # of what it was after shard 100


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("haul")
    model = models.tiny_opt(num_layers=1, hidden=16, heads=2, ffn=24, positions=16)
    checkpoint = models.save_tokenizer(models.save_checkpoint(model, folder / "model"))
    return checkpoint, save_tokens(folder / "tokens.npy", models.random_tokens(SHARDS, 16, seed=3))


def workers_of(driver):
    """The processes of Ray that hold a worker of ours."""
    found = []
    for child in driver.children(recursive=True):
        try:
            if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::_Worker"):
                found.append(child)
        except psutil.Error:
            continue
    return found


def look(process):
    """Resident bytes that are no file's, and open descriptors."""
    memory = process.memory_info()
    return memory.rss - memory.shared, process.num_fds()


def test_nothing_grows_over_1500_shards(inputs, tmp_path):
    run, generator = tmp_path / "run", random.Random(0)
    settings = [f"model.path={inputs[0]}", "model=local", "data=tokens", f"data.path={inputs[1]}"]
    settings += ["collect.shard_sequences=1", "ray.workers=1", "ray.cpus_per_worker=1"]
    with (tmp_path / "said").open("w") as said:
        job = subprocess.Popen(
            [sys.executable, str(ROOT / "jobs/collect.py"), *settings, f"run={run}"],
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    driver, records = psutil.Process(job.pid), run / "activations.zarr" / "records"
    kills = sorted(generator.sample(range(120, 1000), KILLS))
    seen, born = [], {}  # (shards, who, shards since it began, bytes, descriptors)
    begun = time.monotonic()
    while job.poll() is None and time.monotonic() - begun < 3000:
        done = len(list(records.iterdir())) if records.exists() else 0
        try:
            workers = workers_of(driver)
            if kills and done > kills[0] and workers:
                kills.pop(0)
                os.kill(generator.choice(workers).pid, signal.SIGKILL)
                continue
            for process in [driver, *workers]:
                who = "driver" if process is driver else "worker"
                since = done - born.setdefault(process.pid, done)
                seen.append((done, who, since, *look(process)))
        except (psutil.Error, ProcessLookupError):
            pass
        time.sleep(0.1)
    assert job.wait(60) == 0, (tmp_path / "said").read_text()
    assert kills == []
    assert len(Run.open(str(run)).record_keys()) == SHARDS
    print(f"{SHARDS} shards, {KILLS} kills, {time.monotonic() - begun:.0f} s")
    for who in ("driver", "worker"):
        early = [x for x in seen if x[1] == who and x[2] > 60 and 60 <= x[0] <= 250][:10]
        late = [x for x in seen if x[1] == who and x[2] > 60 and x[0] >= SHARDS - 250]
        for what, column in (("bytes", 3), ("descriptors", 4)):
            before, after = (statistics.median(x[column] for x in part) for part in (early, late))
            print(f"{who}: {what} {before:.0f} -> {after:.0f} ({after / before:.3f})")
            assert after <= FLAT * before
    starts = {n: start_of_a_resume(inputs, run, n) for n in (SHARDS, SHARDS, 500, 10)}  # warm
    print("seconds of work to look at what is there:", starts)
    assert max(starts.values()) - min(starts.values()) < 2


class EnoughError(Exception):
    """It has said what it found."""


class Teller:
    """A console that ends the job when the committed shards were told."""

    def say(self, text):
        if re.search("shards are committed already", text):
            raise EnoughError

    def table(self, title, rows):
        pass


def start_of_a_resume(inputs, run, kept):
    """Seconds of CPU until a job that goes on has looked at what is there, of so many records."""
    for path in sorted((run / "activations.zarr" / "records").iterdir())[kept:]:
        path.unlink()
    with pytest.MonkeyPatch.context() as patch, serial(patch):
        begun = time.process_time()
        with pytest.raises(EnoughError):
            collect(collect_job(run, *inputs, collect__shard_sequences=1), Teller())
        return round(time.process_time() - begun, 2)
