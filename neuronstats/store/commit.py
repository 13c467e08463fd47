"""Writing a shard, and the record that commits it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronstats.errors import UserError
from neuronstats.hashing import checksum
from neuronstats.machine import num_cores
from neuronstats.store.bitmaps import encode, join_chunks
from neuronstats.store.layout import ZARR, Record, Shard
from neuronstats.store.run import Run

WRITERS = 16  # chunks compressed at a time, at most

UInt8 = NDArray[np.uint8]


class ShardWriter:
    """Writes one shard: its layers in any order, then the record that commits it."""

    def __init__(self, run: Run, shard: Shard) -> None:
        self._run, self.shard = run, shard
        self._objects: dict[str, tuple[int, str]] = {}
        self._activations: dict[int, int] = {}
        self._mutex = threading.Lock()
        self._root = run.zarr(writable=True, on_write=self._observe)

    def _observe(self, key: str, data: bytes) -> None:
        with self._mutex:
            self._objects[key] = (len(data), checksum(data))

    @property
    def _key(self) -> str:
        return f"{ZARR}/{Record.key(self.shard.index)}"

    def write_layer(
        self,
        layer: int,
        bitmap: UInt8 | None,
        position_counts: NDArray[np.integer[Any]],
        sums: NDArray[np.int64] | None = None,
        token_sums: NDArray[np.int64] | None = None,
    ) -> None:
        """Write one layer's whole objects, unless the shard was committed meanwhile.

        A worker that outlived its job, or was thought lost, then changes nothing that is read.

        Args:
            layer: the layer.
            bitmap: uint8 [neuron, sequence, byte], or None where the run keeps none.
            position_counts: integers [position, neuron].
            sums: int64 [quantity, neuron], where the run has some.
            token_sums: int64 [token, neuron], where the run has some.
        """
        where = f"{self.shard}, layer {layer} of {self._run.folder.location}"
        total = int(position_counts.sum(dtype=np.int64))
        beside = [
            (self._array(kind, layer), values)
            for kind, values in (("sums", sums), ("token_sums", token_sums))
            if values is not None and len(values)
        ]
        self._activations[layer] = total
        if self._run.folder.exists(self._key):
            return
        try:
            self._write_counts(layer, position_counts)
            for array, values in beside:
                array[self.shard.index] = values
            if bitmap is not None:
                self._write_bitmap(layer, bitmap)
        except UserError:
            raise
        except Exception as error:
            reason = str(error).split("\n")[0] or type(error).__name__
            raise UserError(
                f"cannot write {where}: {reason}. Check free space and permissions, then run the"
                " same command again: what was committed is kept."
            ) from error

    def _write_counts(self, layer: int, position_counts: NDArray[np.integer[Any]]) -> None:
        """Write one layer's counts, integers [position, neuron]."""
        layout = self._run.layout
        width = layout.neurons_per_count_object
        for number, first in enumerate(range(0, layout.num_neurons, width)):
            part = position_counts[:, first : first + width]
            chunk = np.zeros((layout.num_positions, width), layout.count_dtype.newbyteorder("<"))
            chunk[:, : part.shape[1]] = part
            key = f"position_counts/{layer:03d}/c/{self.shard.index}/0/{number}"
            self._write(key, encode(chunk))

    def _write_bitmap(self, layer: int, bitmap: UInt8) -> None:
        """Write one layer's bits, uint8 [neuron, sequence, byte]; compressed in threads."""
        layout = self._run.layout
        chunk, whole = layout.neurons_per_chunk, layout.neurons_per_object
        full = (chunk, layout.shard_sequences, bitmap.shape[2])

        def compressed(first: int) -> bytes:
            part = bitmap[first : first + chunk]
            if part.shape != full:  # a short shard, or the last neurons: written whole
                part, own = np.zeros(full, np.uint8), part
                part[: len(own), : own.shape[1]] = own
            return encode(part)

        with ThreadPoolExecutor(min(WRITERS, num_cores())) as threads:
            for number, start in enumerate(range(0, layout.num_neurons, whole)):
                firsts = range(start, min(start + whole, layout.num_neurons), chunk)
                frames = list(threads.map(compressed, firsts))
                data = frames[0] if whole == chunk else join_chunks(frames, whole // chunk)
                key = f"bitmaps/{layer:03d}/c/{number}/{self.shard.index}/0/0"
                self._write(key, data)

    def _write(self, key: str, data: bytes) -> None:
        self._observe(key, data)
        self._run.folder.write(f"{ZARR}/{key}", data)

    def _array(self, kind: str, layer: int) -> Any:
        """Return a layer's array, to be written without a look whether chunks are all zero.

        That look takes longer than compressing them, and all-zero chunks compress to nothing.
        """
        return self._run.array(self._root, kind, layer).with_config({"write_empty_chunks": True})

    def commit(self) -> Record:
        """Write the record, last: from now on the shard counts. The first record stays."""
        layers = range(self._run.layout.num_layers)
        assert sorted(self._activations) == list(layers)
        activations = [self._activations[layer] for layer in layers]
        record = Record(self.shard, self._run.fingerprint, self._objects, activations)
        self._run.folder.create(self._key, record.dumps())
        return record
