"""Times ways of doing the same work in turn, round by round: noise meets all of them alike."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from neuronstats.units import short


@dataclass(frozen=True)
class Contestant:
    """One way of doing a piece of work."""

    name: str
    work: int
    """Units done by one call: tokens or activations."""
    call: Callable[[], object]
    cpu: Callable[[], float] = time.process_time
    """Processor seconds so far of whatever does it: this process, by default."""


@dataclass(frozen=True)
class Timing:
    """What one contestant took, a number a round."""

    name: str
    unit: str
    work: int
    seconds: tuple[float, ...]
    """By the clock, for one call."""
    cpu_seconds: tuple[float, ...]
    """Of all of its process's threads, for one call."""

    @property
    def rate(self) -> float:
        """Units per second, the median of the rounds."""
        return self.work / statistics.median(self.seconds)

    @property
    def rate_by_cpu(self) -> float:
        """Units per second of processor time, the median of the rounds."""
        return self.work / max(statistics.median(self.cpu_seconds), 1e-9)

    @property
    def spread(self) -> float:
        """The slowest round over the fastest: 1 on a machine without noise."""
        return max(self.seconds) / min(self.seconds)


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one contestant is as another."""

    what: str
    rounds: tuple[float, ...]
    best: float
    """Of the fastest rounds of both."""
    cpu: float | None
    """By the processor's time instead of the clock's; None where the work is on a GPU."""
    goal: float | None = None
    note: str = ""

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)


@dataclass(frozen=True)
class Value:
    """A number by itself, which should lie between bounds."""

    what: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether it lies between its bounds."""
        low, high = self.least, self.most
        return (low is None or self.value >= low) and (high is None or self.value <= high)

    @property
    def goal(self) -> str:
        """The bounds, for people; empty without any."""
        bounds = [("at least", self.least), ("at most", self.most)]
        return ", ".join(f"{word} {short(bound)}" for word, bound in bounds if bound is not None)


@dataclass
class Findings:
    """What one part of the benchmark found."""

    timings: list[Timing] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    mismatches: dict[str, int] = field(default_factory=dict)
    """For each path that must give the same result as the reference: what differs."""
    facts: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Rounds:
    """How often to measure, and where.

    Args:
        rounds: rounds that count; in each, every contestant is called once.
        warmups: rounds before, which do not count; at least 1 where short calls are repeated.
        on_gpu: wait for the GPU before the clock is read.
        report: called with a line after each round.
    """

    rounds: int
    warmups: int
    on_gpu: bool
    report: Callable[[str], None]

    def measure(
        self, contestants: Sequence[Contestant], unit: str, *, least_seconds: float = 0.0
    ) -> dict[str, Timing]:
        """Call all contestants in turn, round after round.

        Args:
            contestants: of one group, with different names.
            unit: of their work.
            least_seconds: a shorter call is repeated within its round until it takes so long.

        Returns:
            A timing each, by name, in their order.
        """
        wall: dict[str, list[float]] = {c.name: [] for c in contestants}
        cpu: dict[str, list[float]] = {c.name: [] for c in contestants}
        repeats = dict.fromkeys(wall, 1)
        gc.collect()
        warmups = max(self.warmups, 1 if least_seconds else 0)
        for number in range(-warmups, self.rounds):
            for contestant in contestants:
                name = contestant.name
                seconds, cpu_seconds = self._time(contestant, repeats[name])
                if number < 0:
                    repeats[name] = max(1, math.ceil(least_seconds / max(seconds, 1e-9)))
                else:
                    wall[name].append(seconds)
                    cpu[name].append(cpu_seconds)
            if number >= 0:
                self.report(f"round {number + 1} of {self.rounds}")
        return {
            c.name: Timing(c.name, unit, c.work, tuple(wall[c.name]), tuple(cpu[c.name]))
            for c in contestants
        }

    def _time(self, contestant: Contestant, repeats: int) -> tuple[float, float]:
        self._finish()
        wall, cpu = time.perf_counter(), contestant.cpu()
        for _ in range(repeats):
            contestant.call()
        self._finish()
        return (time.perf_counter() - wall) / repeats, (contestant.cpu() - cpu) / repeats

    def _finish(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def ratio(
        self,
        what: str,
        ours: Timing,
        theirs: Timing,
        *,
        goal: float | None = None,
        note: str = "",
    ) -> Ratio:
        """Compare two contestants of one group, each round with its own."""
        scale = ours.work / theirs.work
        by_round = zip(ours.seconds, theirs.seconds, strict=True)
        median = statistics.median
        cpu = scale * median(theirs.cpu_seconds) / max(median(ours.cpu_seconds), 1e-9)
        return Ratio(
            what,
            tuple(scale * b / a for a, b in by_round),
            scale * min(theirs.seconds) / min(ours.seconds),
            None if self.on_gpu else cpu,
            goal,
            note,
        )
