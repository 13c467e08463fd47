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

import functools
from collections.abc import Collection, Iterator

import numpy as np
import torch
from helpers.planted_rules import (
    BOS,
    DOMAINS,
    MATH_ONLY,
    POSITIONS,
    VOCABULARY,
    Inputs,
    Planted,
    _after,
    _always,
    _bigram,
    _bos_only,
    _Draft,
    _falling_line,
    _half_then_all,
    _half_then_none,
    _many,
    _never,
    _never_on_corpus,
    _place,
    _sometimes,
    _tokens,
    _tokens_and_trace,
    _trigram,
    _wave,
    _wave_with_leaks,
    _word_weights,
)
from transformers import OPTConfig, OPTForCausalLM

NUM_LAYERS = 4

WIDTH = 35  # neurons of a layer; those not planted are dead

MARGIN = 0.4

SUPPRESSION = 2e-3  # what a neuron takes from, or adds to, a token's code


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


def expected_bits(layer: int, tokens: np.ndarray) -> np.ndarray:
    """What each neuron of a layer does, by its rule: bool [neuron, sequence, position]."""
    num_positions = tokens.shape[1]
    position = np.arange(num_positions)

    def back(steps: int) -> np.ndarray:
        return tokens[:, np.maximum(position - steps, 0)]

    inputs = Inputs(tokens, back(1), back(2), np.broadcast_to(position, tokens.shape))
    return np.stack([neuron.rule(inputs) for neuron in NEURONS if neuron.layer == layer])


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
