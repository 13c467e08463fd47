"""How many bits two rows have in common, for all pairs of rows: a loop that numba compiles."""

from typing import Any

import numpy as np

from neuronstats.bits.compiled import compiled
from neuronstats.stats.ngram_kernels import popcount

TILE_WORDS = 512  # of a row at a time, 4 kB: a block's rows stay in the second-level cache


@compiled
def count_common(first: Any, second: Any, common: Any) -> None:
    """Add to int64 [row of the first, of the second] the bits that both uint64 [row, word] set."""
    num_words = first.shape[1]
    for start in range(0, num_words, TILE_WORDS):
        end = min(start + TILE_WORDS, num_words)
        for j in range(second.shape[0]):
            for i in range(first.shape[0]):
                count = np.int64(0)
                for k in range(start, end):
                    count += np.int64(popcount(first[i, k] & second[j, k]))
                common[i, j] += count
