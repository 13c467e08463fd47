"""A model's layers in order, filled from the checkpoint: all in memory, or two at a time."""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from neuronstats.collect import transfer
from neuronstats.model.decoder import Decoder
from neuronstats.model.layer import Layer

ALIGNMENT = 256  # bytes, of every weight in a layer's memory


class LayerSource:
    """Hands out the layers in order, filled; all stay in memory, or two at a time read ahead.

    Args:
        decoder: the model.
        num_layers: the first layers that are wanted.
        resident: keep every layer on the device over shards.
    """

    def __init__(self, decoder: Decoder, num_layers: int, *, resident: bool) -> None:
        self._decoder, self._num_layers = decoder, num_layers
        self._num_slots = num_layers if resident else min(2, num_layers)
        places = [self._places(index) for index in range(num_layers)]
        memory = [
            torch.empty(
                max(size for _, size in places[slot :: self._num_slots]),
                dtype=decoder.dtype,
                device=decoder.device,
            )
            for slot in range(self._num_slots)
        ]
        self._weights: list[dict[str, Tensor]] = [
            {
                name: memory[index % self._num_slots][start : start + shape.numel()].view(shape)
                for name, (start, shape) in inside.items()
            }
            for index, (inside, _) in enumerate(places)
        ]
        self._layers = [decoder.layer(index, self._weights[index]) for index in range(num_layers)]
        self._resident = resident
        beside = transfer.has_copy_streams(decoder.device)
        self._copies = (
            transfer.WeightsIn(self._num_slots, decoder.dtype, decoder.device) if beside else None
        )
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._first: Future[None] | None = None  # of the next shard, if it is read already
        self.bytes_read = 0
        self._waited = 0.0
        if resident:
            for index in range(num_layers):
                self._load(index)

    def _places(self, index: int) -> tuple[dict[str, tuple[int, torch.Size]], int]:
        """Lay out a layer's memory: where each weight starts, and how many numbers there are."""
        step = ALIGNMENT // self._decoder.dtype.itemsize
        places, start = {}, 0
        for name, shape in self._decoder.layer_shapes(index).items():
            places[name] = (start, shape)
            start += -(-shape.numel() // step) * step
        return places, start

    def _load(self, index: int) -> None:
        """Read one layer into its slot's memory."""
        stored = self._decoder.stored_layer(index)
        pairs = [(weight, stored[name]) for name, weight in self._weights[index].items()]
        if self._copies:
            self._copies.load(index % self._num_slots, pairs)
        else:
            for weight, source in pairs:
                weight.copy_(source)
        self.bytes_read += sum(source.numel() * source.element_size() for _, source in pairs)
        self._decoder.checkpoint.release()

    def __iter__(self) -> Iterator[Layer]:
        """Start reading at once; hand out the layers, each to be used before the next is asked."""
        first, self._first = self._first, None
        if not self._resident and first is None:
            first = self._reader.submit(self._load, 0)
        return self._hand_out(first)

    def _hand_out(self, following: Future[None] | None) -> Iterator[Layer]:
        for index in range(self._num_layers):
            slot = index % self._num_slots
            with self._waiting(slot):
                if following is not None:
                    following.result()
            after = (index + 1) % self._num_layers  # the last is followed by the next shard's first
            in_use = after % self._num_slots == slot
            if not self._resident and not in_use:
                following = self._reader.submit(self._load, after)
            try:
                yield self._layers[index]
            finally:
                if self._copies:
                    self._copies.used(slot)
            if not self._resident and in_use:
                following = self._reader.submit(self._load, after)
        self._first = following

    @contextlib.contextmanager
    def _waiting(self, slot: int) -> Iterator[None]:
        if self._copies:
            with self._copies.waiting(slot):
                yield
            return
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def pop_wait_seconds(self) -> float:
        """Return the seconds the computation has waited for weights since the last call."""
        if self._copies:
            return self._copies.pop_wait_seconds()
        waited, self._waited = self._waited, 0.0
        return waited
