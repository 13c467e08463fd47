"""Which machine gets how many workers: arithmetic on what each machine has, without Ray."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from neuronstats.cluster.settings import RaySettings
from neuronstats.errors import SettingsError
from neuronstats.machine import SPARE, Machine
from neuronstats.units import size

NAMED = 4  # machines that a line names before it counts the others


@dataclass(frozen=True)
class Node:
    """What one machine has for workers."""

    name: str
    cpus: int
    gpus: int
    memory: int
    """Bytes of host memory that may be planned with."""
    gpu_memory: int = 0
    """Bytes of its smallest GPU's memory that may be planned with."""
    id: str = ""
    """Ray's; empty before Ray is started."""

    @classmethod
    def of(cls, machine: Machine, name: str = "this machine") -> "Node":
        """Return what may be planned with of a machine that is ours alone."""
        spare = (int(SPARE * machine.host_bytes), int(SPARE * machine.gpu_bytes))
        return cls(name, machine.cores, machine.gpus, *spare)


@dataclass(frozen=True)
class Workers:
    """How many workers there are, and what each has."""

    count: int
    gpus: int
    cpus: int
    memory: int | None = field(default=None, compare=False)
    """Bytes of host memory of each; None: not known yet."""
    gpu_memory: int = field(default=0, compare=False)
    """Bytes of its GPU's memory that each takes."""
    by_node: tuple[tuple[Node, int], ...] = field(default=(), compare=False)

    def room(self, node: Node) -> int:
        """Return how many of these workers a machine could hold."""
        rooms = [node.cpus // self.cpus]
        if self.gpus:
            rooms.append(node.gpus // self.gpus if node.gpu_memory >= self.gpu_memory else 0)
        if self.memory:
            rooms.append(node.memory // self.memory)
        return min(rooms)

    def __str__(self) -> str:
        """Write the workers by machine, for people."""
        used = [(node, count) for node, count in self.by_node if count]
        if len(used) < 2:
            return str(self.count)
        named = ", ".join(f"{node.name} {count}" for node, count in used[:NAMED])
        more = f" and {len(used) - NAMED} more machines" if len(used) > NAMED else ""
        return f"{self.count}: {named}{more}"

    def __format__(self, spec: str) -> str:
        """Format as the sentence of __str__."""
        return format(str(self), spec)


def place(
    settings: RaySettings,
    nodes: Sequence[Node],
    *,
    memory: int | None = None,
    gpu_memory: int = 0,
    per_core: bool = False,
) -> Workers:
    """Resolve the settings against the machines.

    Args:
        settings: how many workers, or auto.
        nodes: the machines.
        memory: bytes of host memory that a worker takes; None: not known yet.
        gpu_memory: bytes of its GPU's memory that it takes.
        per_core: auto is one worker per core. Else one per GPU, or one per machine.

    Raises:
        SettingsError: the machines lack what is asked for: Ray would wait for ever.
    """
    gpus, cpus = settings.gpus_per_worker, settings.cpus_per_worker
    if gpus == "auto":
        gpus = int(not per_core and any(node.gpus for node in nodes))
    if cpus == "auto":
        cpus = 1 if per_core else _shared_cpus(settings, nodes, int(gpus))
    each = Workers(0, int(gpus), int(cpus), memory, gpu_memory)
    rooms = [each.room(node) for node in nodes]
    counts = rooms
    if isinstance(settings.workers, int):
        counts = _spread(settings.workers, rooms)
    elif not gpus and not per_core:
        counts = [min(1, room) for room in rooms]
    if not sum(counts) or (isinstance(settings.workers, int) and sum(counts) < settings.workers):
        there = Node("", sum(n.cpus for n in nodes), sum(n.gpus for n in nodes), 0)
        raise SettingsError(
            f"ray.workers={settings.workers} with {_amounts(each.cpus, each.gpus, memory)} each do"
            f" not fit: there are {_amounts(there.cpus, there.gpus, memory and _memory(nodes))} on"
            f" {len(nodes)} machine(s), which is enough for {sum(rooms)}. Set ray.workers,"
            " ray.cpus_per_worker or ray.gpus_per_worker lower."
        )
    return replace(each, count=sum(counts), by_node=tuple(zip(nodes, counts, strict=True)))


def _memory(nodes: Sequence[Node]) -> int:
    return sum(node.memory for node in nodes)


def _amounts(cpus: int, gpus: int, memory: int | None) -> str:
    if memory is None:
        return f"{cpus} cores and {gpus} GPUs"
    return f"{cpus} cores, {gpus} GPUs and {size(memory)} of memory"


def _spread(count: int, rooms: Sequence[int]) -> list[int]:
    """Count the workers of each machine, which get one each in turn, as far as there is room."""
    counts = [0] * len(rooms)
    while count > sum(counts) and counts != list(rooms):
        for index, room in enumerate(rooms):
            counts[index] += int(counts[index] < room and sum(counts) < count)
    return counts


def _shared_cpus(settings: RaySettings, nodes: Sequence[Node], gpus: int) -> int:
    """Share out the smallest machine's cores."""
    able = [node for node in nodes if node.cpus and node.gpus >= gpus]
    asked = settings.workers if isinstance(settings.workers, int) else 1
    each = -(-asked // max(1, len(able)))
    shares = [node.cpus // (node.gpus // gpus if gpus else each) for node in able]
    return max(1, min(shares, default=1))
