"""Workers that do one kind of work: started where there is room, replaced where lost."""

import gc
import importlib
import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from neuronstats.cluster.connection import Connection
from neuronstats.cluster.inspection import lowest_niceness
from neuronstats.cluster.nodes import Node
from neuronstats.cluster.reports import DEFERRED, PreviousResult, Report
from neuronstats.cluster.words import advice, gpu_advice, summary, vanished
from neuronstats.errors import UserError
from neuronstats.machine import reset_peak

STARTS = 2  # of a worker on one machine, before the machine is left out
WAIT_SECONDS = 0.5
PATIENCE_SECONDS = 15.0  # before a line says what is waited for


class TaskFailedError(RuntimeError):
    """A task failed through a defect of the code; carries the worker's traceback."""


class LostError(Exception):
    """A worker is gone; its task is not to blame."""

    def __init__(self, node: Node, error: BaseException) -> None:
        super().__init__(f"{node.name}: {summary(error)}")
        self.advice = advice(error)
        self.tasks: list[Any] = []
        """To be done again; the one in hand first."""


class _Worker:
    """The actor: built first, so that a bad model is told as itself and not as a lost worker."""

    _work: Any = None

    def load(self, modules: Sequence[str]) -> None:
        """Import what the work will need, while it is not known yet."""
        lowest_niceness()  # before what takes seconds
        for module in modules:
            importlib.import_module(module)

    def build(self, make: Callable[..., Any], args: Sequence[Any], threads: int) -> None:
        lowest_niceness()

        import torch

        torch.set_num_threads(threads)  # ray leaves 1, and a reused process keeps its old number
        self._work = None  # of before, to be freed first
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            gc.collect()
            torch.cuda.empty_cache()
        reset_peak()
        self._work = make(*args)

    def steps(self, task: Any) -> Iterator[tuple[Report, Any]]:
        """Yield how far a task has come, any number of times, and its result at the end."""
        result = self._work(task)
        if inspect.isgenerator(result):
            while True:
                try:
                    step = next(result)
                except StopIteration as end:
                    result = end.value
                    break
                if isinstance(step, PreviousResult):
                    yield Report.PREVIOUS, step.result
                else:
                    yield Report.PROGRESS, step
        yield (Report.DEFERRED, None) if result is DEFERRED else (Report.RESULT, result)

    def deferred_result(self) -> tuple[Report, Any]:
        """Return the result that was deferred."""
        return Report.RESULT, self._work.deferred_result()

    def complete(self, task: Any) -> tuple[Report, Any]:
        """Do a task and report nothing meanwhile; return its result."""
        *_, last = self.steps(task)
        return self.deferred_result() if last[0] is Report.DEFERRED else last


def start_worker(ray: Any, **options: Any) -> Any:
    """Start a worker that has no work yet; return Ray's handle."""
    return ray.remote(_Worker).options(max_restarts=0, max_task_retries=0, **options).remote()


@dataclass
class Worker:
    """A worker, and what it is doing."""

    actor: Any
    node: Node
    task: Any = None  # None while it is built
    previous: Any = None  # the task before, whose result is still to come
    streams: bool = False

    @property
    def tasks(self) -> list[Any]:
        """All that has no result yet."""
        return [task for task in (self.task, self.previous) if task is not None]


