"""What the benchmark found -> sections of a Markdown page."""

import os
import platform
import statistics
from pathlib import Path

import torch

from benchmarks.rounds import Findings, Ratio, Value
from benchmarks.settings import THREADS
from neuronstats.errors import SettingsError
from neuronstats.machine import probe
from neuronstats.units import short, size

HEAD = ("what", "median", "least to most", "best", "by CPU time", "goal", "")


class Report:
    """Gathers the findings of all parts, and writes a section for each."""

    def __init__(self, device: torch.device) -> None:
        self.parts: dict[str, Findings] = {}
        self._machine = _describe_machine(device)
        self._load_before = os.getloadavg()[0]
        self._noise: dict[str, str] = {}

    def add(self, name: str, findings: Findings) -> None:
        """Add a part that was just measured."""
        self.parts[name] = findings
        spreads = [timing.spread for timing in findings.timings] or [1.0]
        load, self._load_before = self._load_before, os.getloadavg()[0]
        self._noise[name] = (
            f"slowest round / fastest: {statistics.median(spreads):.2f} in the median,"
            f" {max(spreads):.2f} at most; load average {load:.1f} to {self._load_before:.1f}"
        )

    @property
    def mismatches(self) -> dict[str, int]:
        """All paths whose results were compared, and what differs."""
        parts = self.parts.values()
        return {path: number for part in parts for path, number in part.mismatches.items()}

    @property
    def equal_results(self) -> str:
        """Describe how many paths gave the results that they should."""
        wrong = {path: number for path, number in self.mismatches.items() if number}
        right, all_paths = len(self.mismatches) - len(wrong), len(self.mismatches)
        differ = f"; these differ: {wrong}" if wrong else ""
        return f"equal results: {right} of {all_paths} paths{differ}"

    def section(self, name: str) -> str:
        """Write a part's table and what it was measured on."""
        part = self.parts[name]
        rows = [_ratio_cells(ratio) for ratio in part.ratios]
        rows += [_value_cells(value) for value in part.values]
        lines = [HEAD, ("---",) * len(HEAD), *rows] if rows else []
        facts = [*part.facts, *self._machine, ("noise", self._noise[name])]
        facts += [(f"differences, {path}", str(n)) for path, n in part.mismatches.items() if n]
        return "\n".join(
            [
                *["| " + " | ".join(line) + " |" for line in lines],
                "",
                *[f"- {what}: {words}" for what, words in facts],
            ]
        )

    def write(self, path: Path) -> None:
        """Write a page of all sections."""
        sections = [f"## {name}\n\n{self.section(name)}\n" for name in self.parts]
        path.write_text("\n".join(["# How fast it is here\n", *sections]))

    def update(self, page: Path) -> None:
        """Replace, in a page, the sections of the parts that were measured; the rest stays.

        Raises:
            SettingsError: the page, or a section of it, is not there.
        """
        for name in self.parts:
            before, after = around_section(page, name)
            page.write_text(f"{before}\n\n{self.section(name)}\n\n{after}")


def around_section(page: Path, part: str) -> tuple[str, str]:
    """Return a page's text before and after a part's section.

    A section stands between two comments, `<!-- bench PART -->` and `<!-- end PART -->`.

    Raises:
        SettingsError: the page, or the section, is not there.
    """
    text = page.read_text() if page.is_file() else ""
    first, last = f"<!-- bench {part} -->", f"<!-- end {part} -->"
    before, found, rest = text.partition(first)
    _, ended, after = rest.partition(last)
    if not found or not ended:
        raise SettingsError(f"page={page}: expected a page with {first} ... {last}.")
    return before + first, last + after


def _describe_machine(device: torch.device) -> list[tuple[str, str]]:
    machine = probe()
    threads = f"{THREADS} of {machine.cores} cores, {size(machine.host_bytes)} free"
    gpu = [("gpu", torch.cuda.get_device_name(device))] if device.type == "cuda" else []
    versions = f"{torch.__version__}, python {platform.python_version()}"
    return [("cpu", f"{_cpu_model()}, {threads}"), *gpu, ("torch", versions)]


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")  # Linux alone has it
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _value_cells(value: Value) -> tuple[str, ...]:
    goal = f"{value.goal}: {'met' if value.met else 'missed'}" if value.goal else ""
    return value.what, f"{short(value.value)} {value.unit}".strip(), "", "", "", goal, value.note


def _ratio_cells(ratio: Ratio) -> tuple[str, ...]:
    goal = ""
    if ratio.goal is not None:
        goal = f"{ratio.goal:g} {'met' if ratio.value >= ratio.goal else 'missed'}"
    return (
        ratio.what,
        f"{ratio.value:.3g}",
        f"{min(ratio.rounds):.3g} to {max(ratio.rounds):.3g}",
        f"{ratio.best:.3g}",
        "" if ratio.cpu is None else f"{ratio.cpu:.3g}",
        goal,
        ratio.note,
    )
