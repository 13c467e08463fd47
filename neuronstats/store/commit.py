"""Writing a shard, and the record that commits it."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronstats.errors import UserError
from neuronstats.hashing import checksum
from neuronstats.store.layout import ZARR, Record, Shard
from neuronstats.store.run import Run

UInt8 = NDArray[np.uint8]


class ShardWriter:
    """Writes one shard: its layers in any order, then the record that commits it."""

    def __init__(self, run: Run, shard: Shard) -> None:
        self._run, self._shard = run, shard
        self._objects: dict[str, tuple[int, str]] = {}
        self._activations: dict[int, int] = {}
        self._mutex = threading.Lock()
        self._root = run.zarr(writable=True, on_write=self._observe)

    def _observe(self, key: str, data: bytes) -> None:
        with self._mutex:
            self._objects[key] = (len(data), checksum(data))

    @property
    def _key(self) -> str:
        return f"{ZARR}/{Record.key(self._shard.index)}"

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
        layout, shard = self._run.layout, self._shard
        where = f"{shard}, layer {layer} of {self._run.folder.location}"
        total = int(position_counts.sum(dtype=np.int64))
        counts = self._array("position_counts", layer)
        bitmaps = self._array("bitmaps", layer) if bitmap is not None else None
        beside = [
            (self._array(kind, layer), values)
            for kind, values in (("sums", sums), ("token_sums", token_sums))
            if values is not None and len(values)
        ]
        self._activations[layer] = total
        if self._run.folder.exists(self._key):
            return
        try:
            counts[shard.index] = position_counts.astype(layout.count_dtype)
            for array, values in beside:
                array[shard.index] = values
            if bitmap is not None and bitmaps is not None:
                if shard.num_sequences < layout.shard_sequences:  # an object is written whole
                    short = layout.shard_sequences - shard.num_sequences
                    bitmap = np.pad(bitmap, ((0, 0), (0, short), (0, 0)))
                bitmaps[:, shard.index] = bitmap
        except UserError:
            raise
        except Exception as error:
            reason = str(error).split("\n")[0] or type(error).__name__
            raise UserError(
                f"cannot write {where}: {reason}. Check free space and permissions, then run the"
                " same command again: what was committed is kept."
            ) from error

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
        record = Record(self._shard, self._run.fingerprint, self._objects, activations)
        self._run.folder.create(self._key, record.dumps())
        return record
