"""A process beside the driver that ends what its Ray has started, whatever ends the driver.

Ray's agents look for a head that is gone for up to a minute. The driver holds one end of a pipe;
when it is closed, by its end too, what is left of Ray's processes is killed, each by its id.
"""

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

MARK = "NEURONSTATS_DRIVER"  # in the environment of what the driver starts
LOOK_SECONDS = 5.0  # to look takes 5 ms of a core that workers want
EARLY_LOOK_SECONDS = 0.15  # while Ray starts: its agents hide their environment after 0.3 s
END_SECONDS = 8.0  # to kill what is left


class Guard:
    """The process, as its driver sees it: there from before Ray is started until `close`."""

    def __init__(self) -> None:
        mark = os.environ[MARK] = secrets.token_hex(16)
        self._process = subprocess.Popen(
            # -P: else this folder's modules would hide others of their names
            [sys.executable, "-P", str(Path(__file__)), str(os.getpid()), mark],
            stdin=subprocess.PIPE,
            bufsize=0,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's signals are the driver's
        )

    def started(self) -> None:
        """Say that Ray has started: what it starts from now on has parents that are known."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # somebody has killed it: a job goes on
            self._process.stdin.write(b"\n")

    def close(self) -> None:
        """End what is left of Ray's processes here, and the guard."""
        os.environ.pop(MARK, None)
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS + 2)


class Family:
    """What a driver's Ray has started.

    The mark tells Ray's processes from others that the driver has started; some of Ray's hide their
    environment later, but never that they are children of a marked one.

    Args:
        driver: its process.
        mark: in the environment of what it starts.
    """

    def __init__(self, driver: psutil.Process, mark: str) -> None:
        self._driver, self._mark = driver, mark
        self._known: set[psutil.Process] = set()

    def look(self, *, everywhere: bool = False) -> set[psutil.Process]:
        """Return those that are there, found now or before.

        Args:
            everywhere: look at all processes: one that is just started loses its parent with it.
        """
        found = {process: process.info["ppid"] for process in psutil.process_iter(["ppid"])}
        new = {process for process in self._known if _runs(process)} | {
            process
            for process, parent in found.items()
            if (everywhere or parent == self._driver.pid) and self._marked(process)
        }
        self._known = set()
        while new:
            self._known |= new
            pids = {process.pid for process in new}
            new = {process for process, parent in found.items() if parent in pids} - self._known
        self._known = {process for process in self._known if _runs(process)}
        return self._known

    def _marked(self, process: psutil.Process) -> bool:
        if process in self._known or process.pid == os.getpid():
            return False
        try:
            return bool(process.environ().get(MARK) == self._mark)
        except psutil.Error:
            return False


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def watch(driver: int, mark: str) -> None:
    """Wait until the other end of stdin is closed, then kill the driver's family."""
    process = psutil.Process(driver)
    family, seconds = Family(process, mark), EARLY_LOOK_SECONDS
    while process.is_running():
        if select.select([sys.stdin], [], [], seconds)[0]:
            if not os.read(sys.stdin.fileno(), 1):
                break
            seconds = LOOK_SECONDS
        family.look()
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline and (left := family.look(everywhere=True)):
        for member in left:
            with contextlib.suppress(psutil.Error):  # it has ended
                member.kill()
        psutil.wait_procs(left, timeout=0.2)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when its driver does
    watch(int(sys.argv[1]), sys.argv[2])
