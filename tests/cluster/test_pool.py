"""The real pool on one real local Ray: cost of a task, progress, workers that cannot start."""

import contextlib
import ctypes
import logging
import os
import platform
import re
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from neuronstats.cluster.reports import DEFERRED, PreviousResult
from neuronstats.cluster.settings import RaySettings
from neuronstats.cluster.start import connect
from neuronstats.errors import SettingsError, UserError

HERE = Path(__file__).parent
NUM_TASKS = 600


class Nothing:
    """Does nothing, in three steps."""

    def __call__(self, task):
        for step in range(3):
            yield step + 1
        return task * 2


class Picky:
    """Fails as it is told."""

    def __init__(self, how=""):
        if how == "settings":
            raise SettingsError("model.path=/nowhere does not exist.")
        if how == "die":
            os._exit(3)

    def __call__(self, task):
        if task == "large":
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 ..."
            )
        if task == "bad":
            raise UserError("the input is bad")
        path = Path(task)
        if path.name == "kill" or not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()


class Late:
    """Ends each task with the next one; dies where it is told, the first time."""

    def __init__(self, folder):
        self._folder, self._behind = Path(folder), None

    def __call__(self, task):
        yield 1
        if self._behind is not None:
            yield PreviousResult(self._behind * 2)
        yield 2
        self._behind = task
        flag = self._folder / str(task)
        if task % 5 == 3 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return DEFERRED

    def deferred_result(self):
        if self._behind == 7:
            raise UserError("7 cannot be ended")
        return self._behind * 2


class Slow:
    """Takes longer to be built than the pool waits at a time."""

    def __init__(self):
        time.sleep(1.2)

    def __call__(self, task):
        return task


class Touches:
    """Leaves a file."""

    def __call__(self, task):
        Path(task).touch()
        time.sleep(0.01)
        return os.getpid()


class Uneven:
    """The first is ready at once; the others fail when the work is done already."""

    def __init__(self, folder):
        try:
            (Path(folder) / "first").mkdir()
        except FileExistsError:
            time.sleep(1.5)
            raise ValueError("too late") from None

    def __call__(self, task):
        return task


class Remembers:
    """Counts how often its process was given work before."""

    built = 0

    def __init__(self, name):
        Remembers.built += 1
        self._name = name

    def __call__(self, task):
        return self._name, os.getpid(), Remembers.built


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A HOME with the token of a cluster."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("of another cluster")
    return home


@pytest.fixture(scope="module")
def pool(said, home):
    path = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parents[1])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)  # the workers import this module
        patch.setenv("HOME", str(home))
        patch.setattr("neuronstats.cluster.watch.REQUIRED_SECONDS", 1.0)
        with connect(RaySettings(workers=2, cpus_per_worker=1), on_message=said.append) as pool:
            yield pool


def test_a_token_of_before_is_neither_used_nor_changed_and_none_is_left(pool, home):
    assert sorted(pool.run(Nothing, (), range(2))) == [(0, 0), (1, 2)]
    found = {path.name: path.read_text() for path in (home / ".ray").iterdir()}
    assert found == {"auth_token": "of another cluster"}


def test_workers_keep_their_process_for_other_work(pool):
    """A second kind of work, and the first again; the same work is not built twice."""
    first, second = ("first",), ("second",)
    before: dict[int, int] = {}
    for args, again in ((first, 1), (first, 0), (second, 1), (first, 1)):
        seen = dict(before)
        for _, (name, pid, built) in pool.run(Remembers, args, range(6)):
            assert name == args[0]
            assert built == seen.get(pid, 0) + (again if pid in seen else built)
            before[pid] = built
    assert len(before) <= 2
    assert max(before.values()) == 3


def test_a_worker_that_is_built_too_late_says_nothing(pool, tmp_path, monkeypatch):
    """What it was to help with is done, and may be gone."""
    logged = []
    monkeypatch.setattr(logging.getLogger("ray._private.worker"), "error", logged.append)
    assert len(list(pool.run(Uneven, (str(tmp_path),), range(2)))) == 2
    assert len(list(pool.run(Nothing, (), range(4)))) == 4
    time.sleep(2.5)
    assert logged == []


def test_time_between_two_kinds_of_work_is_not_waited_for_a_worker(pool):
    """Reading the next model's text may take longer than a worker may take to start."""
    list(pool.run(Remembers, ("before",), range(2)))
    pool._group._waiting_since -= 2 * pool.settings.start_timeout
    assert len(list(pool.run(Slow, (), range(2)))) == 2


def test_results_that_come_with_the_next_task(pool, tmp_path):
    """Each once, those of a worker that was lost too, and the last one's without a next."""
    done = [(task, result) for task, result in pool.run(Late, (str(tmp_path),), range(7))]
    assert sorted(done) == [(task, task * 2) for task in range(7)]
    assert pool.reached == {}
    with pytest.raises(UserError, match=r"^7 cannot be ended$"):
        list(pool.run(Late, (str(tmp_path),), [7]))