class WorkerGroup:
    """Workers that do one kind of work: started where there is room, replaced where lost."""

    def __init__(self, pool: Connection, make: Callable[..., Any], args: Sequence[Any]) -> None:
        self._pool, self._ray = pool, pool.ray
        self._make, self._args = make, args
        self._workers = pool.workers
        self._busy: dict[Any, Worker] = {}
        self._inspections: dict[Any, dict[str, Any]] = {}
        self._inspected = {node.id for node in pool.nodes}
        self._lost_starts: dict[str, int] = {}
        self._waiting_since = time.monotonic()
        self._has_told = False
        self.idle: list[Worker] = []

    def assign(self, make: Callable[..., Any], args: Sequence[Any]) -> None:
        """Change the work; what the workers' processes have imported and compiled stays."""
        self._waiting_since, self._has_told = time.monotonic(), False  # not since the work before
        if make is self._make and args is self._args:
            return
        self._make, self._args = make, args
        group, self.idle, self._busy = [*self.idle, *self._busy.values()], [], {}
        same = self._pool.workers == self._workers
        self._workers = self._pool.workers
        for worker in group:
            if same:
                self._build(worker)
            else:  # an actor keeps the memory, cores and GPUs that it was started with
                self._ray.kill(worker.actor)

    def _build(self, worker: Worker) -> None:
        worker.streams = False
        reference = worker.actor.build.remote(self._make, self._args, self._pool.workers.cpus)
        self._busy[reference] = worker

    @property
    def has_tasks(self) -> bool:
        """True while a task has no result yet."""
        return any(worker.tasks for worker in [*self._busy.values(), *self.idle])

    def start_missing(self, num_tasks: int) -> None:
        """Start workers where there is room: those asked for, and on machines that have joined."""
        self._inspect_joined()
        pool, group = self._pool, [*self._busy.values(), *self.idle]
        missing = (
            num_tasks
            - len(self.idle)
            - sum(worker.task is None for worker in group[: len(self._busy)])
        )
        if pool.settings.workers != "max":
            missing = min(missing, pool.workers.count - len(group))
        there = Counter(worker.node.id for worker in group)
        usable = [node for node in pool.nodes if node.name not in pool.left_out]
        if not usable and not group and not self._inspections:
            pool.watch.require()
            raise UserError(f"no machine can start a worker: {pool.left_out_words}.")
        planned = {node.id: count for node, count in pool.workers.by_node}
        while missing > 0:
            free = [
                node
                for node in usable
                if node.id in pool.watch.alive
                and there[node.id] < planned.get(node.id, self._joined(node))
            ]
            if not free:
                return
            node = min(free, key=lambda node: there[node.id])  # one on each machine in turn
            self._start(node)
            there[node.id] += 1
            missing -= 1

    def _joined(self, node: Node) -> int:
        """Return how many workers a machine gets that joined after the plan."""
        workers = self._pool.workers
        most = max((count for _, count in workers.by_node), default=1)
        return min(most, workers.room(node))

    def _start(self, node: Node) -> None:
        pool, workers = self._pool, self._pool.workers
        spare = pool.spare and pool.spare.take(workers.gpus)
        if spare:
            self._build(Worker(spare, node))
            return
        options: dict[str, Any] = {"num_cpus": workers.cpus, "num_gpus": workers.gpus}
        if workers.memory and pool.settings.address is not None:
            options["memory"] = workers.memory
        options["scheduling_strategy"] = pool.only_on(node.id)
        if pool.spare is not None:  # counted by the plan alone, so that other work can take it over
            options["num_cpus"] = 0
        self._build(Worker(start_worker(self._ray, **options), node))

    def _inspect_joined(self) -> None:
        """Start `inspect` on machines that have joined."""
        for node in self._pool.watch.nodes:
            if node["Alive"] and node["NodeID"] not in self._inspected:
                self._inspected.add(node["NodeID"])
                self._inspections[self._pool.inspect(node)] = node

    def submit(self, task: Any) -> None:
        """Start a task on an idle worker."""
        worker = self.idle.pop()
        worker.task, worker.streams = task, self._pool.streaming
        if worker.streams:
            reference = worker.actor.steps.options(num_returns="streaming").remote(task)
        else:
            reference = worker.actor.complete.remote(task)
        self._busy[reference] = worker

    def request_deferred(self) -> None:
        """Ask idle workers for the deferred results of their last tasks."""
        for worker in [worker for worker in self.idle if worker.previous is not None]:
            self.idle.remove(worker)
            worker.task, worker.previous, worker.streams = worker.previous, None, False
            self._busy[worker.actor.deferred_result.remote()] = worker

    def wait(self) -> list[Any]:
        """Return what has an answer, after half a second at most.

        Raises:
            UserError: no worker became ready in the time that the settings give.
        """
        waited = [*self._busy, *self._inspections]
        if not waited:
            time.sleep(WAIT_SECONDS)
            ready: list[Any] = []
        else:
            ready, _ = self._ray.wait(waited, num_returns=1, timeout=WAIT_SECONDS)
            if ready:
                ready, _ = self._ray.wait(waited, num_returns=len(waited), timeout=0)
        for reference in [reference for reference in ready if reference in self._inspections]:
            node = self._pool.inspected(reference, self._inspections.pop(reference))
            self._pool.nodes += [] if node is None else [node]
            ready.remove(reference)
        if ready or self.has_tasks:
            self._waiting_since = time.monotonic()
        else:
            self._wait_for_start()
        return ready

    def _wait_for_start(self) -> None:
        waited, workers = time.monotonic() - self._waiting_since, self._pool.workers
        what = f"a worker of {workers.cpus} cores and {workers.gpus} GPUs"
        if waited > PATIENCE_SECONDS and not self._has_told:
            self._has_told = True
            self._pool.on_message(f"waiting for {what}: for room in the cluster, or for its model")
        if waited > self._pool.settings.start_timeout:
            raise UserError(
                f"{what} did not become ready in ray.start_timeout="
                f"{self._pool.settings.start_timeout:.0f} s: has the cluster lost a machine, or is"
                " it busy with other work?"
            )

    def receive(self, reference: Any) -> tuple[Any, Any] | None:
        """Read one report; return a task and its result, if one is done.

        Raises:
            LostError: the worker is gone.
            UserError: the task met bad input.
            TaskFailedError: the task failed otherwise.
        """
        worker = self._busy[reference]
        name = "starting a worker" if worker.task is None else str(worker.task)
        try:
            answer = self._ray.get(next(reference) if worker.streams else reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, UserError):
                place = name if worker.task is not None else f"on {worker.node.name}"
                named = any(str(cause).startswith(str(task)) for task in worker.tasks)
                local = worker.task is None and self._pool.settings.address is None
                raise type(cause)(str(cause) if local or named else f"{place}: {cause}") from error
            if type(cause).__name__ == "OutOfMemoryError":  # torch's, of a GPU
                raise UserError(f"{name}: {gpu_advice(cause)}") from error
            if isinstance(cause, self._ray.exceptions.RayError):
                raise self._lose(reference, cause) from error
            if worker.task is None and len(self._pool.nodes) > 1:
                raise self._lose(reference, error) from error
            raise TaskFailedError(f"{name} failed:\n{error}") from error
        except self._ray.exceptions.RayError as error:  # process or machine gone, out of memory
            raise self._lose(reference, error) from error
        report, value = (Report.RESULT, answer) if worker.task is None else answer
        if report is Report.PROGRESS:
            self._pool.reached[str(worker.task)] = float(value)
            return None
        if report is Report.PREVIOUS:
            task, worker.previous = worker.previous, None
        else:
            task, worker.task = worker.task, None
            self.idle.append(self._busy.pop(reference))
        if report is Report.DEFERRED:
            worker.previous = task
            return None
        self._pool.reached.pop(str(task), None)
        return None if task is None else (task, value)

    def _lose(self, reference: Any, error: BaseException) -> LostError:
        """Remove a worker; leave its machine out if it cannot start one."""
        worker = self._busy.pop(reference)
        for task in worker.tasks:
            self._pool.reached.pop(str(task), None)
        if isinstance(error, self._ray.exceptions.RayTaskError):
            self._ray.kill(worker.actor)  # else it is dead, and a dead head would be waited for
        node = worker.node
        if worker.task is None and node.id in self._pool.watch.alive:
            more = 1 if vanished(error) else STARTS  # what raised will raise again
            starts = self._lost_starts[node.id] = self._lost_starts.get(node.id, 0) + more
            if starts >= STARTS and node.name not in self._pool.left_out:
                reason = f"it cannot start a worker: {summary(error)}. {advice(error)}"
                self._pool.leave_out(node.name, reason)
        loss = LostError(node, error)
        loss.tasks = worker.tasks
        return loss

    def release(self) -> tuple[int, list[Any]]:
        """Return the GPUs that each worker has, and the idle workers, which leave the group."""
        actors = [worker.actor for worker in self.idle]
        self.idle = []
        return self._workers.gpus, actors

    def kill(self) -> None:
        """End all workers."""
        for worker in [*self.idle, *self._busy.values()]:
            self._ray.kill(worker.actor)
