"""A collect worker: keeps the model over shards, sweeps, writes and commits each."""

import logging
import platform
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from neuronstats.cluster.reports import DEFERRED, PreviousResult
from neuronstats.collect.plan import Work
from neuronstats.collect.sweep import Sweep
from neuronstats.collect.writing import Writing
from neuronstats.errors import SettingsError, UserError
from neuronstats.machine import peak_host_bytes
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.settings import ModelSettings
from neuronstats.model.source import locate
from neuronstats.store.commit import ShardWriter
from neuronstats.store.layout import LOGS, Shard
from neuronstats.store.run import Run
from neuronstats.units import short, size

MATMUL_SIDE = {"cpu": 768, "cuda": 8192}  # of the square matrices that are multiplied
MATMUL_SECONDS = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardSummary:
    """What a worker says of a shard that it has committed."""

    tokens: int
    seconds: float
    """In which the worker did nothing else than this shard."""
    weight_bytes: int
    """Read for this shard; with the first one, also what was read before it."""
    weights_wait_seconds: float
    """The computation waited for weights."""
    writer_wait_seconds: float
    """The worker waited for the writer; on a GPU the computation may have gone on meanwhile."""
    matmul_flops: float
    """FLOP per second of a matrix product alone, measured by the worker when it started."""
    peak_bytes: int


@dataclass(frozen=True)
class _Uncommitted:
    """A shard that is run, and still written."""

    shard: Shard
    summary: ShardSummary
    commit: Future[None]


class ShardWorker:
    """One worker: keeps the model over shards, writes and commits each.

    A shard's last layers are written while the next shard is begun; one shard may be behind.

    Args:
        location: the run.
        model: where the checkpoint is.
        work: the sizes, with every choice made.
    """

    def __init__(self, location: str, model: ModelSettings, work: Work) -> None:
        try:
            self._run = Run.open(location, patient=True)
        except SettingsError as error:
            raise UserError(
                f"{error} The worker on {platform.node()} looked for it: on a cluster the run must"
                " be an object-store URL, or a folder that every machine sees."
            ) from error
        _log_to_file(location)
        checkpoint = Checkpoint(locate(model, cached=True))
        identity = self._run.info["identity"]
        if checkpoint.fingerprint() != identity["model.weights"]:
            raise UserError(
                f"{checkpoint.folder} on {platform.node()} holds other weights than the run's."
            )
        self._work = work
        self._tokens = self._run.corpus().tokens
        dtype = getattr(torch, identity["model.dtype"])
        device = torch.device("cuda" if work.on_gpu else "cpu")
        self._matmul_flops = matmul_flops(dtype, device)
        layout = self._run.layout
        self._sweep = Sweep(
            checkpoint,
            num_layers=work.num_layers,
            num_bitmaps=work.num_bitmaps,
            batch_sequences=work.batch_sequences,
            dtype=dtype,
            device=device,
            resident=work.resident,
            hidden_on_device=work.hidden_on_device,
            table_on_device=work.table_on_device,
            sum_tokens=np.array(layout.sum_tokens, np.int64) if layout.sums else None,
            threshold=self._run.about.threshold,
        )
        self._writing = Writing()
        self._uncommitted: _Uncommitted | None = None
        self._weight_bytes = 0

    def __call__(self, shard: Shard) -> Generator[int | PreviousResult, None, object]:
        """Run one shard, and give it to be written and committed while the next one is run.

        Yields:
            How many of its layers are done; and the summary of the shard before, once committed.

        Returns:
            DEFERRED: its own summary comes with the next shard, or from `deferred_result`.
        """
        start = time.monotonic()
        log.info("%s: start", shard)
        tokens = self._tokens[shard.sequences]
        writer = ShardWriter(self._run, shard)
        try:
            for layers in self._writing.layers(self._sweep(tokens, str(shard)), writer):
                if self._uncommitted is not None and self._uncommitted.commit.done():
                    yield PreviousResult(self._committed())
                yield layers
            if self._uncommitted is not None:  # one shard behind, not two
                yield PreviousResult(self._committed())
        except BaseException:
            if self._uncommitted is not None:
                wait(
                    [self._uncommitted.commit]
                )  # what is wrong with this shard is not wrong with that
            raise
        read, self._weight_bytes = self._weight_bytes, self._sweep.layers.bytes_read
        waited, self._writing.waited = self._writing.waited, 0.0
        summary = ShardSummary(
            tokens=shard.num_sequences * self._tokens.shape[1],
            seconds=time.monotonic() - start,
            weight_bytes=self._weight_bytes - read,
            weights_wait_seconds=self._sweep.layers.pop_wait_seconds(),
            writer_wait_seconds=waited,
            matmul_flops=self._matmul_flops,
            peak_bytes=0,
        )
        self._uncommitted = _Uncommitted(shard, summary, self._writing.commit(writer))
        return DEFERRED

    def deferred_result(self) -> ShardSummary:
        """Wait until the shard that was run last is committed; return its summary."""
        return self._committed()

    def _committed(self) -> ShardSummary:
        """Wait for the commit of the shard behind."""
        assert self._uncommitted is not None
        behind, self._uncommitted = self._uncommitted, None
        start = time.monotonic()
        try:
            behind.commit.result()
        except UserError as error:
            raise type(error)(f"{behind.shard}: {error}") from error
        waited = time.monotonic() - start
        summary = replace(
            behind.summary,
            seconds=behind.summary.seconds + waited,
            writer_wait_seconds=behind.summary.writer_wait_seconds + waited,
            peak_bytes=peak_host_bytes(),
        )
        log.info("%s: %s", behind.shard, summary)
        log.info("%s: %s", behind.shard, describe([summary], self._work))
        return summary


