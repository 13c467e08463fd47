"""Which n-grams end at the set bits, and how many times: loops that numba compiles for the CPU.

Each is a plain function compiled on its first call, in about five seconds for all. They keep no
state, so callers may run several at once.

Two things decide the speed. Cost is proportional to set bits: words of zeros are skipped sixty-four
at a time. And no loop both loads from far away and stores to an address that depends on the load:
on some CPUs the later loads then wait for those stores, and such a loop runs fifty times slower
than the same work as two loops. So n-gram ids are gathered first and counted after, bucket by
bucket, in a histogram that stays in the second-level cache.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from neuronstats.bits.compiled import compiled

# Words looked at together: skipped at once where all are zero.
WORD_BLOCK = 64
# Free entries that the positions need past their last one: a block's worth.
SLACK = 64 * WORD_BLOCK + 8
# Positions of the corpus whose n-gram ids are looked at together, for all neurons: 256 kB.
SEGMENT = 1 << 16
# Positions looked up at once where so many lie in the segment.
BATCH = 64
# Ids of one bucket: 128 kB of uint32 counters. Up to 2^16 ids are counted as one bucket.
BUCKET_SHIFT = 15
SINGLE_SHIFT = 16


def _trailing_zeros_code(_context: Any, _word: Any) -> Any:
    """Find the position of the lowest set bit of a uint64; anything where there is none."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], context.get_constant(types.boolean, 1))

    return types.uint64(types.uint64), generate


def _popcount_code(_context: Any, _word: Any) -> Any:
    """Number of set bits of a uint64."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), generate


_trailing_zeros: Callable[[Any], Any] = intrinsic(_trailing_zeros_code)
popcount: Callable[[Any], Any] = intrinsic(_popcount_code)


@compiled
def decode_positions(words: Any, first: int, left_out: Any, positions: Any, offsets: Any) -> int:
    """Write the positions of the set bits of some neurons, one neuron after the other.

    Four positions are written at a time whether or not so many bits are set: what is too much is
    overwritten, and no branch depends on a single bit.

    Args:
        words: bitmaps uint64 [neuron, word], the first position in the lowest bit.
        first: the neuron to begin with.
        left_out: bool [neuron]: not decoded, as if no bit were set.
        positions: filled, uint32; at least one neuron's bits and `SLACK` long.
        offsets: filled, int64: where each decoded neuron's positions begin, and the end.

    Returns:
        Neurons decoded: those whose positions fit, at most len(offsets) - 1, at least one.
    """
    one = np.uint64(1)
    filled = np.empty(WORD_BLOCK, np.uint8)
    num_neurons = min(words.shape[0] - first, offsets.shape[0] - 1)
    end: Any = 0
    offsets[0] = 0
    for neuron in range(num_neurons):
        row = words[first + neuron]
        if left_out[first + neuron]:
            row = row[:0]
        for start in range(0, row.shape[0], WORD_BLOCK):
            block = row[start : min(start + WORD_BLOCK, row.shape[0])]
            union = np.uint64(0)
            for i in range(block.shape[0]):
                union |= block[i]
            if union == 0:
                continue
            if end + SLACK > positions.shape[0]:
                return neuron
            num_filled = np.uint64(0)
            for i in range(block.shape[0]):
                filled[num_filled] = i
                num_filled += np.uint64(block[i] != 0)
            for k in range(np.int64(num_filled)):
                i = filled[k]
                word = block[i]
                base = np.uint32((start + i) << 6)
                num_set = np.int64(popcount(word))
                k_bit = 0
                while k_bit < num_set:
                    for j in range(4):
                        positions[end + k_bit + j] = base + np.uint32(_trailing_zeros(word))
                        word &= word - one
                    k_bit += 4
                end += num_set
        offsets[neuron + 1] = end
    return num_neurons


@compiled
def gather_ids(
    positions: Any, offsets: Any, left_out: Any, ids: Any, cursors: Any, gathered: Any
) -> None:
    """Look up the n-gram that ends at each position of each neuron.

    All neurons take what they need of one segment of the corpus before any goes on to the next:
    each neuron by itself would fetch most of the corpus from memory again.

    Args:
        positions: of the neurons, one after the other, each ascending, uint32.
        offsets: where each neuron's positions begin, and the last one's end, int64.
        left_out: bool [neuron]: not looked up.
        ids: the corpus's n-gram ids, uint32.
        cursors: space for a number per neuron, int64.
        gathered: filled like positions, uint32.
    """
    num_neurons = offsets.shape[0] - 1
    for neuron in range(num_neurons):
        cursors[neuron] = offsets[neuron + 1] if left_out[neuron] else offsets[neuron]
    for start in range(0, ids.shape[0], SEGMENT):
        stop = start + SEGMENT
        for neuron in range(num_neurons):
            place, end = cursors[neuron], offsets[neuron + 1]
            while place + BATCH <= end and positions[place + BATCH - 1] < stop:
                wanted, batch = positions[place : place + BATCH], gathered[place : place + BATCH]
                for j in range(BATCH):
                    batch[j] = ids[wanted[j]]
                place += BATCH
            while place < end and positions[place] < stop:
                gathered[place] = ids[positions[place]]
                place += 1
            cursors[neuron] = place


@compiled
def _partition(gathered: Any, shift: int, starts: Any, parted: Any) -> None:
    """Sort ids [activation] into buckets of equal id >> shift; set each bucket's end in starts."""
    shift32 = np.uint32(shift)
    starts[:] = 0
    for j in range(gathered.shape[0]):
        starts[np.uint64(gathered[j] >> shift32) + np.uint64(1)] += 1
    for b in range(1, starts.shape[0]):
        starts[b] += starts[b - 1]
    for j in range(gathered.shape[0]):
        bucket = np.uint64(gathered[j] >> shift32)
        place = starts[bucket]
        parted[place] = gathered[j]
        starts[bucket] = place + 1


