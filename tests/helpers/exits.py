"""Processes that end themselves at a moment of a job: nothing is closed, flushed or cleaned up.

A moment is before or after a step (`RunFolder._step`), of which there is one at a time, whatever
threads there are. What outlives a process is on disk: of moments between which nothing changes
there, the last stands for all. This is measured, not assumed. Where a write would follow, a part of
it is left in KEY#1, into which the local store writes first: so that is in the middle of it, too.
"""

import contextlib
import functools
import itertools
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

EXITED = 70


class Forks:
    """A process that has imported the package, and forks another for each job that it is given."""

    def __init__(self):
        self._busy = False
        tests = Path(__file__).parents[1]
        self._server = subprocess.Popen(
            [sys.executable, "-c", "from helpers import exits; exits.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": f"{tests}:{tests.parent}", "OMP_NUM_THREADS": "1"},
        )

    def _start(self, job):
        if self._busy:  # with what a test that failed has started
            self._exit_code()
        self._busy = True
        pickle.dump(job, self._server.stdin)
        self._server.stdin.flush()

    def _exit_code(self):
        self._busy = False
        return pickle.load(self._server.stdout)

    def close(self):
        self._server.communicate()

    def moments(self, job, folder):
        """The moments of an undisturbed job after which a folder changes, and the last."""
        file = Path(f"{folder}.moments")
        self._start(functools.partial(_record, job, Path(folder), file))
        assert self._exit_code() == 0
        states = pickle.loads(file.read_bytes())
        changes = itertools.pairwise([*states, None])
        return [i for i, (state, following) in enumerate(changes) if state != following]

    def exits(self, moments, prepare):
        """Let prepare(moment), a job, exit at each moment; yield that, while the next runs."""
        for moment, following in itertools.pairwise([None, *moments, None]):
            if moment is not None:
                assert self._exit_code() == EXITED, f"it did not exit at moment {moment}"
            if following is not None:
                self._start(functools.partial(_exit_at, following, prepare(following)))
            if moment is not None:
                yield moment


def serve():
    """Fork a process for each job that comes in; answer how it ended."""
    _warm_up()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # where jobs may print
    with contextlib.suppress(EOFError):
        while True:
            job = pickle.load(sys.stdin.buffer)
            assert threading.active_count() == 1, "a fork would miss the other threads"
            process = os.fork()
            if not process:
                _end_with(job)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            pickle.dump(code, answers)
            answers.flush()
    os._exit(0)


def _warm_up():
    """Do what every job would do first."""
    import numba
    import numpy as np
    import pyarrow as pa
    import torch
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import neuronstats.collect.job
    import neuronstats.reduce.job
    import neuronstats.report.job
    import neuronstats.training.loop  # noqa: F401

    torch.set_num_threads(1)
    pa.array(np.zeros(1))  # imports pandas
    numba.njit(lambda number: number)(1)
    get_checkpoint_conversion_mapping("opt")


def _end_with(job):
    try:
        os._exit(job())
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


def _watch(job, at_moment):
    """Call at_moment(number, what will be written) before and after each step; do the job."""
    from neuronstats.store.folder import RunFolder

    step, mutex, numbers = RunFolder._step, threading.RLock(), itertools.count()

    def watched(folder, kind, key, act):
        with mutex:
            at_moment(next(numbers), Path(folder.location, key) if kind == "write" else None)
            try:
                return step(folder, kind, key, act)
            finally:
                at_moment(next(numbers), None)

    RunFolder._step = watched
    return job()


def _record(job, folder, file):
    states = []
    code = _watch(job, lambda now, path: states.append(_on_disk(folder)))
    file.write_bytes(pickle.dumps(states))
    return code


def _exit_at(moment, job):
    def exit_now(now, path):
        if now == moment:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_name(f"{path.name}#1").write_bytes(b"a part")
            os._exit(EXITED)

    return _watch(job, exit_now)


def _on_disk(folder):
    """What is in a folder: every file's bytes, every folder."""
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
