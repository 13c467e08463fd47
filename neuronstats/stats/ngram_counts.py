"""Count the n-grams that activate each neuron: covers, detectors, top triggers, from the bits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from neuronstats.errors import UserError
from neuronstats.stats import ngram_kernels, ngram_rules
from neuronstats.stats.ngram_ids import Integers, NgramIds
from neuronstats.stats.settings import NgramSettings, exact


@dataclass(frozen=True, slots=True)
class NgramRows:
    """N-grams of some neurons: a row each, by neuron, then falling activations, then token ids."""

    neuron: npt.NDArray[np.int32]
    """[row]: index in the block."""
    ngram: npt.NDArray[np.uint32]
    """[row]: the n-gram's number in the corpus."""
    token_ids: npt.NDArray[np.int32]
    """[row, n]"""
    occurrences: Integers
    """[row]: in the corpus."""
    activations: Integers
    """[row]: occurrences on which the neuron was activated."""
    rate: npt.NDArray[np.float64]
    """[row]: activations / occurrences."""
    share: npt.NDArray[np.float64]
    """[row]: activations / the neuron's counted activations."""


@dataclass(frozen=True, slots=True)
class NgramCounts:
    """What the n-grams of one length say of a block of neurons."""

    counted: Integers
    """[neuron]: activations at positions where an n-gram ends."""
    cover: npt.NDArray[np.int32]
    """[neuron]: the covering number; 0 where nothing was counted, `cover_limit + 1` for more."""
    detector: npt.NDArray[np.bool_]
    """[neuron]: passes the three steps."""
    detector_loose: npt.NDArray[np.bool_]
    """[neuron]: passes them with step (2) taken over all n-grams that triggered the neuron."""
    detected: NgramRows
    """The detected n-grams of the detectors."""
    triggers: NgramRows
    """The `top_triggers` n-grams of most activations of every neuron, detector or not."""


def count_ngrams(
    bits: npt.NDArray[np.uint8], corpus: Mapping[int, NgramIds], settings: NgramSettings
) -> dict[int, NgramCounts]:
    """Count the n-grams that activate each neuron of a block, and draw what follows from them.

    Exact, in integers; a neuron's results do not depend on the others of its block. The cost is
    proportional to activations.

    Args:
        bits: uint8 [neuron, sequence, byte], eight positions to a byte, the first in the lowest
            bit; bits past the last position are zero.
        corpus: `build_ngram_ids` of the same sequences, for every length of the settings.
        settings: lengths and thresholds.

    Returns:
        The findings of each length, by length, ascending.

    Raises:
        UserError: the bits do not fit the corpus.

    Source: Voita et al. 2023, sec. 4 and app. A.
    """
    lengths = sorted(settings.ngrams)
    words = _words(bits, corpus, lengths)
    num_neurons, num_bits = len(words), words.shape[1] * 64
    rules = {n: _rules(n, settings) for n in lengths}
    grams = {n: _ngram_table(corpus[n]) for n in lengths}
    out: dict[int, ngram_rules.Outcome] = {}
    upper_bound = np.full(num_neurons, num_bits, np.int64)
    for n in lengths:  # an upper bound holds for longer n-grams, never for shorter ones
        out[n] = _outcome(rules[n], len(corpus[n].occurrences), upper_bound)
        upper_bound = out[n].upper_bound
    ruled_out = np.zeros(num_neurons, np.bool_)
    pruning = settings.cover_limit is not None and settings.top_triggers == 0
    if pruning:
        active = ngram_kernels.count_bits(words)
        hopeful = active.copy()
        for n in lengths:
            ngram_rules.prune(words, 0, hopeful, grams[n], rules[n], out[n])
            hopeful[~out[n].ruled_out] = 0  # is decoded in any case
        ruled_out = np.all([out[n].ruled_out for n in lengths], axis=0) | (active == 0)
    scratch = _scratch(num_neurons, num_bits, max(len(g.occurrences) for g in grams.values()))
    positions = np.empty(num_bits + ngram_kernels.SLACK, np.uint32)
    offsets = np.zeros(num_neurons + 1, np.int64)
    first = 0
    while first < num_neurons:
        decoded = ngram_kernels.decode_positions(words, first, ruled_out, positions, offsets)
        ends = offsets[: decoded + 1]
        for n in lengths:
            if pruning and n > lengths[0]:  # what was counted bounds it better
                ngram_rules.prune(words, first, np.diff(ends), grams[n], rules[n], out[n])
            ngram_rules.count_ngrams(first, positions, ends, grams[n], rules[n], scratch, out[n])
        first += decoded
    return {n: _findings(corpus[n], rules[n], out[n]) for n in lengths}


