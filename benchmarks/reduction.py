"""The n-gram reduction against np.unique and collections.Counter, neuron by neuron, on one core."""

import contextlib
import ctypes
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.rounds import Contestant, Findings, Rounds
from neuronstats import bits
from neuronstats.machine import peak_host_bytes
from neuronstats.stats.ngram_counts import count_ngrams, projected_bytes
from neuronstats.stats.ngram_ids import NgramIds, build_ngram_ids
from neuronstats.stats.settings import NgramSettings
from neuronstats.units import short

VOCABULARY, BOS, POSITIONS = 50272, 2, 512
LENGTHS = [1, 2, 3]
LIMIT = 50
# Of each twenty neurons: how many, and the share of tokens on which they are activated.
MIX = ((8, 0.0), (4, 1e-4), (3, 1e-3), (2, 1e-2), (1, 0.1))
DETECTORS = 2  # of each twenty: activated on all occurrences of one to three tokens
GROUP = 20
SHARE = (19, 20)  # of the default cover_share
GOALS = {"exact": (12.0, 40.0), "limited": (50.0, 150.0)}  # against np.unique, against Counter
LENGTH_GOALS = {1: 10.0, 2: 4.0, 3: 4.0}  # against np.unique, at ONE_PERCENT
ONE_PERCENT, ONE_PERCENT_NEURONS = 1e-2, 10

Covers = list[list[int]]  # by length, of each neuron
Result = TypeVar("Result")
CountsOf = Callable[[NDArray[np.uint32]], list[int]]


