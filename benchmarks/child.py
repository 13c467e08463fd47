"""A way of doing the work in a process of its own, under a hard memory cap where one can be set.

The cap is a control group's: it counts the process's own memory and the file pages it has had read,
so weights that do not fit are read from disk again, as they would be on a smaller machine.
"""

import contextlib
import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from neuronstats.errors import UserError

CGROUPS = Path("/sys/fs/cgroup")
LIMITS = ("memory.limit_in_bytes", "memory.max")  # of the first and the second kind of groups
SAMPLE_SECONDS = 0.01
END_SECONDS = 10
_numbers = itertools.count()


class Cap:
    """A control group for one process: an existing folder, removed when closed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def make(cls) -> "Cap | None":
        """Make one below this process's own group; None where that is not allowed."""
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            folder = CGROUPS / controllers / path.lstrip("/")
            folder /= f"neuronstats-{os.getpid()}-{next(_numbers)}"
            with contextlib.suppress(OSError):
                folder.mkdir()
                cap = cls(folder)
                if cap._limit is not None:
                    return cap
                cap.close()
        return None

    @property
    def _limit(self) -> Path | None:
        files = [self._folder / name for name in LIMITS]
        return next((file for file in files if file.exists()), None)

    def take(self, process: int) -> None:
        """Put a process into it."""
        (self._folder / "cgroup.procs").write_text(str(process))

    def set(self, limit_bytes: int) -> None:
        """Set what may be held; a process that needs more by itself is killed."""
        assert self._limit is not None
        self._limit.write_text(str(limit_bytes))

    def close(self) -> None:
        """Remove the group, whose process has ended."""
        with contextlib.suppress(OSError):
            self._folder.rmdir()


class Child:
    """Makes a way of doing the work in a new process, and has it done there.

    `make` is called there, so it is picklable; it returns what does the work once.
    """

    def __init__(
        self, name: str, make: Callable[[], Callable[[], object]], cap: Cap | None
    ) -> None:
        self._name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        serving = (theirs, torch.get_num_threads(), make)
        self._process = context.Process(target=_serve, args=serving, daemon=True)
        self._process.start()
        theirs.close()
        self._cap = cap
        if cap is not None:
            cap.take(self._pid)
        self._answer()

    @property
    def _pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def __call__(self) -> int:
        """Do the work once; return the most bytes of its own that the process held meanwhile."""
        self._pipe.send("again")
        return self._answer()

    def _answer(self) -> int:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise UserError(f"{self._name}: its process was killed: too little memory?") from None
        if isinstance(answer, BaseException):
            raise answer
        return int(answer)

    def cpu_seconds(self) -> float:
        """Return the processor time so far."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def disk_bytes_read(self) -> int:
        """Return the bytes read from disks so far."""
        lines = Path(f"/proc/{self._pid}/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))

    def close(self) -> None:
        """End the process, and its group."""
        self._pipe.close()  # it ends by itself
        self._process.join(END_SECONDS)
        self._process.kill()
        self._process.join()
        if self._cap is not None:
            self._cap.close()


def _serve(pipe: Any, threads: int, make: Callable[[], Callable[[], object]]) -> None:
    """Make, then do the work as often as asked."""
    try:
        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        work = make()
        pipe.send(0)
        while pipe.recv():
            with _peak() as peak:
                work()
                if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                    torch.cuda.synchronize()  # the caller's clock cannot wait for it
            pipe.send(max(peak))
    except EOFError:
        pass
    except Exception as error:  # noqa: BLE001 - told to the other process, which raises it
        pipe.send(error)


@contextlib.contextmanager
def _peak() -> Iterator[list[int]]:
    """Look at this process's own memory (without file pages) while something is done."""
    found: list[int] = [_own_bytes()]
    done = threading.Event()

    def look() -> None:
        while not done.wait(SAMPLE_SECONDS):
            found[0] = max(found[0], _own_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def _own_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))
