"""What the benchmark found -> lines for the console, a JSON file and a Markdown page."""

import dataclasses
import json
import os
import platform
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.rounds import Findings, Ratio, Timing, Value
from neuronstats.console import Console
from neuronstats.errors import SettingsError
from neuronstats.machine import probe
from neuronstats.units import short, size


def describe_machine(threads: int, device: torch.device) -> dict[str, Any]:
    """Say what this machine is, and how busy it is now."""
    machine = probe()
    return {
        "cpu": _cpu_model(),
        "cores": machine.cores,
        "threads": threads,
        "free_memory": size(machine.host_bytes),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_average": list(os.getloadavg()),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


class Report:
    """Gathers the findings of all parts."""

    def __init__(
        self, machine: dict[str, Any], subject: dict[str, Any], settings: dict[str, Any]
    ) -> None:
        """Begin.

        Args:
            machine: of `describe_machine`.
            subject: what is measured, for people.
            settings: the job's.
        """
        self.machine, self.subject, self.settings = machine, subject, settings
        self.parts: dict[str, Findings] = {}

    @property
    def mismatches(self) -> dict[str, int]:
        """All paths whose results were compared, and what differs."""
        parts = self.parts.values()
        return {path: number for part in parts for path, number in part.mismatches.items()}

    @property
    def noise(self) -> str:
        """How far a contestant's slowest round was from its fastest."""
        return _noise(self.parts.values(), self.machine)

    def show(self, console: Console) -> None:
        """Print the ratios with their goals."""
        for name, part in self.parts.items():
            rows = [(r.what, _judged(r)) for r in part.ratios]
            rows += [(v.what, _judged_value(v)) for v in part.values] + part.facts
            title = ": times as fast, median (least to most of the rounds)" if part.ratios else ""
            console.table(f"{name}{title}", rows)
        wrong = {path: number for path, number in self.mismatches.items() if number}
        right = len(self.mismatches) - len(wrong)
        differ = f"; these differ: {wrong}" if wrong else ""
        console.say(f"equal results: {right} of {len(self.mismatches)} paths{differ}")
        console.say(f"noise: {self.noise}")

    def write(self, folder: Path) -> None:
        """Write bench.json and bench.md."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bench.json").write_text(json.dumps(self._plain(), indent=1) + "\n")
        (folder / "bench.md").write_text("\n".join(self._page()) + "\n")

    def update_page(self, page: Path) -> None:
        """Replace, in a page, the sections of the parts that were measured; the rest stays.

        Raises:
            SettingsError: the page, or a section of it, is not there.
        """
        for name, part in self.parts.items():
            before, after = around_section(page, name)
            section = "\n".join(["", *self._goals(part)])
            page.write_text(f"{before}\n{section}\n{after}")

    def _goals(self, part: Findings) -> list[str]:
        cells = [_ratio_cells(ratio) for ratio in part.ratios]
        cells += [
            (v.what, f"{short(v.value)} {v.unit}".strip(), "", "", "", _goal(v), v.note)
            for v in part.values
        ]
        head = ("what", "median", "least to most", "best", "by CPU time", "goal", "")
        return [
            *_table(head, cells),
            *_listed(self.subject | self.machine),
            f"- noise: {_noise([part], self.machine)}",
            *[f"- {what}: {value}" for what, value in part.facts],
            "",
        ]

    def _plain(self) -> dict[str, Any]:
        parts = {
            name: {
                "ratios": [_plain_ratio(ratio) for ratio in part.ratios],
                "values": [_plain_value(value) for value in part.values],
                "timings": [_plain_timing(timing) for timing in part.timings],
                "mismatches": part.mismatches,
                "facts": dict(part.facts),
            }
            for name, part in self.parts.items()
        }
        return {
            "machine": self.machine,
            "subject": self.subject,
            "settings": self.settings,
            "noise": self.noise,
            "parts": parts,
        }

    def _page(self) -> list[str]:
        lines = ["# How fast it is here", "", *_listed(self.subject), *_listed(self.machine)]
        lines += [f"- noise: {self.noise}", ""]
        for name, part in self.parts.items():
            lines += [f"## {name}", ""]
            lines += _table(
                ("times as fast", "median", "least to most", "best", "by CPU time", "goal", ""),
                [_ratio_cells(ratio) for ratio in part.ratios],
            )
            lines += _table(
                ("contestant", "per second", "unit", "slowest / fastest"),
                [(t.name, short(t.rate), t.unit, f"{t.spread:.2f}") for t in part.timings],
            )
            lines += [f"- {v.what}: {_judged_value(v)}" for v in part.values]
            lines += [f"- {what}: {value}" for what, value in part.facts]
            lines += [f"- differences, {path}: {n}" for path, n in part.mismatches.items()]
            lines.append("")
        return lines


def around_section(page: Path, part: str) -> tuple[str, str]:
    """Give a page's text before and after a part's section.

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


def _noise(parts: Iterable[Findings], machine: dict[str, Any]) -> str:
    spreads = [timing.spread for part in parts for timing in part.timings]
    if not spreads:
        return "nothing was timed in turn"
    middle, most = statistics.median(spreads), max(spreads)
    start, end = machine["load_average"][0], machine["load_average_end"][0]
    return (
        f"slowest round / fastest: {middle:.2f} in the median, {most:.2f} at most;"
        f" load average {start:.1f} to {end:.1f} on {machine['cores']} cores"
    )


def _judged(ratio: Ratio) -> str:
    words = f"{ratio.value:.3g} ({min(ratio.rounds):.3g} to {max(ratio.rounds):.3g})"
    if ratio.goal is not None:
        words += f"  goal {ratio.goal:g}{'' if ratio.value >= ratio.goal else ', missed'}"
    return f"{words}  {ratio.note}".rstrip()


def _judged_value(value: Value) -> str:
    words = f"{short(value.value)} {value.unit}".strip()
    if value.goal:
        words += f"  goal {value.goal}{'' if value.met else ', missed'}"
    return f"{words}  {value.note}".rstrip()


def _goal(value: Value) -> str:
    return f"{value.goal}: {'met' if value.met else 'missed'}" if value.goal else ""


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


def _plain_ratio(ratio: Ratio) -> dict[str, Any]:
    return {
        "what": ratio.what,
        "median": ratio.value,
        "rounds": ratio.rounds,
        "best": ratio.best,
        "cpu": ratio.cpu,
        "goal": ratio.goal,
        "met": None if ratio.goal is None else ratio.value >= ratio.goal,
        "note": ratio.note,
    }


def _plain_value(value: Value) -> dict[str, Any]:
    return dataclasses.asdict(value) | {"met": value.met if value.goal else None}


def _plain_timing(timing: Timing) -> dict[str, Any]:
    return {
        "name": timing.name,
        "unit": timing.unit,
        "work": timing.work,
        "per_second": timing.rate,
        "seconds": timing.seconds,
        "cpu_seconds": timing.cpu_seconds,
    }


def _listed(values: dict[str, Any]) -> list[str]:
    return [f"- {name.replace('_', ' ')}: {_words(value)}" for name, value in values.items()]


def _words(value: Any) -> str:
    return ", ".join(f"{v:.2f}" for v in value) if isinstance(value, list) else str(value)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]