def reduction(rounds: Rounds, *, num_tokens: int, num_neurons: int) -> Findings:
    """Measure covering numbers for n = 1, 2, 3 of neurons of mixed densities.

    Args:
        rounds: how often.
        num_tokens: of the corpus, about.
        num_neurons: a multiple of GROUP.
    """
    tokens = zipf_tokens(max(1, num_tokens // POSITIONS), POSITIONS)
    corpus = build_ngram_ids(tokens, BOS, LENGTHS)
    bitmap = mixed_bits(tokens, num_neurons)
    activations = int(bits.count(bitmap).sum())
    exact = NgramSettings(ngrams=LENGTHS)
    limited = NgramSettings(ngrams=LENGTHS, cover_limit=LIMIT, top_triggers=0)
    calls: dict[str, Callable[[], Covers]] = {
        "exact covers": lambda: _ours(bitmap, corpus, exact),
        f"cover_limit={LIMIT}": lambda: _ours(bitmap, corpus, limited),
        "np.unique": lambda: baseline(bitmap, corpus, by_unique),
        "Counter": lambda: baseline(bitmap, corpus, by_counter),
    }
    names = list(calls)
    contestants = [Contestant(name, activations, call) for name, call in calls.items()]
    timings = rounds.measure(contestants, "activations")
    findings = Findings(timings=list(timings.values()))
    for ours, kind in zip(names[:2], GOALS, strict=True):
        for theirs, goal in zip(names[2:], GOALS[kind], strict=True):
            findings.ratios.append(
                rounds.ratio(f"{ours} / {theirs}", timings[ours], timings[theirs], goal=goal)
            )
    _by_length(findings, rounds, tokens, corpus)
    num_sequences, num_positions = tokens.shape
    terms = projected_bytes(num_neurons, num_sequences, num_positions, exact)
    bound = sum(terms.values())
    findings.facts += [
        ("corpus", f"{tokens.size:.2e} tokens, {len(corpus[3].occurrences):.2e} trigrams"),
        ("neurons", f"{num_neurons}, active on {activations / tokens.size / num_neurons:.2%}"),
        ("memory bound of exact covers", f"{bound / 1e6:.0f} MB"),
    ]
    results = {}
    for name, call in calls.items():
        _, before = peak_of(lambda: None)
        results[name], peak = peak_of(call)
        if peak is not None and before is not None:
            findings.facts.append((f"peak memory of {name}", f"{(peak - before) / 1e6:.0f} MB"))
    truth = np.array(results["np.unique"])
    wanted = dict.fromkeys(names, truth) | {names[1]: np.minimum(truth, LIMIT + 1)}
    for name, found in results.items():
        findings.mismatches[f"covers, {name}"] = int((np.array(found) != wanted[name]).sum())
    return findings


def _by_length(
    findings: Findings, rounds: Rounds, tokens: NDArray[np.uint16], corpus: dict[int, NgramIds]
) -> None:
    """Measure each length by itself, on neurons that are activated on one token of a hundred."""
    generator = np.random.default_rng(2)
    bitmap = np.stack(
        [
            bits.pack(generator.random(tokens.shape, np.float32) < ONE_PERCENT)
            for _ in range(ONE_PERCENT_NEURONS)
        ]
    )
    activations = int(bits.count(bitmap).sum())
    for n, goal in LENGTH_GOALS.items():
        alone = NgramSettings(ngrams=[n])
        calls: dict[str, Callable[[], Covers]] = {
            f"n={n}, 1 %": lambda alone=alone, n=n: _ours(bitmap, corpus, alone, [n]),  # type: ignore[misc]
            f"n={n}, np.unique": lambda n=n: baseline(bitmap, corpus, by_unique, [n]),  # type: ignore[misc]
            f"n={n}, Counter": lambda n=n: baseline(bitmap, corpus, by_counter, [n]),  # type: ignore[misc]
        }
        contestants = [Contestant(name, activations, call) for name, call in calls.items()]
        timings = rounds.measure(contestants, "activations")
        findings.timings += timings.values()
        rates = ", ".join(f"{name} {short(timing.rate)}" for name, timing in timings.items())
        findings.facts.append((f"activations/s of one core, n={n}", rates))
        ours, *theirs = timings
        for other, least in zip(theirs, (goal, None), strict=True):
            findings.ratios.append(
                rounds.ratio(f"{ours} / {other}", timings[ours], timings[other], goal=least)
            )
        covers = {name: call() for name, call in calls.items()}
        for other in theirs:
            differ = np.array(covers[ours]) != np.array(covers[other])
            findings.mismatches[f"covers, {other}"] = int(differ.sum())


def zipf_tokens(num_sequences: int, num_positions: int) -> NDArray[np.uint16]:
    """Draw tokens [sequence, position]: Zipf's law, and few successors to most tokens."""
    generator = np.random.default_rng(0)
    weights = 1 / (np.arange(1, VOCABULARY - 3) + 2.7)
    steps = np.cumsum(weights / weights.sum())
    tokens = np.empty((num_sequences, num_positions), np.uint16)
    tokens[:, 0] = BOS
    for position in range(1, num_positions):
        drawn = 4 + np.searchsorted(steps, generator.random(num_sequences))
        branch = generator.geometric(0.4, num_sequences)
        successor = 4 + (tokens[:, position - 1].astype(np.int64) * 7919 + branch) % 20000
        follows = generator.random(num_sequences) < 0.4
        tokens[:, position] = np.where(follows, successor, np.minimum(drawn, VOCABULARY - 1))
    return tokens


def mixed_bits(tokens: NDArray[np.uint16], num_neurons: int) -> NDArray[np.uint8]:
    """Draw bits [neuron, sequence, byte] of the densities of MIX, and some detectors."""
    generator = np.random.default_rng(1)
    densities = [density for count, density in MIX for _ in range(count)]
    counts = np.bincount(tokens.ravel(), minlength=VOCABULARY)
    middling = np.argsort(-counts)[20:2000]  # neither the most frequent tokens nor rare ones
    rows = []
    for neuron in range(num_neurons):
        kind = neuron % GROUP
        if kind < len(densities):
            fired = generator.random(tokens.shape, np.float32) < densities[kind]
        else:
            fired = np.isin(tokens, generator.choice(middling, 1 + neuron % 3, replace=False))
        rows.append(bits.pack(fired))
    assert GROUP - len(densities) == DETECTORS
    return np.stack(rows)


def _ours(
    bitmap: NDArray[np.uint8],
    corpus: dict[int, NgramIds],
    settings: NgramSettings,
    lengths: Sequence[int] = LENGTHS,
) -> Covers:
    found = count_ngrams(bitmap, corpus, settings)
    return [found[n].cover.tolist() for n in lengths]


def baseline(
    bitmap: NDArray[np.uint8],
    corpus: dict[int, NgramIds],
    counts_of: CountsOf,
    lengths: Sequence[int] = LENGTHS,
) -> Covers:
    """Count n-grams neuron by neuron, with the n-gram ids already there."""
    covers: Covers = [[] for _ in lengths]
    for row in bitmap:
        positions = np.flatnonzero(np.unpackbits(row.reshape(-1), bitorder="little"))
        for n, own in zip(lengths, covers, strict=True):
            ids = corpus[n].ids[positions]
            own.append(_cover(counts_of(ids[ids < len(corpus[n].occurrences)])))
    return covers


def by_unique(ids: NDArray[np.uint32]) -> list[int]:
    """Count the distinct ids with np.unique; give the counts, falling."""
    return np.sort(np.unique(ids, return_counts=True)[1])[::-1]  # type: ignore[return-value]


def by_counter(ids: NDArray[np.uint32]) -> list[int]:
    """Count the distinct ids with collections.Counter; give the counts, falling."""
    return sorted(Counter(ids.tolist()).values(), reverse=True)


def _cover(falling: list[int]) -> int:
    """Give the fewest n-grams that make up the cover share of all counts."""
    sums = np.cumsum(falling, dtype=np.int64)
    return int(np.searchsorted(sums * SHARE[1], sums[-1] * SHARE[0])) + 1 if len(sums) else 0


def peak_of(
    call: Callable[[], Result], clock: list[tuple[float, float]] | None = None
) -> tuple[Result, int | None]:
    """Call, and give the most memory that the process held meanwhile; None where not told.

    Args:
        call: what to call.
        clock: its seconds by the clock and of the processor are appended.
    """
    with contextlib.suppress(AttributeError):  # glibc's: what is free must not hide what is taken
        ctypes.CDLL(None).malloc_trim(0)
    told = True
    try:
        Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    except OSError:
        told = False
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    if clock is not None:
        clock.append((time.perf_counter() - wall, time.process_time() - cpu))
    return result, peak_host_bytes() if told else None
