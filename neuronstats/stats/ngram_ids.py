"""The n-grams of a corpus: which there are, how often each occurs, which one ends where."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from neuronstats.errors import UserError

Integers = npt.NDArray[np.int64]

# Most frequent n-grams that are looked at together. Of English tokens, every second one is of them.
NUM_FREQUENT = 512
# The place of an n-gram that is none: it reaches before its sequence or holds the BOS token.
_NONE = 2**32 - 1
# Keys sorted at once, and the fewest that are worth it, as powers of two.
_PIECE_BITS = 22
_MIN_PIECE_BITS = 16


@dataclass(frozen=True, slots=True)
class NgramIds:
    """The n-grams of one length in a corpus, and which one ends at each position.

    The n-grams are numbered by falling occurrences, equal ones by ascending token ids. So the
    numbers depend neither on the order of the sequences nor on who counts, and the counters of
    frequent n-grams lie together.
    """

    n: int
    ids: npt.NDArray[np.uint32]
    """[sequence * 8 * byte], laid out like a neuron's bits: the n-gram that ends at each position,
    `len(occurrences)` where none does (it would reach before its sequence or hold the
    begin-of-sequence token) and past a sequence's last position."""
    occurrences: Integers
    """[ngram]: positions of the corpus at which it ends."""
    token_ids: npt.NDArray[np.int32]
    """[ngram, n]: its tokens in reading order."""
    lexical: npt.NDArray[np.uint32]
    """[ngram]: its place when all are sorted by ascending token ids."""
    holes: npt.NDArray[np.uint32]
    """[hole]: indices into ids where none ends."""
    frequent: npt.NDArray[np.uint64]
    """[word], laid out like a neuron's bits: set where one of the `NUM_FREQUENT` most frequent
    n-grams ends."""

    @classmethod
    def derive(
        cls,
        n: int,
        ids: npt.NDArray[np.uint32],
        occurrences: Integers,
        token_ids: npt.NDArray[np.int32],
        lexical: npt.NDArray[np.uint32],
    ) -> "NgramIds":
        """Complete what follows from the ids."""
        num_ngrams = len(occurrences)
        frequent = np.packbits(ids < min(NUM_FREQUENT, num_ngrams), bitorder="little")
        words = np.pad(frequent, (0, -len(frequent) % 8)).view("<u8").astype(np.uint64)
        holes = np.flatnonzero(ids == num_ngrams).astype(np.uint32)
        return cls(n, ids, occurrences, token_ids, lexical, holes, words)


