"""From one neuron's n-gram counts to its cover, its top n-grams and its detector's evidence.

Compiled by numba like `ngram_kernels`, whose counts these loops draw on. What is left to be done
for few n-grams only, the three steps of a detector, is plain NumPy in `ngrams`.
"""

from typing import Any, NamedTuple

import numpy as np

from neuronstats.bits.compiled import compiled
from neuronstats.stats.ngram_ids import NUM_FREQUENT
from neuronstats.stats.ngram_kernels import active_bits, common_bits, distinct, gather_ids

# n-grams with fewer activations are tallied by count, the others inserted: there are few.
TALLY = 1024
# Neurons with fewer activations are counted in full: to prove it needless would take as long.
PRUNE_LEAST = 4096


class Rules(NamedTuple):
    """What to count and when to stop; shares as numerator and denominator, so all is exact."""

    cover_numerator: int
    cover_denominator: int
    rate_numerator: int
    rate_denominator: int
    min_count: int
    max_cover: int
    num_triggers: int
    cover_limit: int  # -1: none


class NgramTable(NamedTuple):
    """The n-gram that ends at each position: see `ngrams.NgramIds`."""

    ids: Any  # uint32 [sequence * 8 * byte]
    occurrences: Any  # int64 [ngram]
    lexical: Any  # uint32 [ngram]
    holes: Any  # uint32 [hole]: positions where no n-gram ends
    frequent: Any  # uint64 [word]: bits of the positions where one of NUM_FREQUENT n-grams ends


class Scratch(NamedTuple):
    """Space that every neuron uses again; zeros stay zeros between neurons."""

    histogram: Any  # uint32 [2^SINGLE_SHIFT], zeros
    starts: Any  # int64 [bucket + 1]
    gathered: Any  # uint32 [activation], of several neurons
    parted: Any  # uint32 [activation], of one
    counts: Any  # uint32 [activation], of one
    cursors: Any  # int64 [neuron]
    tally: Any  # int64 [4, TALLY], zeros
    values: Any  # int64 [level]
    sizes: Any  # int64 [level]


class Outcome(NamedTuple):
    """What is found about each neuron of a block."""

    counted: Any  # int64 [neuron]: activations at positions where an n-gram ends
    cover: Any  # int64 [neuron]
    loose: Any  # int64 [neuron]: activations by n-grams of a high enough rate; 0 if cover is large
    top_ids: Any  # uint32 [neuron, place], by falling activations
    top_counts: Any  # int64 [neuron, place]; 0 past the last
    # int64 [neuron]: no `cover_limit` n-grams of this or a larger n account for more
    upper_bound: Any
    upper_bound_of_shorter: Any  # of the next smaller n, which holds for this n too
    ruled_out: Any  # bool [neuron]: known not to be covered by `cover_limit` n-grams: not counted


@compiled
def _tally_levels(counts: Any, tally: Any, values: Any, sizes: Any) -> int:
    """Set values and sizes to the distinct counts, falling, and how many n-grams have each.

    Args:
        counts: activations of each distinct n-gram, uint32.
        tally: zeros, int64 [4, TALLY]; zeros again afterwards. Four rows, because neighbouring
            n-grams mostly have equal counts, and one counter would be waited for.
        values: filled, int64; long enough for all distinct counts.
        sizes: filled, int64.

    Returns:
        The number of distinct counts.
    """
    levels = 0
    highest: Any = 0
    for j in range(counts.shape[0]):
        count: Any = np.int64(counts[j])
        if count < TALLY:
            tally[j & 3, count] += 1
            highest = max(highest, count)
            continue
        place = levels
        while place > 0 and values[place - 1] < count:
            place -= 1
        if place > 0 and values[place - 1] == count:
            sizes[place - 1] += 1
            continue
        for k in range(levels, place, -1):
            values[k] = values[k - 1]
            sizes[k] = sizes[k - 1]
        values[place] = count
        sizes[place] = 1
        levels += 1
    for value in range(highest, 0, -1):
        size = tally[0, value] + tally[1, value] + tally[2, value] + tally[3, value]
        if size:
            values[levels] = value
            sizes[levels] = size
            levels += 1
    tally[:, : highest + 1] = 0
    return levels


@compiled
def _cover(values: Any, sizes: Any, need: int) -> int:
    """Count the n-grams, most frequent first, that it takes to reach `need` activations."""
    taken, reached = 0, 0
    for level in range(values.shape[0]):
        whole = values[level] * sizes[level]
        if reached + whole >= need:
            return taken + (need - reached + values[level] - 1) // values[level]
        reached += whole
        taken += sizes[level]
    return taken


@compiled
def _reach(values: Any, sizes: Any, num_ngrams: int) -> tuple[int, int]:
    """Return the activations of the num_ngrams most frequent n-grams, and the least one's."""
    reached, left, least = 0, num_ngrams, 0
    for level in range(values.shape[0]):
        if left == 0:
            break
        taken = min(left, sizes[level])
        least = values[level]
        reached += taken * least
        left -= taken
    return reached, least


@compiled
def _select(
    found: Any, counts: Any, least: int, lexical: Any, top_ids: Any, top_counts: Any
) -> int:
    """Fill top_ids and top_counts with the n-grams of most activations; return how many there are.

    Ties by ascending token ids. `least` is a count that none of them is below.
    """
    room, filled = top_ids.shape[0], 0
    for j in range(found.shape[0]):
        count = counts[j]
        if count < least:
            continue
        ngram = found[j]
        rank = lexical[ngram]
        place = filled
        while place > 0 and (
            top_counts[place - 1] < count
            or (top_counts[place - 1] == count and lexical[top_ids[place - 1]] > rank)
        ):
            place -= 1
        if place == room:
            continue
        filled = min(filled + 1, room)
        for k in range(filled - 1, place, -1):
            top_ids[k] = top_ids[k - 1]
            top_counts[k] = top_counts[k - 1]
        top_ids[place] = ngram
        top_counts[place] = count
    return filled


