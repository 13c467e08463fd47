"""What a planted neuron may be: its rule in words of tokens and positions, and as scores.

See planted.py, which places them in layers and writes them into a model.
"""

import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np

BOS = 2

VOCABULARY = 64

POSITIONS = 128

DOMAINS = ("wiki", "math", "code")

# The parts that tokens play in the corpus. Ids 0, 1 and 3 occur in it nowhere.
NEVER = 3

RARE = range(4, 8)  # 1 % of the words each

COMMON = range(8, 48)  # the bulk, equally frequent

PHRASE = range(48, 64)  # occur mostly inside the n-grams of PHRASES, but alone too

PHRASES = (
    (48, 49),
    (48, 50),
    (51, 52),
    (53, 54),
    (55, 54),
    (56, 57, 58),
    (59, 60, 61),
    (48, 60, 61),
    (62, 51, 52),
    (57, 58),
    (60, 61),
)

MATH_ONLY = (53, 54)  # a phrase of the domain "math"


@dataclass(frozen=True)
class Inputs:
    """What a neuron's rule may look at: int arrays that broadcast to [sequence, position].

    Where a sequence has no earlier token, `previous` and `before` are its first one.
    """

    token: np.ndarray
    previous: np.ndarray
    before: np.ndarray
    position: np.ndarray


Rule = Callable[[Inputs], np.ndarray]


@dataclass(frozen=True)
class _Scores:
    """The same rule as the weights have it: the sum of the scores, plus the bias, is above zero."""

    bias: float
    token: dict[int, float] = field(default_factory=dict)
    previous: dict[int, float] = field(default_factory=dict)
    before: dict[int, float] = field(default_factory=dict)
    position: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Planted:
    """One neuron and what is true of it on every corpus that `corpus` makes with its defaults.

    Attributes:
        kind: what it was planted as; the comments in `_layers` say more.
        n: the n of the n-grams that it detects; 0 for those that detect none, of any n. A detector
            of tokens or bigrams may pass for one of longer n-grams too, where the corpus has few.
        ngrams: the n-grams (tuples of ids) that it detects, sorted.
        curve: for neurons of position the frequency at each position that the rule implies, exact
            where it is 0 or 1, else the expected one; position 0, always BOS, may differ.
        position_type: the type that this curve has; None where not positional.
        position_strong: whether the type is strong; None where not positional.
        suppresses: for detectors with n = 1 whether the mean projection of the detected tokens is
            below zero; None for others.
        dead: activated nowhere in the corpus.
        rule: from tokens and positions to activated or not.
    """

    layer: int
    neuron: int
    kind: str
    rule: Rule = field(repr=False)
    n: int = 0
    ngrams: tuple[tuple[int, ...], ...] = ()
    curve: tuple[float, ...] | None = field(default=None, repr=False)
    position_type: str | None = None
    position_strong: bool | None = None
    suppresses: bool | None = None
    dead: bool = False


@dataclass(frozen=True)
class _Draft:
    """A neuron before it has its place: truth, scores, and what fc2 writes on tokens' codes."""

    kind: str
    rule: Rule
    scores: _Scores
    truth: dict[str, object] = field(default_factory=dict)
    writes: dict[int, float] = field(default_factory=dict)


def _every(ids: Collection[int], score: float = 1.0) -> dict[int, float]:
    return dict.fromkeys(ids, score)


def _never() -> _Draft:
    """Likes some tokens better than others, but none enough."""
    scores = _Scores(bias=-1.5, token=_every(range(10, 20)), position={4: -1.0})
    return _Draft("dead", lambda x: np.zeros(x.token.shape, bool), scores, {"dead": True})


def _never_on_corpus() -> _Draft:
    """Works, but its token does not occur in the corpus: dead there."""
    scores = _Scores(bias=-0.5, token={NEVER: 1.0})
    return _Draft("dead_on_corpus", lambda x: x.token == NEVER, scores, {"dead": True})


def _always() -> _Draft:
    return _Draft("always", lambda x: np.ones(x.token.shape, bool), _Scores(bias=0.5))


