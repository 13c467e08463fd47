"""The n-gram reduction against np.unique and collections.Counter, neuron by neuron, on one core."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.rounds import Contestant, Findings, Rounds
from benchmarks.settings import Sizes
from benchmarks.subject import BOS, VOCABULARY
from neuronstats import bits
from neuronstats.stats.ngram_counts import count_ngrams, projected_bytes
from neuronstats.stats.ngram_ids import NgramIds, build_ngram_ids
from neuronstats.stats.settings import NgramSettings
from neuronstats.units import short, size

POSITIONS = 512
LENGTHS = [1, 2, 3]
# Of each twenty neurons: how many, and the share of tokens on which they are activated.
MIX = ((8, 0.0), (4, 1e-4), (3, 1e-3), (2, 1e-2), (1, 0.1))
DETECTORS = 2  # of each twenty: activated on all occurrences of one to three tokens
GROUP = 20
SHARE = (19, 20)  # of the default cover_share
GOALS = (12.0, 40.0)  # against np.unique, against Counter
LENGTH_GOALS = {1: 10.0, 2: 4.0, 3: 4.0}  # against np.unique, at ONE_PERCENT
ONE_PERCENT, ONE_PERCENT_NEURONS = 1e-2, 10

Covers = list[list[int]]  # by length, of each neuron
CountsOf = Callable[[NDArray[np.uint32]], list[int]]


def reduction(rounds: Rounds, sizes: Sizes) -> Findings:
    """Measure covering numbers for n = 1, 2, 3 of neurons of mixed densities, then each n alone."""
    tokens = zipf_tokens(max(1, sizes.reduce_tokens // POSITIONS), POSITIONS)
    corpus = build_ngram_ids(tokens, BOS, LENGTHS)
    bitmap = mixed_bits(tokens, sizes.reduce_neurons)
    findings = Findings()
    _compare(findings, rounds, "exact covers", bitmap, corpus, LENGTHS, GOALS)
    generator = np.random.default_rng(2)
    draw = (generator.random(tokens.shape, np.float32) for _ in range(ONE_PERCENT_NEURONS))
    sparse = np.stack([bits.pack(drawn < ONE_PERCENT) for drawn in draw])
    for n, goal in LENGTH_GOALS.items():
        _compare(findings, rounds, f"n={n}, 1 %", sparse, corpus, [n], (goal, None))
    sequences, positions = tokens.shape
    settings = NgramSettings(ngrams=LENGTHS)
    bound = projected_bytes(sizes.reduce_neurons, sequences, positions, settings)
    share = int(bits.count(bitmap).sum()) / tokens.size / sizes.reduce_neurons
    findings.facts += [
        ("tokens", f"{tokens.size:.2e}, by Zipf's law"),
        ("trigrams", f"{len(corpus[3].occurrences):.2e}"),
        ("neurons", f"{sizes.reduce_neurons}, active on {share:.2%}"),
        ("memory bound of exact covers", size(sum(bound.values()))),
    ]
    return findings


def _compare(
    findings: Findings,
    rounds: Rounds,
    name: str,
    bitmap: NDArray[np.uint8],
    corpus: dict[int, NgramIds],
    lengths: list[int],
    goals: Sequence[float | None],
) -> None:
    """Measure our way and the two plain ones on the same neurons, and compare their results."""

    def ours() -> Covers:
        found = count_ngrams(bitmap, corpus, NgramSettings(ngrams=lengths))
        return [found[n].cover.tolist() for n in lengths]

    calls: dict[str, Callable[[], Covers]] = {
        name: ours,
        f"{name}, np.unique": lambda: plain_covers(bitmap, corpus, by_unique, lengths),
        f"{name}, Counter": lambda: plain_covers(bitmap, corpus, by_counter, lengths),
    }
    activations = int(bits.count(bitmap).sum())
    contestants = [Contestant(way, activations, call) for way, call in calls.items()]
    timings = rounds.measure(contestants, "activations")
    findings.timings += timings.values()
    rates = ", ".join(f"{way} {short(timing.rate)}" for way, timing in timings.items())
    findings.facts.append(("activations/s of one core", rates))
    mine = np.array(ours())
    for (theirs, call), goal in zip(list(calls.items())[1:], goals, strict=True):
        ratio = rounds.ratio(f"{name} / {theirs}", timings[name], timings[theirs], goal=goal)
        findings.ratios.append(ratio)
        findings.mismatches[f"covers, {theirs}"] = int((mine != np.array(call())).sum())


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


def plain_covers(
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
    """Count the distinct ids with np.unique; return the counts, falling."""
    return np.sort(np.unique(ids, return_counts=True)[1])[::-1]  # type: ignore[return-value]


def by_counter(ids: NDArray[np.uint32]) -> list[int]:
    """Count the distinct ids with collections.Counter; return the counts, falling."""
    return sorted(Counter(ids.tolist()).values(), reverse=True)


def _cover(falling: list[int]) -> int:
    """Return the fewest n-grams that make up the cover share of all counts."""
    sums = np.cumsum(falling, dtype=np.int64)
    return int(np.searchsorted(sums * SHARE[1], sums[-1] * SHARE[0])) + 1 if len(sums) else 0