class Arenas:
    """Eight threads take memory; how many places does the C library keep it in?"""

    def __call__(self, path):
        libc, everyone = ctypes.CDLL(None), threading.Barrier(8)

        def allocate():
            libc.malloc(1 << 16)
            everyone.wait()

        threads = [threading.Thread(target=allocate) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        libc.fopen.restype = ctypes.c_void_p
        file = ctypes.c_void_p(libc.fopen(path.encode(), b"w"))
        libc.malloc_info(0, file)
        libc.fclose(file)
        return Path(path).read_text().count("<heap nr=")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's malloc")
def test_threads_of_a_worker_share_freed_memory(pool, tmp_path):
    [(_, arenas)] = pool.run(Arenas, (), [str(tmp_path / "arenas")])
    assert 1 <= arenas <= 2


def test_a_local_run_listens_on_loopback_alone(pool):
    """The driver, its workers, and all that Ray starts: no other machine reaches a port of it."""
    places, started = set(), []
    for _ in pool.run(Nothing, (), range(2)):
        driver = psutil.Process()
        for process in (driver, *driver.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it has ended
                started.append(" ".join(process.cmdline()))
                for found in process.net_connections("tcp"):
                    if found.status == psutil.CONN_LISTEN:
                        places.add((process.name(), found.laddr.ip.removeprefix("::ffff:")))
    names = {name for name, _ in places}
    assert {"raylet", "gcs_server"} <= names
    assert not [line for line in started if re.search("dashboard.py|monitor.py", line)], started
    assert len(names) > 3  # a worker and the agent, too
    assert {ip for _, ip in places} == {"127.0.0.1"}, places


def test_a_task_costs_the_driver_the_same_however_many_there_were(pool):
    """The driver's CPU seconds, the last third of many tasks against the first."""
    marks, seen, stepped = [], set(), set()

    def tick():
        stepped.update(pool.reached)
        assert len(pool.reached) <= pool.workers.count

    for task, result in pool.run(Nothing, (), range(NUM_TASKS), tick=tick):
        assert result == 2 * task
        seen.add(task)
        marks.append(time.process_time())
    assert seen == set(range(NUM_TASKS))
    assert stepped  # progress was heard
    assert pool.reached == {}
    third = NUM_TASKS // 3
    first, last = marks[third] - marks[0], marks[-1] - marks[-1 - third]
    assert last <= 2 * first + 0.1, (first, last)


def test_workers_go_on_while_a_result_is_looked_at(pool, tmp_path):
    """Both have the next task: not only the one whose result is still to be taken."""
    paths = [tmp_path / str(number) for number in range(NUM_TASKS)]
    results = pool.run(Touches, (), [str(path) for path in paths])
    seen, pids = 0, set()
    while len(pids) < 2:  # else one of them is still being built
        seen += 1
        pids.add(next(results)[1])
    end = time.monotonic() + 20
    while sum(path.exists() for path in paths) < seen + 2 and time.monotonic() < end:
        time.sleep(0.02)
    num_done = sum(path.exists() for path in paths)
    assert len(list(results)) == NUM_TASKS - seen
    assert num_done >= seen + 2


def test_a_killed_worker_is_replaced_and_its_task_done_again(pool, tmp_path):
    tasks = [str(tmp_path / f"task-{i}") for i in range(2)]
    done = dict(pool.run(Picky, (), tasks))
    assert set(done) == set(tasks)


@pytest.mark.slow
def test_a_task_that_kills_every_worker_ends_the_job_with_its_name(pool, tmp_path):
    task = str(tmp_path / "kill")
    with pytest.raises(UserError, match="kill lost its worker 4 times") as caught:
        list(pool.run(Picky, (), [task]))
    assert "where memory runs out" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_errors_of_people_keep_their_kind(pool):
    with pytest.raises(UserError, match=r"^bad: the input is bad$"):
        list(pool.run(Picky, (), ["bad"]))
    with pytest.raises(UserError, match=r"^large: the GPU has too little .*CUDA out of memory\)"):
        list(pool.run(Picky, (), ["large"]))
    with pytest.raises(SettingsError, match=r"^model.path=/nowhere does not exist"):
        list(pool.run(Picky, ("settings",), ["any"]))


def test_a_machine_that_cannot_start_a_worker_is_left_out_and_named(pool, said):
    with pytest.raises(UserError, match="no machine can start a worker: this machine: ") as caught:
        list(pool.run(Picky, ("die",), ["any"]))
    assert "cannot start a worker" in str(caught.value)
    assert said[-1].startswith("left out: this machine")


def test_jobs_say_nothing_else(said):
    known = ("left out", "waiting for a worker")  # the second on a loaded machine
    assert [line for line in said if not line.startswith(known)] == []
