"""Packing and counting alone, on one core or a GPU, against NumPy's and torch's own operations."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.rounds import Contestant, Findings, Rounds, Timing, Value
from neuronstats import bits
from neuronstats.bits import tensors

LEAST_SECONDS = 0.1
ACTIVE = 0.05  # share of activations
PACK_GOAL, COUNT_GOAL = 4e9, 10e9  # activations per second and core; packing of half types
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def packing(
    rounds: Rounds,
    *,
    num_positions: int,
    num_neurons: int,
    num_sequences: int,
    device: torch.device,
) -> Findings:
    """Measure packing of each type, and counting of the packed bits.

    Args:
        rounds: how often.
        num_positions: of a sequence, a multiple of eight.
        num_neurons: of the layer.
        num_sequences: counted at once; an eighth of them, at least one, is packed at once.
        device: where the layer's output is.
    """
    layer = f"{num_neurons} neurons, {num_positions} positions, {num_sequences} sequences counted"
    findings = Findings(facts=[("random layer", layer)])
    generator = torch.Generator().manual_seed(0)
    few = max(1, num_sequences // 8)
    bias = float(torch.special.ndtri(torch.tensor(ACTIVE)))
    values = torch.empty(few * num_positions, num_neurons).normal_(bias, 1.0, generator=generator)
    for dtype in DTYPES:
        _pack(findings, rounds, values.to(device, dtype), num_positions)
    drawn = torch.rand(num_sequences * num_positions, num_neurons, generator=generator)
    _count(findings, rounds, (drawn < ACTIVE).to(device), num_positions)
    return findings


def _pack(findings: Findings, rounds: Rounds, values: Tensor, num_positions: int) -> None:
    """Add the ways of packing [sequence * position, neuron] to the findings."""
    name = str(values.dtype).removeprefix("torch.")
    num_sequences = len(values) // num_positions
    shape = (num_sequences, bits.packed_bytes(num_positions), values.shape[1])
    rows = torch.empty(shape, dtype=torch.uint8, device=values.device)

    def ours() -> NDArray[np.uint8]:
        tensors.pack_rows(values, num_positions, rows)
        return tensors.neuron_major(rows).cpu().numpy()

    def by_numpy() -> NDArray[np.uint8]:
        return np.packbits((values > 0).cpu().numpy().T, axis=1, bitorder="little")

    def by_torch() -> NDArray[np.uint8]:
        turned = (values > 0).t().contiguous().cpu().numpy()
        return np.packbits(turned, axis=1, bitorder="little")

    names = [f"{way}, {name}" for way in ("pack and transpose", "pack", "numpy", "torch")]
    calls = [ours, lambda: tensors.pack_rows(values, num_positions, rows), by_numpy, by_torch]
    contestants = [Contestant(n, values.numel(), c) for n, c in zip(names, calls, strict=True)]
    timings = rounds.measure(contestants, "activations", least_seconds=LEAST_SECONDS)
    findings.timings += timings.values()
    whole, alone, numpy, with_torch = (timings[n] for n in names)
    findings.ratios += [
        rounds.ratio(f"{name}: pack and transpose / numpy packbits(.T)", whole, numpy),
        rounds.ratio(f"{name}: pack and transpose / torch transpose, packbits", whole, with_torch),
    ]
    half = values.dtype != torch.float32
    goal = PACK_GOAL if half else None
    findings.values.append(_per_core(f"packing, {name}", alone, values.device, goal))
    reference = by_numpy().reshape(-1)
    findings.mismatches[f"packing, {name}"] = int(np.count_nonzero(ours().reshape(-1) != reference))


def _per_core(what: str, timing: Timing, device: torch.device, goal: float | None) -> Value:
    """Return a rate: on the CPU of one core, by its own time; the goal is the CPU's."""
    if device.type == "cpu":
        return Value(what, timing.rate_by_cpu, "activations/s of processor time", least=goal)
    return Value(what, timing.rate, "activations/s")


def _count(findings: Findings, rounds: Rounds, fired: Tensor, num_positions: int) -> None:
    """Add the ways of counting bool [sequence * position, neuron] to the findings."""
    num_sequences = len(fired) // num_positions
    by_sequence = fired.view(num_sequences, num_positions, -1)
    shape = (num_sequences, bits.packed_bytes(num_positions), fired.shape[1])
    rows = torch.empty(shape, dtype=torch.uint8, device=fired.device)
    for index, sequence in enumerate(by_sequence):
        tensors.pack_rows(sequence.float(), num_positions, rows[index : index + 1])
    bitmap = tensors.neuron_major(rows).cpu().numpy()
    calls = {
        "counts of packed bits": lambda: bits.count(bitmap),
        "counts by torch, bool sum": lambda: fired.sum(0),
        "position counts of packed bits": lambda: tensors.position_counts(rows, num_positions),
        "position counts by torch, bool sum": lambda: by_sequence.sum(0),
    }
    contestants = [Contestant(name, fired.numel(), call) for name, call in calls.items()]
    timings = rounds.measure(contestants, "activations", least_seconds=LEAST_SECONDS)
    findings.timings += timings.values()
    for what in ("counts", "position counts"):
        ours, theirs = timings[f"{what} of packed bits"], timings[f"{what} by torch, bool sum"]
        findings.ratios.append(rounds.ratio(f"{what}: packed / bool sum", ours, theirs))
    counted = timings["counts of packed bits"]
    findings.values.append(_per_core("counting", counted, fired.device, COUNT_GOAL))
    right = (fired.sum(0).cpu().numpy(), by_sequence.sum(0).cpu().numpy())
    found = (bits.count(bitmap), tensors.position_counts(rows, num_positions))
    for what, one, other in zip(("counts", "position counts"), found, right, strict=True):
        findings.mismatches[what] = int(np.count_nonzero(one != other))
