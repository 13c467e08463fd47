"""A connection to Ray: the machines there are, the workers asked for, what the user wants."""

import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from neuronstats.cluster.inspection import NodeReport, differences, look
from neuronstats.cluster.nodes import Node, Workers
from neuronstats.cluster.settings import RaySettings
from neuronstats.cluster.watch import Watch
from neuronstats.cluster.words import summary
from neuronstats.machine import SPARE


class Connection:
    """What is known of the cluster, and the workers that the settings ask for.

    Args:
        ray: connected.
        watch: of the cluster.
        settings: how many workers.
        tell: called with a line for the user.
        streaming: whether workers can report how far a task has come (not through ray://).
    """

    def __init__(
        self,
        ray: Any,
        watch: Watch,
        settings: RaySettings,
        *,
        tell: Callable[[str], None],
        streaming: bool,
    ) -> None:
        self.ray, self.watch, self.settings = ray, watch, settings
        self.tell, self.streaming = tell, streaming
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
        self.tell("stopping: finishing what is in flight (once more: stop at once)")

    def pause(self) -> None:
        """Look after the cluster and the user while something else than tasks is waited for."""
        self.watch.check()
        if self.stopping:
            raise KeyboardInterrupt

    def ask(self, node: dict[str, Any]) -> Any:
        """Start `look` on a machine; return Ray's reference."""
        gpus = bool(node["Resources"].get("GPU")) and self.settings.gpus_per_worker != 0
        there = self.on(node["NodeID"])
        options = {"num_cpus": 0, "scheduling_strategy": there, "max_retries": 1}
        return self.ray.remote(look).options(**options).remote(gpus=gpus)

    def met(self, reference: Any, node: dict[str, Any]) -> Node | None:
        """Return what a machine has, from its answer to `ask`; None if it is left out."""
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
            self.tell(
                f"{name}: workers run at niceness {report.niceness}, which any other process"
                " starves: export RAY_worker_niceness=0 before ray start"
            )
        memory = min(int(SPARE * report.machine.host_bytes), int(has.get("memory", 0)))
        gpu_memory = int(SPARE * report.machine.gpu_bytes)
        cpus, gpus = int(has.get("CPU", 0)), int(has.get("GPU", 0))
        return Node(name, cpus, gpus, memory, gpu_memory, node["NodeID"])

    def leave_out(self, name: str, reason: str) -> None:
        """Use a machine no more, and say why."""
        reason = reason.rstrip(".")
        self.left_out[name] = reason
        self.tell(f"left out: {name}: {reason}")

    @property
    def left_out_words(self) -> str:
        """What is left out and why, in one line."""
        return "; ".join(f"{name}: {reason}" for name, reason in self.left_out.items())

    def on(self, node_id: str) -> Any:
        """Return Ray's strategy for work on one machine and no other."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node_id, soft=False)


def name_of(node: dict[str, Any]) -> str:
    """Return a machine's host name and address."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
