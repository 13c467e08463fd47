"""The only importer of ray: a pool of workers, each with one task in flight.

Tasks carry names, not data: what a worker makes goes from it to the store, and only a small summary
comes back. A worker that is lost (killed, its node gone) is replaced and its task done again, three
times at most; an exception in a task is never retried, but ends the job with the task's name.
"""

import contextlib
import os
import re
import secrets
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from neuronstats.cluster.settings import RaySettings
from neuronstats.errors import SettingsError, UserError
from neuronstats.machine import SPARE, Machine, probe
from neuronstats.units import size

ATTEMPTS = 4  # of one task, counting only losses of its worker
WORKER_START_SECONDS = 600.0  # for a first worker to load its model
OBJECT_STORE_BYTES = 128 << 20  # results are small; ray's default is 30 % of the memory
WAIT_SECONDS = 0.5


class TaskFailedError(RuntimeError):
    """A task failed through a defect of the code; carries the worker's traceback."""


@dataclass(frozen=True)
class Workers:
    """What the cluster gives to this job."""

    count: int
    gpus: int
    """of each worker"""
    cpus: int
    """of each worker"""


class _Worker:
    """The actor: built first, so that a bad model is told as itself and not as a lost worker."""

    def build(self, make: Callable[..., Any], args: Sequence[Any], threads: int) -> None:
        torch.set_num_threads(threads)  # ray leaves 1, and a reused process keeps its old number
        self._work = make(*args)

    def run(self, task: Any) -> Any:
        return self._work(task)


