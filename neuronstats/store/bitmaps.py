"""Bitmaps as they are stored: objects encoded, and one range of bytes of each read back.

An object is a Zarr shard: chunks of some neurons, each one zstd frame, one after another, and at
the end where each lies (uint64 offset and length, then a CRC of all); or one chunk by itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import google_crc32c
import numpy as np
import zstandard
from numcodecs import zstd
from numpy.typing import NDArray

from neuronstats import bits
from neuronstats.hashing import checksum
from neuronstats.store.faults import REPAIR, damage
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import ZARR, Layout, Shard

READERS = 8  # objects asked for at a time, from an object store
ABSENT = np.iinfo(np.uint64).max  # offset and length of a chunk of zeros, which is not stored
INDEX_CRC_BYTES = 4
LEVEL = 1  # of zstd, as the arrays' metadata says

UInt8 = NDArray[np.uint8]
Frame = bytes | memoryview
OnPart = Callable[[int, int, UInt8], object]


def decode(frame: Frame, out: NDArray[Any]) -> None:
    """Decompress a chunk into an array, which it fills.

    Raises:
        ValueError, RuntimeError: it is damaged, or of another length.
    """
    if zstandard.frame_content_size(frame) != out.nbytes:
        raise ValueError("a chunk has another length than the layout says")
    zstd.decompress(frame, out)


def encode(values: NDArray[Any]) -> bytes:
    """Compress a chunk, as Zarr does with this format's codec."""
    return bytes(zstd.compress(values, LEVEL, checksum=True))


def join_chunks(frames: Sequence[bytes], num_chunks: int) -> bytes:
    """Return an object of compressed chunks: the frames, and where each lies."""
    ends = list(accumulate(map(len, frames), initial=0))
    places = np.full((num_chunks, 2), ABSENT, "<u8")
    places[: len(frames), 0] = ends[:-1]
    places[: len(frames), 1] = np.diff(ends)
    index = places.tobytes()
    return b"".join(
        [*frames, index, google_crc32c.value(index).to_bytes(INDEX_CRC_BYTES, "little")]
    )


class BitmapReader:
    """Reads a run's bitmaps; remembers where the chunks of the last layer's objects lie.

    Every chunk and every index that is read is compared with the checksum stored beside it.

    Args:
        folder: the run.
        layout: the run's.
        committed: size and checksum by the key below activations.zarr; an object that is read whole
            is compared with them.
    """

    def __init__(
        self,
        folder: RunFolder,
        layout: Layout,
        committed: Mapping[str, tuple[int, str]] | None = None,
    ) -> None:
        self._folder, self._layout, self._committed = folder, layout, committed
        self._layer, self._places = -1, dict[str, NDArray[np.uint64] | None]()

    def read(
        self,
        layer: int,
        neurons: slice,
        shards: Sequence[Shard],
        *,
        out: UInt8 | None = None,
        on_part: OnPart | None = None,
    ) -> UInt8:
        """Read some neurons' bits.

        Args:
            layer: one with bitmaps.
            neurons: which, without a step.
            shards: which; an object that is not there holds zeros.
            out: uint8 [neuron, sequence, byte] to fill instead of a new array.
            on_part: called with a shard's place in `shards`, the first neuron's in `neurons`, and
                the bits of a chunk, uint8 [neuron, sequence, byte], while the cache holds them.

        Returns:
            uint8 [neuron, sequence, byte], the shards' sequences one after another.

        Raises:
            UserError: an object is damaged.
        """
        layout = self._layout
        first, last = neurons.indices(layout.num_neurons)[:2]
        if layer != self._layer:
            self._layer, self._places = layer, {}
        width = bits.packed_bytes(layout.num_positions)
        ends = list(accumulate((shard.num_sequences for shard in shards), initial=0))
        if out is None:
            out = np.empty((max(0, last - first), ends[-1], width), np.uint8)

        size = (layout.neurons_per_chunk, layout.shard_sequences, width)
        space = np.empty(size, np.uint8) if self._folder.is_local else None

        def fill(index: int) -> None:
            values = np.empty(size, np.uint8) if space is None else space  # one for each thread
            shard, start, end = shards[index], ends[index], ends[index + 1]
            with damage(f"layer {layer} of {shard}", REPAIR):
                for chunk, frame in self.frames(layer, first, last, shard):
                    if frame is None:
                        values[:] = 0
                    else:
                        decode(frame, values)
                    low, high = max(first, chunk), min(last, chunk + len(values))
                    part = values[low - chunk : high - chunk, : shard.num_sequences]
                    out[low - first : high - first, start:end] = part
                    if on_part is not None:
                        on_part(index, low - first, part)

        if self._folder.is_local:
            for index in range(len(shards)):
                fill(index)
        else:
            with ThreadPoolExecutor(READERS) as threads:
                list(threads.map(fill, range(len(shards))))
        return out

    def frames(
        self, layer: int, first: int, last: int, shard: Shard
    ) -> Iterator[tuple[int, Frame | None]]:
        """Yield the stored chunks that hold some neurons: first neuron, compressed; None: zeros."""
        chunk, whole = self._layout.neurons_per_chunk, self._layout.neurons_per_object
        for start in range(first // whole * whole, last, whole):
            key = f"{ZARR}/bitmaps/{layer:03d}/c/{start // whole}/{shard.index}/0/0"
            end = min(last, start + whole, self._layout.num_neurons)
            wanted = range(max(first, start) // chunk * chunk, end, chunk)
            frames = self._frames(key, [(neuron - start) // chunk for neuron in wanted])
            yield from zip(wanted, frames, strict=True)

    def _frames(self, key: str, chunks: Sequence[int]) -> list[Frame | None]:
        """Read neighbouring chunks of an object, compressed; None for one of zeros."""
        if self._layout.reads_whole_objects:
            data = self._folder.read(key)
            found = None if data is None else (len(data), checksum(data))
            if self._committed is not None and found != self._committed.get(
                key.removeprefix(f"{ZARR}/")
            ):
                raise ValueError(f"{key} is not what was committed")
            return [data]
        if key not in self._places:
            self._places[key] = self._read_places(key)
        places = self._places[key]
        if places is None:
            return [None] * len(chunks)
        asked = [(int(places[c, 0]), int(places[c, 1])) for c in chunks]
        stored = [(offset, offset + size) for offset, size in asked if offset != ABSENT]
        if not stored:
            return [None] * len(chunks)
        begin, end = min(o for o, _ in stored), max(e for _, e in stored)
        data = self._folder.read(key, (begin, end))
        if data is None or len(data) != end - begin:
            raise ValueError(f"{key} is shorter than its index says")
        view = memoryview(data)
        return [
            None if offset == ABSENT else view[offset - begin : offset - begin + size]
            for offset, size in asked
        ]

    def _read_places(self, key: str) -> NDArray[np.uint64] | None:
        """Read where an object's chunks lie: uint64 [chunk, 2]; None where there is no object."""
        layout = self._layout
        num_chunks = layout.neurons_per_object // layout.neurons_per_chunk
        data = self._folder.read(key, 16 * num_chunks + INDEX_CRC_BYTES)
        if data is None:
            return None
        index, crc = data[:-INDEX_CRC_BYTES], data[-INDEX_CRC_BYTES:]
        if len(index) != 16 * num_chunks or google_crc32c.value(index) != int.from_bytes(
            crc, "little"
        ):
            raise ValueError(f"the index of {key} is damaged")
        return np.frombuffer(index, "<u8").reshape(num_chunks, 2)
