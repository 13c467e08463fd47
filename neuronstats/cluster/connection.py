"""A connection to Ray: the machines there are, the workers asked for, what the user wants."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from neuronstats.cluster.inspection import NodeReport, differences, look
from neuronstats.cluster.nodes import Node, Workers
from neuronstats.cluster.settings import RaySettings
from neuronstats.cluster.watch import Watch
from neuronstats.cluster.words import summary
from neuronstats.errors import UserError
from neuronstats.machine import SPARE


@dataclass
class SpareWorkers:
    """Workers on this machine without work: started early, or kept from the work before."""

    ray: Any
    gpus: int = 0
    actors: list[Any] = field(default_factory=list)

    def take(self, gpus: int) -> Any:
        """Return a worker with these GPUs; None if there is none."""
        if gpus != self.gpus:
            self.kill()
        return self.actors.pop() if self.actors else None

    def kill(self) -> None:
        """End those that were not taken."""
        while self.actors:
            self.ray.kill(self.actors.pop())


class Connection:
    """What is known of the cluster, and the workers that the settings ask for.

    Args:
        ray: connected.
        watch: of the cluster.
        settings: how many workers.
        on_message: called with a line for the user.
        streaming: whether workers can report how far a task has come (not through ray://).
        spare: workers that are there already.
    """

    def __init__(
        self,
        ray: Any,
        watch: Watch,
        settings: RaySettings,
        *,
        on_message: Callable[[str], None],
        streaming: bool,
        spare: SpareWorkers | None = None,
    ) -> None:
        self.ray, self.watch, self.settings = ray, watch, settings
        self.on_message, self.streaming, self.spare = on_message, streaming, spare
        self.nodes: list[Node] = []
        self.workers = Workers(0, 0, 1)
        self.reached: dict[str, float] = {}
        """Of each task in hand, how far its worker says it has come."""
        self.left_out: dict[str, str] = {}
        """Machines that cannot work, by name, and why."""
        self._stopping = threading.Event()
        self._signals = 0

    @property
    def stopping(self) -> bool:
        """Whether the user has asked to stop."""
        return self._stopping.is_set()

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the first lets tasks in flight finish, a second does not."""
        self._signals += 1
        if self._signals > 1:
            raise KeyboardInterrupt
        self._stopping.set()
        self.on_message("stopping: finishing what is in flight (once more: stop at once)")

    def pause(self) -> None:
        """Look after the cluster and the user while something else than tasks is waited for."""
        self.watch.check()
        if self.stopping:
            raise KeyboardInterrupt

    def inspect(self, node: dict[str, Any]) -> Any:
        """Start `look` on a machine; return Ray's reference."""
        gpus = bool(node["Resources"].get("GPU")) and self.settings.gpus_per_worker != 0
        there = self.only_on(node["NodeID"])
        options = {"num_cpus": 0, "scheduling_strategy": there, "max_retries": 1}
        return self.ray.remote(look).options(**options).remote(gpus=gpus)

    def inspected(self, reference: Any, node: dict[str, Any]) -> Node | None:
        """Return what a machine has, from its answer to `inspect`; None if it is left out."""
        name, has = name_of(node), node["Resources"]
        try:
            report: NodeReport = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            self.leave_out(name, summary(error))
            return None
        different = differences(report)
        if different:
            self.leave_out(name, different)
            return None
        if report.niceness:
            self.on_message(
                f"{name}: workers run at niceness {report.niceness}, which any other process"
                " starves: export RAY_worker_niceness=0 before ray start"
            )
        memory = min(int(SPARE * report.machine.host_bytes), int(has.get("memory", 0)))
        gpu_memory = int(SPARE * report.machine.gpu_bytes)
        cpus, gpus = int(has.get("CPU", 0)), int(has.get("GPU", 0))
        return Node(name, cpus, gpus, memory, gpu_memory, node["NodeID"])

    def on_each_node(
        self, work: Callable[..., Iterator[Any]], args: Sequence[Any]
    ) -> Iterator[tuple[Node, Any]]:
        """Do a piece of work once on every machine that gets workers, on all at the same time.

        A machine on which it fails is left out, with the reason.

        Args:
            work: a generator function.
            args: small and picklable.

        Yields:
            Machine, and what the work yields there, as it comes.

        Raises:
            UserError: it failed on all of them.
            GoneError: the cluster went away.
        """
        running: dict[Any, Node] = {}
        returns = {"num_returns": "streaming"} if self.streaming else {}
        for node, count in self.workers.by_node:
            if count and node.name not in self.left_out:
                options = {"num_cpus": 0, "scheduling_strategy": self.only_on(node.id), **returns}
                task = self.ray.remote(work if self.streaming else _last)
                given = args if self.streaming else (work, *args)
                running[task.options(**options).remote(*given)] = node
        nodes = set(running.values())
        while running:
            self.pause()
            done, _ = self.ray.wait(list(running), num_returns=len(running), timeout=0.5)
            for reference in done:
                node = running[reference]
                try:
                    yield node, self.ray.get(next(reference) if self.streaming else reference)
                except StopIteration:
                    del running[reference]
                except self.ray.exceptions.RayError as error:
                    del running[reference]
                    cause = getattr(error, "cause", None)
                    self.leave_out(node.name, summary(cause or error))
                else:
                    if not self.streaming:
                        del running[reference]
        if nodes and all(node.name in self.left_out for node in nodes):
            raise UserError(f"no machine of the cluster can be used: {self.left_out_words}.")

    def leave_out(self, name: str, reason: str) -> None:
        """Use a machine no more, and say why."""
        reason = reason.rstrip(".")
        self.left_out[name] = reason
        self.on_message(f"left out: {name}: {reason}")

    @property
    def left_out_words(self) -> str:
        """What is left out and why, in one line."""
        return "; ".join(f"{name}: {reason}" for name, reason in self.left_out.items())

    def only_on(self, node_id: str) -> Any:
        """Return Ray's strategy for work on one machine and no other."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _last(work: Callable[..., Iterator[Any]], *args: Any) -> Any:
    """Do a piece of work that reports meanwhile; return its last report."""
    return list(work(*args))[-1]


def name_of(node: dict[str, Any]) -> str:
    """Return a machine's host name and address."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
