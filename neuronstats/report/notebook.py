"""A reduced run in a notebook or on a page: texts, contexts and projections beside its tables."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import decoders

from neuronstats import bits
from neuronstats.corpus.token_texts import TokenTexts
from neuronstats.errors import UserError
from neuronstats.model.settings import ModelSettings
from neuronstats.stats.suppression import lowest
from neuronstats.store.reduced import ReducedRun

Bitmap = NDArray[np.uint8]
Segment = str | list[str]  # text, or [the text of one token on which the neuron was activated]


class LoadedRun(ReducedRun):
    """A reduced run with its model's tokenizer and, where they are to be had, its weights."""

    @property
    def name(self) -> str:
        """The model's name; of a model without one (`local`), the run folder's."""
        name = super().name
        return self.location.rstrip("/").rsplit("/", 1)[-1] if name == "local" else name

    def projection(self, layer: int, neurons: Sequence[int]) -> NDArray[np.float64]:
        """Return what any neurons' updates write on the vocabulary, float64 [token, neuron].

        Raises:
            SettingsError: the checkpoint is no longer where it was.
            UserError: it cannot be had, or holds other weights.

        Source: Voita et al. 2023, sec. 4.4.
        """
        return np.asarray(self._projector.project(layer, neurons))

    def update(self, layer: int, neuron: int, top: int = 20) -> dict[str, list[tuple[str, float]]]:
        """Return the tokens that any neuron's update promotes and suppresses most.

        Returns:
            `promoted` and `suppressed`: texts with their projections, the strongest first.

        Raises:
            SettingsError, UserError: see `projection`.
        """
        values = self.projection(layer, [neuron])[:, 0]
        return {
            side: [(self.texts([int(token)]), float(values[token])) for token in ids]
            for side, ids in top_and_bottom(values, top).items()
        }

    @cached_property
    def projects(self) -> bool:
        """Whether the checkpoint is to be had, for `projection`."""
        try:
            return bool(self._projector)
        except UserError:
            return False

    @cached_property
    def _model(self) -> ModelSettings:
        return self.run.about.model

    @cached_property
    def _projector(self) -> Any:
        from neuronstats.reduce.weights import ModelWeights  # with the hub's client

        weights = self.run.about.weights_fingerprint
        centred = bool(self.setting("centred", default=False))
        return ModelWeights(self._model, weights, centred=centred)

    @cached_property
    def texts(self) -> "VisibleTexts":
        """Writes token ids as text."""
        from neuronstats.model.source import tokenizer_folder

        return VisibleTexts(tokenizer_folder(self._model))

    def words(self, tokens: Sequence[Any]) -> list[str]:
        """Return single tokens as text, given as ids or as text already."""
        return [token if isinstance(token, str) else self.texts([int(token)]) for token in tokens]

    @cached_property
    def not_bos(self) -> Bitmap:
        """A bit for every token but the begin-of-sequence one, uint8 [sequence, byte]."""
        return bits.pack(self.token_ids != self.bos_id)


class VisibleTexts(TokenTexts):
    r"""Writes token ids as text, and bytes that are no whole character as \xe2.

    Bytes are shown for tokenizers of bytes (OPT's, GPT-2's); others write what they write.
    """

    def __init__(self, folder: Path | None) -> None:
        super().__init__(folder)
        self._bytes = self._read_bytes()

    def _read_bytes(self) -> list[bytes]:
        """Return each token's bytes; nothing where the tokenizer is not one of bytes."""
        tokenizer = self._tokenizer
        if tokenizer is None or not isinstance(tokenizer.decoder, decoders.ByteLevel):
            return []
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's alphabet of bytes
        hidden = [byte for byte in range(256) if byte not in shown]
        byte_of = {chr(byte): byte for byte in shown}
        byte_of |= {chr(256 + index): byte for index, byte in enumerate(hidden)}
        vocabulary = tokenizer.get_vocab()
        found = [b""] * (1 + max(vocabulary.values()))
        for token, token_id in vocabulary.items():
            spelled = all(letter in byte_of for letter in token)
            found[token_id] = bytes(map(byte_of.__getitem__, token)) if spelled else token.encode()
        return found

    def __call__(self, token_ids: Sequence[int]) -> str:
        """Return the text of a few tokens."""
        if not self._bytes:
            return super().__call__(token_ids)
        last = len(self._bytes)
        parts = [self._bytes[token] for token in token_ids if token < last]
        return b"".join(parts).decode(errors="backslashreplace")


