"""N-grams the slow way, word by word of their definition: loops, Counter, whole numbers."""

import functools
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

Ngram = tuple[int, ...]
Row = dict[str, object]


def ngram_ending_at(sequence: list[int], position: int, n: int, bos: int) -> Ngram | None:
    """The n-gram that ends here; None before the n-th position, or where it holds BOS."""
    if position < n - 1:
        return None
    ids = tuple(sequence[position - n + 1 : position + 1])
    return None if bos in ids else ids


def count_ngrams(tokens: list[list[int]], bos: int, n: int) -> Counter[Ngram]:
    """How often each n-gram occurs."""
    counts: Counter[Ngram] = Counter()
    for sequence in tokens:
        for position in range(len(sequence)):
            ids = ngram_ending_at(sequence, position, n, bos)
            if ids is not None:
                counts[ids] += 1
    return counts


def count_triggers(
    fires: list[list[bool]], tokens: list[list[int]], bos: int, n: int
) -> Counter[Ngram]:
    """How often each n-gram triggered the neuron: the activations that count."""
    counts: Counter[Ngram] = Counter()
    for i, sequence in enumerate(tokens):
        for position in range(len(sequence)):
            if fires[i][position]:
                ids = ngram_ending_at(sequence, position, n, bos)
                if ids is not None:
                    counts[ids] += 1
    return counts


def falling(counts: Counter[Ngram]) -> list[Ngram]:
    """N-grams by falling activations, equal ones by rising token ids."""
    return sorted(counts, key=lambda ids: (-counts[ids], ids))


@functools.cache
def _exact(share: float) -> Fraction:
    return Fraction(str(share))


def at_least(part: int, whole: int, share: float) -> bool:
    """Whether part / whole >= share, exactly: 0.95 is 19/20, not the float next to it."""
    exact = _exact(share)
    return part * exact.denominator >= whole * exact.numerator


@dataclass
class Detection:
    """What the three steps find: `detected` is what step 2 keeps of the cover."""

    cover: list[Ngram]
    detected: list[Ngram]
    detector: bool
    detector_loose: bool


def cover(counts: Counter[Ngram], share: float) -> list[Ngram]:
    """The fewest n-grams, the most active first, that account for the share of the activations."""
    total, part = counts.total(), 0
    taken: list[Ngram] = []
    for ids in falling(counts):
        if at_least(part, total, share):
            break
        taken.append(ids)
        part += counts[ids]
    return taken


def detect(counts: Counter[Ngram], occurrences: Counter[Ngram], n: int, settings) -> Detection:
    """The three steps of section 4; `settings` has the names of the contract.

    `detector_loose` is by the other reading of step 2: from all n-grams that triggered the neuron.
    """
    total = counts.total()

    def is_detected(ids: Ngram) -> bool:
        often = occurrences[ids] >= settings.min_count
        return often and at_least(counts[ids], occurrences[ids], settings.detect_rate)

    def enough(kept: list[Ngram]) -> bool:
        part = sum(counts[ids] for ids in kept)
        return at_least(part, total, settings.cover_share)

    covering = cover(counts, settings.cover_share)
    kept = [ids for ids in covering if is_detected(ids)]
    if not 0 < len(covering) <= settings.max_cover[n]:
        return Detection(covering, kept, detector=False, detector_loose=False)
    kept_loose = [ids for ids in counts if is_detected(ids)]
    return Detection(covering, kept, enough(kept), enough(kept_loose))


def ngram_rows(
    ngrams: list[Ngram], counts: Counter[Ngram], occurrences: Counter[Ngram]
) -> list[Row]:
    total = counts.total()
    return [
        {
            "token_ids": list(ids),
            "occurrences": occurrences[ids],
            "activations": counts[ids],
            "rate": counts[ids] / occurrences[ids],
            "share": counts[ids] / total,
        }
        for ids in ngrams
    ]
