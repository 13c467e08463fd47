"""What one worker of the reduction does: layers' counts, blocks, then projections of detectors."""

from collections.abc import Sequence
from functools import cached_property, lru_cache

import zarr

from neuronstats.model.settings import ModelSettings
from neuronstats.reduce.block import Block, BlockMerger, BlockResult
from neuronstats.reduce.counts import Counts, LayerCounter, LayerCounts
from neuronstats.reduce.project import LayerSuppression, LayerTokens, judge_layer
from neuronstats.reduce.signed import SignedJudge
from neuronstats.reduce.weights import ModelWeights
from neuronstats.stats.settings import ReduceSettings
from neuronstats.stats.view import Statistic
from neuronstats.store.layout import PARTIAL, POSITIONS, Shard
from neuronstats.store.run import Run

Task = LayerCounts | Block | LayerTokens
Result = Counts | BlockResult | LayerSuppression


class ReduceWorker:
    """Does the tasks of one run's reduction.

    Args:
        location: the run, whose positions.zarr is laid down and whose n-grams are numbered.
        shards: those that count.
        settings: lengths and thresholds.
        model: the run's.
        sections: the statistics, in the order of their columns.
    """

    def __init__(
        self,
        location: str,
        shards: Sequence[Shard],
        settings: ReduceSettings,
        model: ModelSettings,
        sections: Sequence[Statistic],
    ) -> None:
        run = Run.open(location, patient=True)
        records = run.records()
        store = run.folder.zarr_store(f"{PARTIAL}/{POSITIONS}", read_only=False)
        positions = zarr.open_group(store, mode="r+", use_consolidated=False)

        @lru_cache(1)
        def weights(*, centred: bool = False) -> ModelWeights:
            return ModelWeights(model, run.about.weights_fingerprint, centred=centred)

        self._run, self._shards = run, shards
        self._weights, self._centred = weights, settings.centred
        self._add = LayerCounter(run, shards, records, positions)
        self._merge: BlockMerger | None = BlockMerger(
            run, shards, records, positions, settings, model, sections, weights
        )

    def __call__(self, task: Task) -> Result:
        """Do a task; those of a block's layer come before it."""
        if isinstance(task, LayerCounts):
            return self._add(task)
        if isinstance(task, Block):
            assert self._merge is not None, "blocks come before projections"
            return self._merge(task)
        self._merge = None  # its bits and n-grams are not wanted any more
        if self._run.layout.sums:
            return self._signed(task)
        return judge_layer(self._weights(centred=self._centred), task)

    @cached_property
    def _signed(self) -> SignedJudge:
        return SignedJudge(self._run, self._shards, self._weights(centred=self._centred))
