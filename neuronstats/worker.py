"""A collect worker: keeps the model over shards, sweeps, writes and commits each."""

import logging
import platform
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from neuronstats.checkpoint import Checkpoint, ModelSettings, locate
from neuronstats.errors import SettingsError, UserError
from neuronstats.machine import peak_host_bytes
from neuronstats.plan import Work
from neuronstats.store import Run, Shard
from neuronstats.sweep import Sweep

log = logging.getLogger(__name__)

LOGS = "logs"


@dataclass(frozen=True)
class ShardSummary:
    """What a worker says of a shard that it has committed."""

    tokens: int
    seconds: float
    writer_wait_seconds: float
    peak_bytes: int


class ShardWorker:
    """One worker: keeps the model over shards, writes and commits each.

    Args:
        location: the run.
        model: where the checkpoint is.
        work: the sizes, with every choice made.
    """

    def __init__(self, location: str, model: ModelSettings, work: Work) -> None:
        _log_to_file(location)
        try:
            self._run = Run.open(location)
        except SettingsError as error:
            raise UserError(
                f"{error} The worker on {platform.node()} looked for it: on a cluster the run must"
                " be an object-store URL, or a folder that every machine sees."
            ) from error
        checkpoint = Checkpoint(locate(model))
        identity = self._run.info["identity"]
        if checkpoint.fingerprint() != identity["model.weights"]:
            raise UserError(
                f"{checkpoint.folder} on {platform.node()} holds other weights than the run's."
            )
        self._tokens = self._run.corpus().tokens
        self._sweep = Sweep(
            checkpoint,
            num_layers=work.num_layers,
            num_bitmaps=work.num_bitmaps,
            batch_sequences=work.batch_sequences,
            dtype=getattr(torch, identity["model.dtype"]),
            device=torch.device("cuda" if work.on_gpu else "cpu"),
            resident=work.resident,
            hidden_on_device=work.hidden_on_device,
        )
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="writer")

    def __call__(self, shard: Shard) -> ShardSummary:
        """Run, write and commit one shard."""
        start, waited = time.monotonic(), 0.0
        log.info("%s: start", shard)
        writer = self._run.writer(shard)
        pending: Future[None] | None = None
        try:
            for record in self._sweep(self._tokens[shard.sequences], str(shard)):
                waiting = time.monotonic()
                if pending is not None:  # one layer is written while the next is computed, no more
                    pending.result()
                waited += time.monotonic() - waiting
                pending = self._writing.submit(
                    writer.write_layer, record.layer, record.bitmap, record.position_counts
                )
                del record
        finally:
            if pending is not None:  # after an error too: nothing is written behind its back
                wait([pending])
        assert pending is not None
        pending.result()
        writer.commit()
        tokens = shard.num_sequences * self._tokens.shape[1]
        summary = ShardSummary(tokens, time.monotonic() - start, waited, peak_host_bytes())
        log.info("%s: committed, %s", shard, summary)
        return summary


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
