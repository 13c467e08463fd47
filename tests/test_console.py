"""The progress line: what is underway counts, and starting up does not."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuronstats import console
from neuronstats.console import Console
from neuronstats.units import counted, duration, short

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until the test moves it."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def test_time_left_from_one_layer_of_one_shard(clock):
    stream = io.StringIO()
    with Console(stream).progress("collect", 4000, "tokens") as advance:
        clock.now += 60  # the worker starts
        advance(0, "0/2 shards", 0.0)
        assert stream.getvalue() == ""
        advance(0, "0/2 shards", 500.0)  # a first layer
        clock.now += 10
        advance(0, "0/2 shards", 1000.0)
        clock.now += 20
        advance(2000, "1/2 shards")
        clock.now += 1
        advance(0, "1/2 shards", 50.0)  # too soon for another line
        clock.now += 39
        advance(2000, "2/2 shards")
    assert stream.getvalue().splitlines() == [
        "collect: 0/2 shards, 1 min 0 s so far",
        "collect: 0/2 shards, 50 tokens/s, 1 min 0 s left",
        "collect: 1/2 shards, 50 tokens/s, 40 s left",
        "collect: 2/2 shards, 50 tokens/s, 0 s left",
    ]


def test_a_shard_that_ends_does_not_go_back(clock):
    stream = io.StringIO()
    with Console(stream).progress("collect", 300, "tokens") as advance:
        advance(0, "0/3 shards", 10.0)
        clock.now += 10
        advance(0, "0/3 shards", 110.0)
        clock.now += 10
        advance(0, "0/3 shards", 0.0)  # its worker was lost
        clock.now += 10
        advance(100, "1/3 shards")
        clock.now += 10
        advance(100, "2/3 shards", 50.0)
    assert [line.split(", ", 1)[1] for line in stream.getvalue().splitlines()] == [
        "10 tokens/s, 19 s left",
        "3.33 tokens/s, 57 s left",
        "6 tokens/s, 8 s left",
    ]


class Closed(io.StringIO):
    """A terminal that has been closed under a job that goes on."""

    def write(self, text):
        raise OSError(5, "Input/output error")


def test_a_progress_line_that_cannot_be_written_does_not_end_the_work(clock):
    with Console(Closed()).progress("reduce", 100, "neurons") as advance:
        advance(50, "1/2 blocks")
        clock.now += 20
        advance(50, "2/2 blocks")


def test_words():
    assert [duration(n) for n in (0.4, 59.4, 61, 7500)] == ["0 s", "59 s", "1 min 1 s", "2 h 5 min"]
    assert [counted(n, "run") for n in (0, 1, 1200)] == ["0 runs", "1 run", "1,200 runs"]
    assert [short(n) for n in (0, 12.34, 99_950, 1_234_567)] == ["0", "12.3", "100k", "1.23M"]


@pytest.mark.parametrize("end", ["pipe", "terminal"])
def test_a_job_whose_output_nobody_reads_ends_as_it_would(end, run_folder):
    """`... | head`, and a terminal that was closed under nohup."""
    reader, writer = os.pipe() if end == "pipe" else os.openpty()
    os.close(reader)
    command = [sys.executable, ROOT / "jobs/check.py", f"run={run_folder}"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
