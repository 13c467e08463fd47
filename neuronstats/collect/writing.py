"""Shards written behind the computation: layers in a thread, in order, and a commit at the end."""

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

from neuronstats.collect.plan import WRITE_AHEAD
from neuronstats.collect.sweep import LayerRecord
from neuronstats.store.commit import ShardWriter

log = logging.getLogger(__name__)


class Writing:
    """Writes shards in one thread, in the order given.

    At most WRITE_AHEAD layers wait there or are being written, whatever shards they are of: a shard
    may be begun while the last layers of the one before are written, and takes no more memory.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._pending: deque[Future[None]] = deque()
        self._given: list[Future[None]] = []  # of the shard at hand
        self.waited = 0.0
        """Seconds in which the caller has waited for the thread."""

    def layers(self, records: Iterable[LayerRecord], writer: ShardWriter) -> Iterator[int]:
        """Submit a shard's layers to the thread.

        Args:
            records: the layers.
            writer: of that shard.

        Yields:
            How many layers are computed and given.

        Raises:
            UserError: a layer could not be written, of this shard or of the one before.
        """
        self._given = []
        try:
            for record in records:
                while len(self._pending) >= WRITE_AHEAD:
                    self.wait(self._pending.popleft())
                future = self._thread.submit(
                    writer.write_layer,
                    record.layer,
                    record.bitmap,
                    record.position_counts,
                    record.sums,
                    record.token_sums,
                )
                self._given.append(future)
                self._pending.append(future)
                layers = record.layer + 1
                del record, future  # the arrays are the thread's
                yield layers
        except BaseException:
            wait(self._given)  # nothing is written behind the caller's back
            raise

    def commit(self, writer: ShardWriter) -> Future[None]:
        """Commit the shard whose layers were given, once all of them are written.

        Returns:
            What to wait for; where a layer could not be written, it raises that and nothing is
            committed.
        """
        return self._thread.submit(_commit, writer, self._given)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def wait(self, future: Future[None]) -> None:
        """Wait for something given to the thread; raise what it raised."""
        start = time.monotonic()
        try:
            future.result()
        finally:
            self.waited += time.monotonic() - start


def _commit(writer: ShardWriter, layers: list[Future[None]]) -> None:
    for layer in layers:
        layer.result()
    writer.commit()
    log.info("%s: committed", writer.shard)