def build_ngram_ids(
    tokens: npt.NDArray[np.integer], bos_id: int, ngrams: Collection[int]
) -> dict[int, NgramIds]:
    """Number the n-grams of a corpus, once for all layers and neurons.

    Args:
        tokens: ids [sequence, position], from 0 to 2^31 - 1.
        bos_id: the begin-of-sequence token; an n-gram that holds it is left out.
        ngrams: lengths, each at least 1.

    Returns:
        The n-grams of each length, by length, ascending.

    Raises:
        UserError: tokens of another shape or dtype, or too many for 32-bit positions.

    Source: Voita et al. 2023, sec. 4 and app. A.
    """
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer) or not tokens.size:
        raise UserError(
            f"tokens are {tokens.dtype} of shape {tokens.shape}; "
            "expected integers [sequence, position], at least one"
        )
    num_sequences, num_positions = tokens.shape
    if num_sequences * 8 * -(-num_positions // 8) > _NONE:
        raise UserError(f"{tokens.size} tokens are more than n-grams can be counted over (2^32)")
    vocabulary = int(tokens.max()) + 1
    built: dict[int, NgramIds] = {}
    places = np.zeros(tokens.shape, np.uint32)  # the n-gram ending here, in ascending token ids
    prefixes = np.zeros((1, 0), np.int32)  # [place, token]
    for n in range(1, max(ngrams) + 1):
        valid = tokens != bos_id
        keys = tokens.astype(np.int64)
        if n > 1:
            valid[:, 0] = False
            valid[:, 1:] &= places[:, :-1] != _NONE
            keys[:, 1:] += places[:, :-1] * np.int64(vocabulary)
        keys = keys[valid]
        distinct, inverse, occurrences = _number(keys)
        places.fill(_NONE)
        places[valid] = inverse
        del keys, inverse, valid
        prefixes = np.column_stack(
            [prefixes[distinct // vocabulary], (distinct % vocabulary).astype(np.int32)]
        )
        if n in ngrams:
            built[n] = _by_frequency(n, places, occurrences, prefixes)
    return built


def projected_bytes(
    num_sequences: int, num_positions: int, ngrams: Collection[int]
) -> dict[str, int]:
    """Bound the memory of building the n-gram ids, by what it is for; the sum is the peak.

    Args:
        num_sequences: of the corpus.
        num_positions: of a sequence.
        ngrams: lengths.

    Returns:
        Bytes by name: what the finished ids of each length take if no n-gram occurs twice
        (`n-gram ids`), and what building takes beside them (`building`).
    """
    num_tokens = num_sequences * num_positions
    num_slots = num_sequences * 8 * -(-num_positions // 8)
    ids = sum(4 * num_slots + num_slots // 8 + num_tokens * (8 + 4 * n + 4) for n in ngrams)
    return {"n-gram ids": ids, "building": num_tokens * (48 + 8 * max(ngrams))}


def _number(keys: Integers) -> tuple[Integers, npt.NDArray[np.uint32], Integers]:
    """Return the distinct keys, ascending, each key's place among them, and how often each occurs.

    As np.unique, ten times as fast: NumPy sorts plain numbers far faster than it finds the order
    of numbers. So each piece is sorted with the places of its keys in their low bits, and the
    pieces' distinct keys are merged.
    """
    room = 64 - int(keys.max(initial=0)).bit_length()
    if room < _MIN_PIECE_BITS:
        few = np.unique(keys, return_inverse=True, return_counts=True)
        return few[0], few[1].astype(np.uint32), few[2].astype(np.int64)
    bits = min(room, _PIECE_BITS)
    pieces = []
    for start in range(0, len(keys), 1 << bits):
        packed = keys[start : start + (1 << bits)].astype(np.uint64) << np.uint64(bits)
        packed |= np.arange(len(packed), dtype=np.uint64)
        packed.sort()
        order = (packed & np.uint64((1 << bits) - 1)).astype(np.uint32)
        packed >>= np.uint64(bits)
        firsts = np.flatnonzero(np.concatenate([[True], packed[1:] != packed[:-1]]))
        sizes = np.diff(firsts, append=len(packed)).astype(np.uint32)
        pieces.append((start, order, packed[firsts].astype(np.int64), sizes))
    distinct = np.concatenate([keys[:0], *(piece[2] for piece in pieces)])
    distinct.sort()
    distinct = distinct[np.concatenate([distinct[:1] >= 0, distinct[1:] != distinct[:-1]])]
    inverse = np.empty(len(keys), np.uint32)
    occurrences = np.zeros(len(distinct), np.int64)
    for start, order, own, sizes in pieces:
        where = np.searchsorted(distinct, own).astype(np.uint32)
        occurrences[where] += sizes
        inverse[start + order.astype(np.int64)] = np.repeat(where, sizes)
    return distinct, inverse, occurrences


def _by_frequency(
    n: int,
    places: npt.NDArray[np.uint32],
    occurrences: Integers,
    token_ids: npt.NDArray[np.int32],
) -> NgramIds:
    """Number n-grams, given in ascending token ids, by falling occurrences."""
    num_ngrams = len(occurrences)
    rising = (int(occurrences.max(initial=0)) - occurrences).astype(np.uint64)
    rising = np.sort(rising << np.uint64(32) | np.arange(num_ngrams, dtype=np.uint64))
    order = (rising & np.uint64(_NONE)).astype(np.uint32)
    ranks = np.empty(num_ngrams, np.uint32)
    ranks[order] = np.arange(num_ngrams, dtype=np.uint32)
    num_sequences, num_positions = places.shape
    ids = np.full((num_sequences, 8 * -(-num_positions // 8)), num_ngrams, np.uint32)
    valid = places != _NONE
    ids[:, :num_positions][valid] = ranks[places[valid]]
    return NgramIds.derive(n, ids.ravel(), occurrences[order], token_ids[order], order)