@compiled
def _count_bucket(bucket: Any, base: Any, histogram: Any, found: Any, counts: Any, end: Any) -> Any:
    """Append a bucket's distinct ids and their counts to found and counts; return the new end.

    The histogram is zero before and after.
    """
    low = np.uint32(base)
    place = np.uint64(end)
    for j in range(bucket.shape[0]):
        histogram[np.uint64(bucket[j] - low)] += np.uint32(1)
    if bucket.shape[0] >= histogram.shape[0]:
        for i in range(histogram.shape[0]):
            count = histogram[i]
            if count:
                found[place] = low + np.uint32(i)
                counts[place] = count
                place += np.uint64(1)
        histogram[:] = 0
        return np.int64(place)
    for j in range(bucket.shape[0]):
        i = bucket[j]
        count = histogram[np.uint64(i - low)]
        histogram[np.uint64(i - low)] = 0
        found[place] = i
        counts[place] = count
        place += np.uint64(count != 0)
    return np.int64(place)


@compiled
def distinct(
    gathered: Any, num_ids: int, histogram: Any, starts: Any, parted: Any, counts: Any
) -> tuple[int, int]:
    """Find the distinct n-grams of a neuron, and how often each is there.

    Args:
        gathered: ids [activation], uint32, num_ids standing for "no n-gram ends here"; on return
            its front holds the distinct ones.
        num_ids: the number of distinct n-grams of the corpus.
        histogram: zeros, uint32 [2^SINGLE_SHIFT]; zeros again afterwards.
        starts: space for a number per bucket and one more, int64.
        parted: space for as many ids, uint32.
        counts: filled at its front: how often each distinct n-gram is there, uint32.

    Returns:
        How many distinct n-grams, and the activations that they sum to.
    """
    num = gathered.shape[0]
    end: Any = np.int64(0)  # typed as it goes on, so that the callee is compiled once
    last: Any = end
    if num_ids < histogram.shape[0]:
        all_ids = histogram[: num_ids + 1]
        end = _count_bucket(gathered, np.int64(0), all_ids, gathered, counts, end)
    else:
        _partition(gathered, BUCKET_SHIFT, starts, parted)
        bucket_ids = histogram[: 1 << BUCKET_SHIFT]
        start = 0
        for b in range(starts.shape[0] - 1):
            bucket = parted[start : starts[b]]
            start = starts[b]
            if bucket.shape[0]:
                last = end
                end = _count_bucket(
                    bucket, np.int64(b << BUCKET_SHIFT), bucket_ids, gathered, counts, end
                )
    counted: Any = num
    for j in range(last, end):  # num_ids is the highest of all, so in the last bucket
        if gathered[j] == num_ids:
            counted -= np.int64(counts[j])
            end -= 1
            gathered[j] = gathered[end]
            counts[j] = counts[end]
            break
    return end, counted


@compiled
def active_bits(words: Any, positions: Any) -> Any:
    """Count the given positions at which a neuron's bit is set."""
    active = np.uint64(0)
    for j in range(positions.shape[0]):
        place = positions[j]
        active += (words[place >> np.uint32(6)] >> np.uint64(place & np.uint32(63))) & np.uint64(1)
    return np.int64(active)


@compiled
def count_bits(words: Any) -> Any:
    """Count the set bits of each row of words uint64 [neuron, word]: int64 [neuron]."""
    counts = np.zeros(words.shape[0], np.int64)
    for neuron in range(words.shape[0]):
        row = words[neuron]
        active = np.uint64(0)
        for i in range(row.shape[0]):
            active += popcount(row[i])
        counts[neuron] = active
    return counts


@compiled
def common_bits(words: Any, others: Any) -> Any:
    """Count the bits that are set in both of two bitmaps uint64 [word]."""
    common = np.uint64(0)
    for i in range(words.shape[0]):
        common += popcount(words[i] & others[i])
    return np.int64(common)
