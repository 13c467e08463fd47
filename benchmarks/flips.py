"""Bits that another number type flips: inputs near zero fall to the other side of it."""

import dataclasses

import numpy as np
import torch

from benchmarks.forward import Bitmaps, Swept
from benchmarks.rounds import Findings
from benchmarks.subject import Subject
from neuronstats.bits import count

REFERENCE = torch.float32
OTHERS = (torch.float16, torch.bfloat16)
MILLION = 10**6


def flips(subject: Subject) -> Findings:
    """Record the subject's tokens in each type, and compare the bits with float32's."""
    reference = _recorded(subject, REFERENCE)
    activations = sum(int(count(bitmap).sum()) for bitmap in reference)
    cells = subject.num_tokens * subject.shape.neurons
    findings = Findings(facts=subject.facts)
    findings.facts.append(
        (
            "activated, float32",
            f"{activations / (cells * len(reference)):.2%} of {cells:.2e} a layer",
        )
    )
    for dtype in OTHERS:
        flipped = flipped_bits(_recorded(subject, dtype), reference)
        name = str(dtype).removeprefix("torch.")
        share = sum(flipped) / max(1, activations)
        by_layer = ", ".join(f"{MILLION * bits / cells:.1f}" for bits in flipped)
        findings.facts += [
            (f"{name}: flipped bits", f"{share:.3%} of the activations"),
            (f"{name}: of a million, by layer", by_layer),
        ]
    return findings


def flipped_bits(bitmaps: Bitmaps, reference: Bitmaps) -> list[int]:
    """Count the bits in which each layer's bitmaps differ."""
    pairs = zip(bitmaps, reference, strict=True)
    return [int(np.bitwise_count(ours ^ theirs).sum(dtype=np.int64)) for ours, theirs in pairs]


def _recorded(subject: Subject, dtype: torch.dtype) -> Bitmaps:
    return Swept(dataclasses.replace(subject, dtype=dtype)).record()