def _bos_only() -> _Draft:
    """On the begin-of-sequence token alone: alive, with nothing that counts for n-grams."""
    return _Draft("bos", lambda x: x.token == BOS, _Scores(bias=-0.5, token={BOS: 1.0}))


def _tokens(*ids: int, also_bos: bool = False, writes: dict[int, float] | None = None) -> _Draft:
    """Detects these tokens; by default it suppresses all of them."""
    writes = _every(ids, -1.0) if writes is None else writes
    fires = (*ids, BOS) if also_bos else ids
    return _Draft(
        "token" if len(ids) == 1 else "tokens",
        lambda x: np.isin(x.token, fires),
        _Scores(bias=-0.5, token=_every(fires)),
        {
            "n": 1,
            "ngrams": tuple((token,) for token in sorted(ids)),
            "suppresses": sum(writes.get(token, 0.0) for token in ids) < 0,
        },
        writes,
    )


def _tokens_and_trace(ids: tuple[int, ...], trace: int, writes: dict[int, float]) -> _Draft:
    """Detects `ids`; `trace` triggers it at a few positions: too few to be covered or detected.

    So what it does to `trace` has no part in whether it suppresses its triggers.
    """
    places = (20, 60, 100)
    return _Draft(
        "tokens_and_trace",
        lambda x: np.isin(x.token, ids) | ((x.token == trace) & np.isin(x.position, places)),
        _Scores(bias=-1.5, token=_every(ids, 2.0) | {trace: 1.0}, position=_every(places)),
        {
            "n": 1,
            "ngrams": tuple((token,) for token in sorted(ids)),
            "suppresses": sum(writes.get(token, 0.0) for token in ids) < 0,
        },
        writes,
    )


def _sometimes(token: int) -> _Draft:
    """Only this token triggers it, but at one position in three: covered, not detected."""
    places = range(0, POSITIONS, 3)
    return _Draft(
        "sometimes",
        lambda x: (x.token == token) & (x.position % 3 == 0),
        _Scores(bias=-1.5, token={token: 1.0}, position=_every(places)),
        writes={token: -1.0},
    )


def _many(ids: Collection[int]) -> _Draft:
    """On for so many tokens that no few n-grams cover it."""
    return _Draft(
        "many", lambda x: np.isin(x.token, list(ids)), _Scores(bias=-0.5, token=_every(ids))
    )


def _bigram(firsts: tuple[int, ...], seconds: tuple[int, ...]) -> _Draft:
    """Detects every bigram of a first and a second one."""
    return _Draft(
        "bigram",
        lambda x: np.isin(x.previous, firsts) & np.isin(x.token, seconds),
        _Scores(bias=-1.5, token=_every(seconds), previous=_every(firsts)),
        {"n": 2, "ngrams": tuple(sorted(itertools.product(firsts, seconds)))},
    )


def _trigram(firsts: tuple[int, ...], second: int, third: int) -> _Draft:
    return _Draft(
        "trigram",
        lambda x: np.isin(x.before, firsts) & (x.previous == second) & (x.token == third),
        _Scores(bias=-2.5, token={third: 1.0}, previous={second: 1.0}, before=_every(firsts)),
        {"n": 3, "ngrams": tuple(sorted((first, second, third) for first in firsts))},
    )


def _after(ids: Collection[int]) -> _Draft:
    """On after these tokens, whatever comes: a detector of no n-gram."""
    return _Draft(
        "after",
        lambda x: np.isin(x.previous, list(ids)),
        _Scores(bias=-0.5, previous=_every(ids)),
    )


def _place(
    kind: str, on: Collection[int], position_type: str, leaks: Collection[int] = ()
) -> _Draft:
    """On at these positions; these tokens trigger it off them too: near the extreme, not at it."""
    return _Draft(
        kind,
        lambda x: np.isin(x.position, list(on)) | np.isin(x.token, list(leaks)),
        _Scores(bias=-0.5, position=_every(on), token=_every(leaks)),
        {
            "curve": tuple(1.0 if p in on else _frequency(leaks) for p in range(POSITIONS)),
            "position_type": position_type,
            "position_strong": not leaks,
        },
    )