def describe(summaries: Sequence[ShardSummary], work: Work) -> str:
    """Describe how fast shards went, and what they waited for."""
    tokens = sum(summary.tokens for summary in summaries)
    busy = sum(summary.seconds for summary in summaries)
    rate = sum(summary.matmul_flops for summary in summaries) / len(summaries)
    reached = tokens * work.flop_per_token / busy / rate
    read = sum(summary.weight_bytes for summary in summaries) / tokens
    weights = sum(summary.weights_wait_seconds for summary in summaries) / busy
    writer = sum(summary.writer_wait_seconds for summary in summaries) / busy
    return (
        f"{short(tokens / busy)} tokens/s a worker, {reached:.0%} of the {short(rate)}FLOP/s that a"
        f" matrix product reached here; {size(read)} of weights read per token;"
        f" waited for weights {weights:.1%}, for the writer {writer:.1%} of the time"
    )


def _log_to_file(location: str) -> None:
    """Send a worker's log to the run folder; on an object store it stays with ray's own."""
    if "://" in location:
        return
    folder = Path(location) / LOGS
    folder.mkdir(exist_ok=True)
    logging.basicConfig(
        filename=folder / f"{platform.node()}-{time.strftime('%Y%m%d-%H%M%S')}.log",
        level=logging.INFO,
        format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s",
        force=True,
    )


def matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Measure how fast this process multiplies matrices: FLOP per second, the best of several.

    With the threads that torch has now. What a forward pass could reach at most, about.
    """
    side = MATMUL_SIDE[device.type]
    # Of equal numbers a processor takes less power, and runs faster than it ever would.
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn((side, side), generator=generator).to(device, dtype)
    out = torch.mm(matrix, matrix)  # loads libraries: a GPU's take longer than is measured
    best, end = float("inf"), time.perf_counter() + MATMUL_SECONDS
    while (start := time.perf_counter()) < end:
        torch.mm(matrix, matrix, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    if device.type == "cuda":
        del matrix, out
        torch.cuda.empty_cache()
    return 2 * side**3 / best