def projected_bytes(
    num_neurons: int, num_sequences: int, num_positions: int, settings: NgramSettings
) -> dict[str, int]:
    """Bound the memory that `count_ngrams` takes beside its arguments, by what it is for.

    The sum is the peak, reached by a neuron that is always activated.
    """
    num_bits = 64 * -(-num_sequences * 8 * -(-num_positions // 8) // 64)
    places = sum(max(settings.max_cover[n], settings.top_triggers) for n in settings.ngrams)
    tokens = sum(n * (settings.max_cover[n] + settings.top_triggers) for n in settings.ngrams)
    return {
        "activations": 16 * num_bits + 8 * (num_bits // ngram_rules.TALLY),
        "counters": 4 << ngram_kernels.SINGLE_SHIFT,
        "bits, where a copy is needed": num_neurons * num_bits // 8,
        "top n-grams": num_neurons * (96 * places + 4 * tokens + 64 * len(settings.ngrams)),
        "frequent n-grams": len(settings.ngrams) * num_bits // 4,
    }


def _words(
    bits: npt.NDArray[np.uint8], corpus: Mapping[int, NgramIds], lengths: Sequence[int]
) -> npt.NDArray[np.uint64]:
    """View the bits of each neuron as words [neuron, word]; copied where they are not whole."""
    if bits.ndim != 3 or bits.dtype != np.uint8:
        raise UserError(
            f"bits are {bits.dtype} of shape {bits.shape}; expected uint8 [neuron, sequence, byte]"
        )
    num_bytes = bits.shape[1] * bits.shape[2]
    for n in lengths:
        if n not in corpus or len(corpus[n].ids) != 8 * num_bytes:
            raise UserError(
                f"bits of {bits.shape[1]} sequences of {bits.shape[2]} bytes do not fit the "
                f"{n}-grams of the corpus: were both made from the same sequences?"
            )
    flat = np.ascontiguousarray(bits).reshape(len(bits), num_bytes)
    if num_bytes % 8:
        flat = np.pad(flat, ((0, 0), (0, -num_bytes % 8)))
    return np.require(flat.view("<u8"), np.uint64, ["C", "ALIGNED"])


def _rules(n: int, settings: NgramSettings) -> ngram_rules.Rules:
    """Return the settings of one length as the numbers that the compiled loops read."""
    return ngram_rules.Rules(
        *exact(settings.cover_share).as_integer_ratio(),
        *exact(settings.detect_rate).as_integer_ratio(),
        settings.min_count,
        settings.max_cover[n],
        settings.top_triggers,
        -1 if settings.cover_limit is None else settings.cover_limit,
    )


def _ngram_table(ids: NgramIds) -> ngram_rules.NgramTable:
    """Return one length's n-grams as the plain arrays that the compiled loops read."""
    arrays = (ids.ids, ids.occurrences, ids.lexical, ids.holes, ids.frequent)
    return ngram_rules.NgramTable(*(np.asarray(array) for array in arrays))


def _outcome(
    rules: ngram_rules.Rules, num_ngrams: int, upper_bound: Integers
) -> ngram_rules.Outcome:
    """Allocate what is found about a block's neurons by one length."""
    num_neurons = len(upper_bound)
    places = min(max(rules.max_cover, rules.num_triggers), num_ngrams)
    return ngram_rules.Outcome(
        np.zeros(num_neurons, np.int64),
        np.zeros(num_neurons, np.int64),
        np.zeros(num_neurons, np.int64),
        np.zeros((num_neurons, places), np.uint32),
        np.zeros((num_neurons, places), np.int64),
        np.full(num_neurons, upper_bound.max(initial=0), np.int64),
        upper_bound,
        np.zeros(num_neurons, np.bool_),
    )


def _scratch(num_neurons: int, num_bits: int, most_ngrams: int) -> ngram_rules.Scratch:
    """Allocate ids and counters."""
    num_levels = ngram_rules.TALLY + num_bits // ngram_rules.TALLY + 1
    return ngram_rules.Scratch(
        np.zeros(1 << ngram_kernels.SINGLE_SHIFT, np.uint32),
        np.zeros((most_ngrams >> ngram_kernels.BUCKET_SHIFT) + 2, np.int64),
        np.empty(num_bits + ngram_kernels.SLACK, np.uint32),
        np.empty(num_bits, np.uint32),
        np.empty(num_bits, np.uint32),
        np.zeros(num_neurons, np.int64),
        np.zeros((4, ngram_rules.TALLY), np.int64),
        np.zeros(num_levels, np.int64),
        np.zeros(num_levels, np.int64),
    )


def _findings(ids: NgramIds, rules: ngram_rules.Rules, out: ngram_rules.Outcome) -> NgramCounts:
    """Apply the three steps of a detector to each neuron, and list its n-grams."""
    counts, places = out.top_counts, np.arange(out.top_counts.shape[1])  # [neuron, place]
    occurrences = np.where(counts > 0, ids.occurrences[out.top_ids], 0)
    few = (out.counted > 0) & (out.cover <= rules.max_cover)  # step 1
    kept = few[:, None] & (places < out.cover[:, None]) & (occurrences >= rules.min_count)
    kept &= counts * rules.rate_denominator >= occurrences * rules.rate_numerator  # step 2
    need = out.counted * rules.cover_numerator
    held = np.where(kept, counts, 0).sum(axis=1)
    detector = few & (held * rules.cover_denominator >= need)  # step 3
    return NgramCounts(
        counted=out.counted,
        cover=out.cover.astype(np.int32),
        detector=detector,
        detector_loose=few & (out.loose * rules.cover_denominator >= need),
        detected=_rows(ids, out, kept & detector[:, None]),
        triggers=_rows(ids, out, (counts > 0) & (places < rules.num_triggers)),
    )


def _rows(ids: NgramIds, out: ngram_rules.Outcome, chosen: npt.NDArray[np.bool_]) -> NgramRows:
    """List the chosen top n-grams, bool [neuron, place], a row each."""
    neuron, place = np.nonzero(chosen)
    ngram, activations = out.top_ids[neuron, place], out.top_counts[neuron, place]
    occurrences = ids.occurrences[ngram]
    return NgramRows(
        neuron=neuron.astype(np.int32),
        ngram=ngram,
        token_ids=ids.token_ids[ngram],
        occurrences=occurrences,
        activations=activations,
        rate=activations / occurrences,
        share=activations / out.counted[neuron],
    )