def _wave_with_leaks(on: Collection[int], silent: Collection[int], loud: Collection[int]) -> _Draft:
    """A square wave that some tokens silence and some trigger: near the extremes, not at them."""
    high, low = 1 - _frequency(silent), _frequency(loud)
    return _Draft(
        "wave",
        lambda x: (
            (np.isin(x.position, list(on)) & ~np.isin(x.token, list(silent)))
            | np.isin(x.token, list(loud))
        ),
        _Scores(bias=-0.5, position=_every(on), token=_every(silent, -1.0) | _every(loud)),
        {
            "curve": tuple(high if p in on else low for p in range(POSITIONS)),
            "position_type": "oscillatory",
            "position_strong": False,
        },
    )


def _half_then_none(leaks: Collection[int] = ()) -> _Draft:
    """Every other common token in the first half; in the second none, or only `leaks`."""
    half = list(COMMON)[::2]
    early, late = _frequency({*half, *leaks}), _frequency(leaks)
    return _Draft(
        "half_place",
        lambda x: np.isin(x.token, list(leaks)) | (np.isin(x.token, half) & (x.position < 64)),
        _Scores(bias=-1.5, token=_every(half) | _every(leaks, 2.0), position=_every(range(64))),
        {
            "curve": tuple(early if p < 64 else late for p in range(POSITIONS)),
            "position_type": "one_extreme",
            "position_strong": not leaks,
        },
    )


def _half_then_all() -> _Draft:
    """Every other common token in the first half, anything in the second."""
    half = list(COMMON)[::2]
    return _Draft(
        "half_place",
        lambda x: np.isin(x.token, half) | (x.position >= 64),
        _Scores(bias=0.5, token=_every(half), position=_every(range(64), -1.0)),
        {
            "curve": tuple(_frequency(half) if p < 64 else 1.0 for p in range(POSITIONS)),
            "position_type": "one_extreme",
            "position_strong": True,
        },
    )


def _falling_line() -> _Draft:
    """The later, the fewer tokens: from ids that make up 85 % of the text to ids for 15 %."""
    shares = {low: _frequency(range(3 * low, VOCABULARY)) for low in range(VOCABULARY // 3)}
    lowest = [
        min(shares, key=lambda low: abs(shares[low] - (0.85 - 0.7 * p / (POSITIONS - 1))))
        for p in range(POSITIONS)
    ]
    return _Draft(
        "line",
        lambda x: (x.token != BOS) & (x.token // 3 >= np.array(lowest)[x.position]),
        _Scores(
            bias=0.5,
            token={token: float(token // 3) for token in range(VOCABULARY)} | {BOS: -1.0},
            position={p: -float(low) for p, low in enumerate(lowest)},
        ),
        {
            "curve": tuple(shares[low] for low in lowest),
            "position_type": "other",
            "position_strong": True,
        },
    )


def _wave(period: int, shift: int = 0) -> list[int]:
    """Positions of the upper halves of a square wave."""
    return [p for p in range(POSITIONS) if (p + shift) % period < period // 2]


def _word_weights() -> dict[tuple[int, ...], float]:
    """What a text is made of, as shares: words of one token, and phrases."""
    weights = {(token,): 0.01 for token in RARE}
    weights |= {(token,): 0.02 for token in COMMON}
    weights |= {(token,): 0.004 for token in PHRASE}
    weights |= dict.fromkeys(PHRASES, 0.016)
    total = sum(weights.values())
    return {word: weight / total for word, weight in weights.items()}


def _frequency(tokens: Collection[int]) -> float:
    """The expected share of these tokens in a text, among its tokens."""
    words = _word_weights()
    length = sum(weight * len(word) for word, weight in words.items())
    return sum(w * sum(t in tokens for t in word) for word, w in words.items()) / length