class Tell:
    """Lets a worker tell the driver how far a task in hand has come; picklable."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def __call__(self, task: str, reached: float) -> None:
        """Tell of a task; the last word counts."""
        from ray.experimental import internal_kv

        internal_kv._internal_kv_put(f"{self._prefix}{task}", repr(reached), overwrite=True)

    def heard(self) -> dict[str, float]:
        """Give what was told last of each task."""
        from ray.experimental import internal_kv

        told = {}
        for key in internal_kv._internal_kv_list(self._prefix):
            value = internal_kv._internal_kv_get(key)
            told[key.decode().removeprefix(self._prefix)] = float(value or 0)
        return told


class Pool:
    """A connection to Ray, with the workers that the settings ask for."""

    def __init__(self, ray: Any, workers: Workers) -> None:
        self._ray, self.workers = ray, workers
        self._stopping = threading.Event()
        self._signals = 0
        self.tell = Tell(f"neuronstats/{secrets.token_hex(8)}/")

    @property
    def stopping(self) -> bool:
        """Whether the user has asked to stop."""
        return self._stopping.is_set()

    def _spawn(self, make: Callable[..., Any], args: Sequence[Any]) -> tuple[Any, Any]:
        options: dict[str, Any] = {"num_cpus": self.workers.cpus, "num_gpus": self.workers.gpus}
        options |= {"max_restarts": 0, "max_task_retries": 0}
        actor = self._ray.remote(_Worker).options(**options).remote()
        return actor, actor.build.remote(make, args, self.workers.cpus)

    def run(
        self,
        make: Callable[..., Any],
        args: Sequence[Any],
        tasks: Sequence[Any],
        *,
        tick: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Any, Any]]:
        """Do tasks, in any order; yield (task, result) as they finish.

        Args:
            make: called on each worker once, with args; its result is called with each task.
            args: small and picklable.
            tasks: small and picklable; str(task) names one in messages.
            tick: called about twice a second while waiting.

        Raises:
            UserError: a task met bad input, or lost its worker too often.
            TaskFailedError: a task failed otherwise.
        """
        queue = deque(tasks)
        attempts: dict[str, int] = {}
        busy: dict[Any, tuple[Any, Any]] = {}  # reference -> actor, task (None while it is built)
        for _ in range(min(self.workers.count, len(queue))):
            actor, reference = self._spawn(make, args)
            busy[reference] = (actor, None)
        idle: list[Any] = []
        deadline = time.monotonic() + WORKER_START_SECONDS
        try:
            while (queue and not self.stopping) or any(
                task is not None for _, task in busy.values()
            ):
                while idle and queue and not self.stopping:
                    actor, task = idle.pop(), queue.popleft()
                    busy[actor.run.remote(task)] = (actor, task)
                done, _ = self._ray.wait(list(busy), num_returns=1, timeout=WAIT_SECONDS)
                tick()
                if not done and all(task is None for _, task in busy.values()):
                    self._check_started(deadline)
                for reference in done:
                    actor, task = busy.pop(reference)
                    deadline = time.monotonic() + WORKER_START_SECONDS
                    try:
                        result = self._result(reference, task)
                    except _LostError as loss:
                        self._count_loss(attempts, task, loss)
                        if task is not None:
                            queue.appendleft(task)
                        actor, reference = self._spawn(make, args)
                        busy[reference] = (actor, None)
                        continue
                    idle.append(actor)
                    if task is not None:
                        yield task, result
        finally:
            for actor in [*idle, *(actor for actor, _ in busy.values())]:
                self._ray.kill(actor)

    def _check_started(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise UserError(
                f"no worker of {self.workers.cpus} cores and {self.workers.gpus} GPUs became ready"
                f" in {WORKER_START_SECONDS:.0f} s: has the cluster lost a machine, or is it busy?"
            )

    def _count_loss(self, attempts: dict[str, int], task: Any, loss: Exception) -> None:
        name = "starting a worker" if task is None else str(task)
        attempts[name] = attempts.get(name, 0) + 1
        if attempts[name] >= ATTEMPTS:
            raise UserError(
                f"{name} lost its worker {ATTEMPTS} times, the last time so: {loss}. Out of memory"
                " is the usual reason: set collect.batch_sequences or collect.shard_sequences"
                " lower."
            )

    def _result(self, reference: Any, task: Any) -> Any:
        errors = self._ray.exceptions
        name = "starting a worker" if task is None else str(task)
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, UserError):
                raise type(cause)(str(cause) if task is None else f"{name}: {cause}") from error
            if isinstance(cause, errors.RayError):
                raise _LostError(_first_line(cause)) from error
            raise TaskFailedError(f"{name} failed:\n{error}") from error
        except errors.RayError as error:  # the actor died, its node is gone, it ran out of memory
            raise _LostError(_first_line(error)) from error

    def request_stop(self, tell: Callable[[str], None]) -> Callable[[int, FrameType | None], None]:
        """Return a signal handler: the first signal lets shards in flight finish, a second none."""

        def handle(number: int, frame: FrameType | None) -> None:
            self._signals += 1
            if self._signals > 1:
                raise KeyboardInterrupt
            self._stopping.set()
            tell("stopping: finishing what is in flight (once more: stop at once)")

        return handle


class _LostError(Exception):
    """A worker is gone; its task is not to blame."""


def _first_line(error: BaseException) -> str:
    told = re.split("traceback", str(error), maxsplit=1, flags=re.IGNORECASE)[0]
    lines = [line.strip() for line in told.split("\n") if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


@contextlib.contextmanager
def connect(
    settings: RaySettings, *, tell: Callable[[str], None], worker_bytes: int | None = None
) -> Iterator[Pool]:
    """Start Ray on this machine, or join a cluster, and check that it has what is asked for.

    SIGINT and SIGTERM then ask the pool to stop, until the end of the context.

    Args:
        settings: where, and how many workers.
        tell: called with a line when a signal is taken.
        worker_bytes: see `local_workers`.

    Raises:
        SettingsError: the resources asked for are not there.
        UserError: the cluster cannot be reached.
    """
    _quiet_environment(remote=settings.address is not None)
    import ray

    # Ray prints of every lost worker what we say ourselves, in one line, if it matters.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    _init(ray, settings)
    old = {}
    try:
        if settings.address is None:
            workers = local_workers(settings, probe(), worker_bytes)
        else:
            workers = _preflight(ray.nodes(), settings, worker_bytes)
        pool = Pool(ray, workers)
        if threading.current_thread() is threading.main_thread():
            # After ray.init, which sets handlers of its own.
            old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            for number in old:
                signal.signal(number, pool.request_stop(tell))
        yield pool
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        ray.shutdown()


def _quiet_environment(*, remote: bool) -> None:
    """Set what ray reads at import: no telemetry, no chatter, an authentication that is stated."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SCHEDULER_EVENTS": "0",
        "RAY_worker_niceness": "0",  # 15 otherwise, which any other process starves
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }.items():
        os.environ.setdefault(name, value)
    if not remote and "RAY_AUTH_MODE" not in os.environ:
        # A token of this run alone, in the environment: ray's own would be left in a file in HOME,
        # and a cluster started later would demand it.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _init(ray: Any, settings: RaySettings) -> None:
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if settings.address is None:
        options |= {"address": "local", "include_dashboard": False}
        machine = probe()
        options |= {"num_cpus": machine.cores, "num_gpus": machine.gpus}
        options |= {"object_store_memory": OBJECT_STORE_BYTES}
    else:
        _check_reachable(ray, settings.address)
        # the workers compute with this code, whatever they have
        package = str(Path(__file__).parents[1])
        options |= {"address": settings.address, "runtime_env": {"py_modules": [package]}}
    # What ray starts inherits the mask: a SIGTERM to the whole process group (a scheduler's, a
    # container's) then reaches this process alone, which lets the shards in flight finish.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        ray.init(**options)
    except Exception as error:
        where = (
            "on this machine" if settings.address is None else f"at ray.address={settings.address}"
        )
        raise UserError(
            f"Ray could not be started {where}: {_first_line(error)}."
            + (" Is a cluster running there (ray start --head)?" if settings.address else "")
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _check_reachable(ray: Any, address: str) -> None:
    """Find out in seconds what ray.init needs minutes for."""
    place: str | None = address.removeprefix("ray://")
    if address == "auto":  # a cluster that has ended leaves its address behind
        place = ray._private.services.canonicalize_bootstrap_address(address)
    if place is None:  # no address: ray.init says so at once
        return
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"ray.address={address} cannot be reached ({error}): is a cluster running there"
            " (ray start --head), and is the port right?"
        ) from error