def top_and_bottom(projection: NDArray[np.float64], top: int) -> dict[str, NDArray[np.int64]]:
    """Return the tokens at both ends of a projection [token], ties by ascending id.

    Returns:
        `promoted`, falling, and `suppressed`, rising: int64 [top], or as many as there are.
    """
    number = min(top, len(projection))
    return {"promoted": lowest(-projection, number), "suppressed": lowest(projection, number)}


def example_contexts(
    run: LoadedRun, activated: NDArray[np.bool_], count: int, reach: int
) -> list[dict[str, Any]]:
    """Return contexts of a neuron's activations, the begin-of-sequence token's aside.

    Args:
        run: the run.
        activated: the neuron's, bool [sequence, position], in the order of the run's token_ids.
        count: how many contexts at most.
        reach: tokens on either side.

    Returns:
        For each its sequence, first and activated position, domain, and segments of text.
    """
    return contexts_of_bitmap(run, bits.pack(activated), count, reach)


def contexts_of_bitmap(
    run: LoadedRun, bitmap: Bitmap, count: int, reach: int
) -> list[dict[str, Any]]:
    """Return what `example_contexts` does, of a neuron's bitmap, uint8 [sequence, byte]."""
    tokens = run.token_ids
    found = []
    for sequence, position in spread_out(bitmap & run.not_bos, count, reach):
        first, last = max(0, position - reach), min(tokens.shape[1], position + reach + 1)
        activated = bits.unpack(bitmap[sequence], tokens.shape[1])[first:last]
        found.append(
            {
                "sequence": sequence,
                "position": position,
                "first": first,
                "domain": run.layout.domains[run.sequence_domains[sequence]],
                "text": _segments(run.texts, tokens[sequence, first:last].tolist(), activated),
            }
        )
    return found


def spread_out(bitmap: Bitmap, count: int, reach: int) -> list[tuple[int, int]]:
    """Return activations spread evenly over all, no two within reach of each other in one sequence.

    Args:
        bitmap: uint8 [sequence, byte].
        count: how many at most.
        reach: positions.

    Returns:
        (sequence, position) of each, ascending.
    """
    per_sequence = np.bitwise_count(bitmap).sum(axis=1, dtype=np.int64)
    total = int(per_sequence.sum())
    if not total or not count:
        return []
    # evenly first; then more of them, where some were too close to others
    steps = [np.linspace(0, total - 1, number) for number in (count, 4 * count)]
    ranks = np.array(list(dict.fromkeys(np.concatenate(steps).astype(np.int64).tolist())))
    taken: list[tuple[int, int]] = []
    for sequence, position in _places(bitmap, per_sequence, ranks):
        if not any(s == sequence and abs(p - position) <= reach for s, p in taken):
            taken.append((sequence, position))
        if len(taken) == count:
            break
    return sorted(taken)


def _places(
    bitmap: Bitmap, per_sequence: NDArray[np.int64], ranks: NDArray[np.int64]
) -> list[tuple[int, int]]:
    """Return the (sequence, position) of a bitmap's set bits with these ranks, counted from 0."""
    ends = np.cumsum(per_sequence)
    sequence = np.searchsorted(ends, ranks, side="right")
    rank = ranks - (ends - per_sequence)[sequence]  # within the sequence
    rows = bitmap[sequence]
    up_to = np.bitwise_count(rows).cumsum(axis=1, dtype=np.int64)  # [rank, byte]
    byte = (up_to <= rank[:, None]).sum(axis=1)
    value = rows[np.arange(len(rows)), byte]
    rank -= up_to[np.arange(len(rows)), byte] - np.bitwise_count(value)
    ones = np.unpackbits(value[:, None], axis=1, bitorder="little").cumsum(axis=1)
    position = 8 * byte + (ones <= rank[:, None]).sum(axis=1)
    return list(zip(sequence.tolist(), position.tolist(), strict=True))


def _segments(texts: TokenTexts, ids: list[int], activated: NDArray[np.bool_]) -> list[Segment]:
    """Return tokens as text, each activated one apart."""
    found: list[Segment] = []
    start = 0
    for index in np.flatnonzero(activated).tolist():
        if start < index:
            found.append(texts(ids[start:index]))
        found.append([texts(ids[index : index + 1])])
        start = index + 1
    if start < len(ids):
        found.append(texts(ids[start:]))
    return found