@compiled
def _loose(found: Any, counts: Any, occurrences: Any, rules: Rules) -> int:
    """Sum the activations of the n-grams that a neuron detects, in its cover or not."""
    total: Any = 0
    for j in range(found.shape[0]):
        occurring = occurrences[found[j]]
        activations = np.int64(counts[j])
        if (
            occurring >= rules.min_count
            and activations * rules.rate_denominator >= occurring * rules.rate_numerator
        ):
            total += activations
    return total


@compiled
def _rule_out(out: Outcome, rules: Rules, first: int, num_neurons: int) -> None:
    """Rule out neurons that few n-grams of this n cannot cover, as shorter n-grams have shown.

    Neurons that `prune` was not asked for have 0 counted activations so far.
    """
    for neuron in range(first, first + num_neurons):
        out.upper_bound[neuron] = min(out.upper_bound[neuron], out.upper_bound_of_shorter[neuron])
        # upper_bound < needed activations, without the division
        needed = out.counted[neuron] * rules.cover_numerator
        if out.upper_bound[neuron] * rules.cover_denominator < needed:
            out.ruled_out[neuron] = True
            out.cover[neuron] = rules.cover_limit + 1


@compiled
def prune(
    words: Any, first: int, active: Any, corpus: NgramTable, rules: Rules, out: Outcome
) -> None:
    """Rule out neurons that few n-grams cannot cover, without finding out which n-grams they are.

    Exact: no `cover_limit` n-grams account for more activations than they have occurrences; nor for
    more than those on frequent n-grams and, for each of them, the occurrences that the most common
    infrequent one has. What bounds n-grams also bounds longer ones, which lie inside them.

    Args:
        words: bitmaps uint64 [neuron, word].
        first: the neuron that active begins with.
        active: their set bits, int64 [neuron - first]; 0 for those that are not asked for.
        corpus: the n-grams of one n.
        rules: with a `cover_limit`.
        out: `ruled_out`, `counted` and `cover` are set where there is a proof; `upper_bound` is
            read, from the next smaller n, and lowered.
    """
    limit, num_ids = rules.cover_limit, corpus.occurrences.shape[0]
    common = corpus.occurrences[:limit].sum()
    rest = 0
    if num_ids > NUM_FREQUENT:
        rest = limit * corpus.occurrences[NUM_FREQUENT]
    for k in range(active.shape[0]):
        neuron = first + k
        if active[k] < PRUNE_LEAST or out.ruled_out[neuron]:
            continue
        out.counted[neuron] = active[k] - active_bits(words[neuron], corpus.holes)
        out.upper_bound[neuron] = min(out.upper_bound[neuron], common)
        _rule_out(out, rules, neuron, 1)
        if not out.ruled_out[neuron]:
            frequent = common_bits(words[neuron], corpus.frequent)
            out.upper_bound[neuron] = min(out.upper_bound[neuron], frequent + rest)
            _rule_out(out, rules, neuron, 1)


@compiled
def count_ngrams(
    first: int,
    positions: Any,
    offsets: Any,
    corpus: NgramTable,
    rules: Rules,
    scratch: Scratch,
    out: Outcome,
) -> None:
    """Count the n-grams of one n that end where some neurons are activated.

    Args:
        first: the neuron that offsets begin with.
        positions: set bits of the neurons, uint32.
        offsets: where each neuron's positions begin, and the last one's end, int64.
        corpus: the n-gram ids, read only.
        rules: what to count.
        scratch: space.
        out: rows of the neurons are set; the upper bounds are also read.
    """
    limit, num_neurons = rules.cover_limit, offsets.shape[0] - 1
    if limit >= 0:
        _rule_out(out, rules, first, num_neurons)
    ruled_out = out.ruled_out[first : first + num_neurons]
    gather_ids(positions, offsets, ruled_out, corpus.ids, scratch.cursors, scratch.gathered)
    for k in range(num_neurons):
        neuron = first + k
        if ruled_out[k] or offsets[k] == offsets[k + 1]:
            continue
        found = scratch.gathered[offsets[k] : offsets[k + 1]]
        num_found, counted = distinct(
            found,
            corpus.occurrences.shape[0],
            scratch.histogram,
            scratch.starts,
            scratch.parted,
            scratch.counts,
        )
        out.counted[neuron] = counted
        if counted == 0:
            continue
        found, counts = found[:num_found], scratch.counts[:num_found]
        levels = _tally_levels(counts, scratch.tally, scratch.values, scratch.sizes)
        values, sizes = scratch.values[:levels], scratch.sizes[:levels]
        needed = -(-counted * rules.cover_numerator // rules.cover_denominator)
        cover = _cover(values, sizes, needed)
        if limit >= 0:
            out.upper_bound[neuron] = min(out.upper_bound[neuron], _reach(values, sizes, limit)[0])
        out.cover[neuron] = cover if limit < 0 else min(cover, limit + 1)
        room = rules.num_triggers
        if cover <= rules.max_cover:
            room = max(room, cover)
            out.loose[neuron] = _loose(found, counts, corpus.occurrences, rules)
        if room:
            least = _reach(values, sizes, room)[1]
            top_ids = out.top_ids[neuron, :room]
            _select(found, counts, least, corpus.lexical, top_ids, out.top_counts[neuron])
