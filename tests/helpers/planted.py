"""An OPT whose neurons were written by hand, so that what each of them does is known.

    model = planted_opt()                       # a real OPTForCausalLM, pre-LayerNorm, float32
    tokens, domains = corpus(seed=0)            # ids [sequence, position], a domain a sequence
    expected_bits(0, tokens)                    # bool [neuron, sequence, position], by the rules
    NEURONS                                     # the truth: a Planted per neuron

How it works. The residual stream is made of one-hot codes: token, position, previous token, and the
token before that, each coordinate v paired with one of -v. So its mean is zero and its norm the
same for every token and position, and a LayerNorm only scales it by a number known in advance.
Attention of layer 0 copies the token of the position before, that of layer 1 copies what this one
found there: from layer 1 on every position knows its last three tokens (at the start of a sequence,
where there is none before, its first token again). A neuron adds what it thinks of each of them and
of the position, and is activated above a bias. Values of fc1 stay MARGIN away from zero, so that
rounding flips no bit. fc2 writes on the token code, a thousandth of its size: enough to suppress or
promote tokens, too little to disturb the layers above.

The rules are stated twice and apart: in words of tokens and positions (`Planted.rule`, which
`expected_bits` evaluates) and as scores (`_Scores`, which only `planted_opt` reads).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import OPTConfig, OPTForCausalLM

BOS = 2
VOCABULARY = 64
POSITIONS = 128
NUM_LAYERS = 4
WIDTH = 35  # neurons of a layer; those not planted are dead
MARGIN = 0.4
SUPPRESSION = 2e-3  # what a neuron takes from, or adds to, a token's code
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


# Neurons of tokens.


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


# Neurons of several tokens.


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


# Neurons of position. Position 0 holds BOS, which has no score.


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


def _layers() -> list[list[_Draft]]:
    """The neurons, layer by layer. Detected tokens, to tell new ones from old ones:

    layer 0: 8 9 10 11 12 13 51 54; layer 1: 8 9 14 15 16; layer 2: 10 15 17; layer 3: none.
    """
    return [
        [
            _never(),
            _tokens(8),
            _tokens(9, 10, also_bos=True),
            _tokens(11, 12, 13, 51, 54),
            _tokens_and_trace((8, 9), 20, {8: -0.5, 9: -0.5, 20: 3.0}),  # suppresses: not the trace
            _sometimes(21),
            _many(range(8, 48, 2)),
            _bigram((48,), (49, 50)),
            _bigram((53, 55), (54,)),
            _never_on_corpus(),
            _bos_only(),
            _never(),
            _place("extremes", range(40), "both_extremes"),
            _place("extremes", range(30, 70), "both_extremes"),
            _place("wave", _wave(32), "oscillatory"),
            _place("wave", _wave(16, shift=5), "oscillatory"),
            _half_then_none(),
            _always(),
        ],
        [
            _tokens(8, 9, writes={8: -1.0, 9: 0.5}),  # promotes one of them, suppresses in the mean
            _never(),
            _tokens(14, 15),
            _tokens(16, writes={16: 1.0}),  # promotes
            _trigram((56,), 57, 58),
            _trigram((59, 48), 60, 61),
            _bigram((51,), (52,)),
            _after((8, 9)),
            _many(range(9, 48, 2)),
            _place("extremes", range(90, POSITIONS), "both_extremes"),
            _place("extremes", range(50), "both_extremes", leaks=(25, 26)),
            _wave_with_leaks(_wave(24), silent=(27, 28), loud=(29, 30)),
            _half_then_all(),
            _half_then_none(leaks=(22, 24)),
            _falling_line(),
            _always(),
            *(_many(range(8 + k, 48, 3)) for k in range(3)),
            *(_many(range(8 + k, 48, 4)) for k in range(4)),
            _after((10, 11, 12)),
        ],
        [
            _tokens(10, 15, writes={10: 1.0, 15: -0.5}),  # promotes in the mean
            _tokens(17),
            _trigram((56,), 57, 58),
            _bigram((48,), (49,)),
            _place("extremes", range(64), "both_extremes"),
            _falling_line(),
            _never(),
            _bos_only(),
            *(_many(range(8 + k, 48, 5)) for k in range(5)),
            *(_after(range(8 + k, 48, 5)) for k in range(5)),
            *(_many(range(8 + k, 48, 2)) for k in range(2)),
            _always(),
            *(_many(range(8 + 6 * k, 14 + 6 * k)) for k in range(6)),
            *(_many(range(8 + 5 * k, 20 + 5 * k)) for k in range(5)),
            *(_never_on_corpus() for _ in range(2)),
        ],
        [
            *(_many(range(8, 14 + k)) for k in range(24)),
            *(_after(range(8, 14 + 4 * k)) for k in range(7)),
            _place("wave", _wave(64), "oscillatory"),
        ],
    ]


def _place_drafts() -> tuple[list[list[_Draft]], tuple[Planted, ...]]:
    layers = [layer + [_never()] * (WIDTH - len(layer)) for layer in _layers()]
    return layers, tuple(
        Planted(index, neuron, draft.kind, draft.rule, **draft.truth)
        for index, layer in enumerate(layers)
        for neuron, draft in enumerate(layer)
    )


# The corpus.


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


def corpus(
    seed: int = 0,
    num_sequences: int = 60,
    num_positions: int = POSITIONS,
    *,
    inner_bos: float = 0.0,
    domains: Collection[str] = DOMAINS,
) -> tuple[np.ndarray, list[str]]:
    """Make token ids int64 [sequence, position] and a domain for each sequence.

    Each sequence starts with BOS. Every planted n-gram occurs at least once; MATH_ONLY's only in
    the domain "math". `inner_bos` is how often a further BOS stands between two words. Domains
    take turns in runs of sequences, the last one getting what is left.

    Raises:
        ValueError: the corpus is too small to hold every planted n-gram.
    """
    generator = np.random.default_rng(seed)
    names = list(domains)
    labels = [
        names[min(i * len(names) // num_sequences, len(names) - 1)] for i in range(num_sequences)
    ]
    planted = {ngram for neuron in NEURONS for ngram in neuron.ngrams}
    rows = []
    for label in labels:
        allowed = {w: p for w, p in _word_weights().items() if label == "math" or w != MATH_ONLY}
        words = _stream(generator, allowed, inner_bos)
        row = [BOS]
        while len(row) < num_positions:
            waiting = sorted(
                ngram
                for ngram in planted
                if len(row) + len(ngram) <= num_positions
                and (label == "math" or ngram != MATH_ONLY)
            )
            # one planted n-gram, then words of the stream, in turn, until all have been placed
            if waiting and generator.random() < 0.5:
                row.extend(waiting[0])
                planted.remove(waiting[0])
            else:
                row.extend(next(words))
        rows.append(row[:num_positions])
    if planted:
        raise ValueError(f"{num_sequences} x {num_positions} tokens leave no room for {planted}")
    return np.array(rows, np.int64), labels


def _stream(
    generator: np.random.Generator, weights: dict[tuple[int, ...], float], inner_bos: float
) -> Iterator[tuple[int, ...]]:
    words = list(weights)
    shares = np.array(list(weights.values()))
    while True:
        for index in generator.choice(len(words), 256, p=shares / shares.sum()):
            yield words[index]
            if generator.random() < inner_bos:
                yield (BOS,)


def random_corpus(seed: int, num_sequences: int, num_positions: int) -> np.ndarray:
    """Ids drawn evenly from the whole vocabulary, BOS and the first position included."""
    return np.random.default_rng(seed).integers(0, VOCABULARY, (num_sequences, num_positions))


def expected_bits(layer: int, tokens: np.ndarray) -> np.ndarray:
    """What each neuron of a layer does, by its rule: bool [neuron, sequence, position]."""
    num_positions = tokens.shape[1]
    position = np.arange(num_positions)

    def back(steps: int) -> np.ndarray:
        return tokens[:, np.maximum(position - steps, 0)]

    inputs = Inputs(tokens, back(1), back(2), np.broadcast_to(position, tokens.shape))
    return np.stack([neuron.rule(inputs) for neuron in NEURONS if neuron.layer == layer])


# The weights.

_PARTS = {"token": VOCABULARY, "position": POSITIONS, "previous": VOCABULARY, "before": VOCABULARY}
HIDDEN = 2 * sum(_PARTS.values())
HEAD = POSITIONS  # a head's width: it compares positions and carries tokens
_ATTENTION_LOGIT = 80.0  # how far the attended position is above all others


def _coordinates(part: str) -> tuple[slice, slice]:
    """The coordinates of a code, and of its negative."""
    start = 0
    for name, width in _PARTS.items():
        if name == part:
            return slice(start, start + width), slice(
                start + HIDDEN // 2, start + HIDDEN // 2 + width
            )
        start += width
    raise KeyError(part)


def _gain(num_codes: int) -> float:
    """What a LayerNorm multiplies a stream of so many one-hot codes by."""
    return (HIDDEN / (2 * num_codes)) ** 0.5


@functools.cache
def planted_opt() -> OPTForCausalLM:
    """The model; made once, so do not change it."""
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=NUM_LAYERS,
        ffn_dim=WIDTH,
        max_position_embeddings=POSITIONS,
        num_attention_heads=HIDDEN // HEAD,
        word_embed_proj_dim=HIDDEN,
        do_layer_norm_before=True,
        bos_token_id=BOS,
        eos_token_id=BOS,
        pad_token_id=1,
    )
    model = OPTForCausalLM(config).float().eval()
    decoder = model.model.decoder
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "layer_norm" in name and name.endswith("weight")
            parameter.fill_(1.0 if norm else 0.0)
        for embedding, part, offset in (
            (decoder.embed_tokens, "token", 0),
            (decoder.embed_positions, "position", decoder.embed_positions.offset),
        ):
            plus, minus = _coordinates(part)
            embedding.weight[offset:, plus] = torch.eye(_PARTS[part])
            embedding.weight[offset:, minus] = -torch.eye(_PARTS[part])
        for index, layer in enumerate(decoder.layers):
            if index == 0:
                _copy_from_previous_position(layer.self_attn, "token", "previous", num_codes=2)
            elif index == 1:
                _copy_from_previous_position(layer.self_attn, "previous", "before", num_codes=3)
            _write_ffn(layer, _DRAFTS[index], min(index + 3, 4), generator)
    return model


def _copy_from_previous_position(
    attention: torch.nn.Module, source: str, target: str, num_codes: int
) -> None:
    """Make the first head copy a code from one position to the next, and position 0 to itself."""
    gain = _gain(num_codes)
    strength = (_ATTENTION_LOGIT / attention.scaling) ** 0.5 / gain
    position, _ = _coordinates("position")
    # row: the key's position, column: the query's; position 0 sees itself alone, whatever it asks
    previous = torch.eye(POSITIONS).roll(-1, dims=0)
    attention.k_proj.weight[:POSITIONS, position] = strength * torch.eye(POSITIONS)
    attention.q_proj.weight[:POSITIONS, position] = strength * previous
    width = _PARTS[source]
    attention.v_proj.weight[:width, _coordinates(source)[0]] = torch.eye(width) / gain
    for coordinates, sign in zip(_coordinates(target), (1.0, -1.0), strict=True):
        attention.out_proj.weight[coordinates, :width] = sign * torch.eye(width)


def _write_ffn(
    layer: torch.nn.Module, drafts: list[_Draft], num_codes: int, generator: torch.Generator
) -> None:
    """Write the neurons' scores into fc1 and what they do to tokens into fc2."""
    gain = _gain(num_codes)
    token_plus, token_minus = _coordinates("token")
    # a little of everything, so that a projection ranks all tokens
    noise = torch.randn(VOCABULARY, len(drafts), generator=generator) * SUPPRESSION / 50
    layer.fc2.weight[token_plus] = noise
    layer.fc2.weight[token_minus] = -noise
    for neuron, draft in enumerate(drafts):
        layer.fc1.bias[neuron] = draft.scores.bias
        for part in _PARTS:
            plus, minus = _coordinates(part)
            for index, score in getattr(draft.scores, part).items():
                layer.fc1.weight[neuron, plus.start + index] = score / (2 * gain)
                layer.fc1.weight[neuron, minus.start + index] = -score / (2 * gain)
        for token, amount in draft.writes.items():
            layer.fc2.weight[token_plus.start + token, neuron] = SUPPRESSION * amount
            layer.fc2.weight[token_minus.start + token, neuron] = -SUPPRESSION * amount


_DRAFTS, NEURONS = _place_drafts()


def neurons(**wanted: object) -> list[Planted]:
    """The planted neurons of these attributes, e.g. neurons(layer=0, kind="token")."""
    return [
        neuron
        for neuron in NEURONS
        if all(getattr(neuron, name) == value for name, value in wanted.items())
    ]


if __name__ == "__main__":
    for neuron in NEURONS:
        print({k: v for k, v in dataclasses.asdict(neuron).items() if k not in ("rule", "curve")})