def local_workers(
    settings: RaySettings, machine: Machine, worker_bytes: int | None = None
) -> Workers:
    """Say what workers this machine will be given, before Ray is started.

    Args:
        settings: how many, or auto.
        machine: this one.
        worker_bytes: for work on one core and no GPU, host memory that a worker takes: auto is then
            one worker per core, as far as memory goes. None: one per GPU, or one with all cores.

    Raises:
        SettingsError: it lacks what is asked for.
    """
    free = int(SPARE * machine.host_bytes)
    resources = {"CPU": machine.cores, "GPU": machine.gpus, "memory": free}
    return _preflight([{"Alive": True, "Resources": resources}], settings, worker_bytes)


def _preflight(
    nodes: Sequence[dict[str, Any]], settings: RaySettings, worker_bytes: int | None
) -> Workers:
    """Resolve auto against the machines, and refuse what they lack: ray would wait for ever."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    all_gpus = sum(int(node.get("GPU", 0)) for node in alive)
    gpus, cpus, count = settings.gpus_per_worker, settings.cpus_per_worker, settings.workers
    if gpus == "auto":
        gpus = int(all_gpus > 0 and worker_bytes is None)
    if worker_bytes is not None:
        cpus = 1 if cpus == "auto" else cpus
        if count == "auto":
            count = max(1, _places(alive, int(cpus), int(gpus), worker_bytes))
    elif count == "auto":
        count = max(1, all_gpus // int(gpus)) if gpus else 1
    if cpus == "auto":
        cpus = _shared_cpus(alive, int(count), int(gpus))
    workers = Workers(count=int(count), gpus=int(gpus), cpus=int(cpus))
    places = _places(alive, workers.cpus, workers.gpus, worker_bytes)
    if places < workers.count:
        cores = sum(int(node.get("CPU", 0)) for node in alive)
        memory = sum(int(node.get("memory", 0)) for node in alive)
        raise SettingsError(
            f"ray.workers={workers.count} with {_amounts(workers.cpus, workers.gpus, worker_bytes)}"
            f" each do not fit: there are"
            f" {_amounts(cores, all_gpus, None if worker_bytes is None else memory)} on"
            f" {len(alive)} machine(s), which is enough for {places}. Set ray.workers,"
            " ray.cpus_per_worker or ray.gpus_per_worker lower."
        )
    return workers


def _amounts(cpus: int, gpus: int, memory: int | None) -> str:
    if memory is None:
        return f"{cpus} cores and {gpus} GPUs"
    return f"{cpus} cores, {gpus} GPUs and {size(memory)} of memory"


def _places(
    machines: Sequence[dict[str, Any]], cpus: int, gpus: int, worker_bytes: int | None
) -> int:
    """Count the workers for which there is room."""
    places = 0
    for machine in machines:
        rooms = [machine.get("CPU", 0) // cpus]
        if gpus:
            rooms.append(machine.get("GPU", 0) // gpus)
        if worker_bytes is not None:
            rooms.append(machine.get("memory", 0) // worker_bytes)
        places += int(min(rooms))
    return places


def _shared_cpus(machines: Sequence[dict[str, Any]], count: int, gpus: int) -> int:
    """Share out the smallest machine's cores."""
    able = [machine for machine in machines if machine.get("GPU", 0) >= gpus] or machines
    each = -(-count // max(1, len(machines)))
    shares = [
        machine.get("CPU", 1) / max(1, int(machine.get("GPU", 0)) // gpus if gpus else each)
        for machine in able
    ]
    return max(1, int(min(shares, default=1)))
