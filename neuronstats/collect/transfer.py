"""What moves while a GPU computes: weights in, hidden states in and out, bits out.

Each class owns a direction: its copy stream, and the memory at its ends. "The computation" is the
current stream of the thread that calls. Events keep two rules: nothing is read before the copy that
brings it is done, and nothing is overwritten before what reads it is done. The host waits only
where it touches the memory itself. Without a GPU nothing of this module runs.
"""

import contextlib
import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

cuda: Any = torch.cuda  # its streams and events have no types
PIECE_BYTES = 64 << 20  # of weights in pinned memory, twice: one is filled while one is copied
BATCHES_ON_DEVICE = 3  # of hidden states kept in host memory: one comes, one is computed, one goes


def has_copy_streams(device: torch.device) -> bool:
    """Return whether copies can run beside the computation."""
    return device.type == "cuda"


def pinned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Host memory that a GPU copies from and to by itself.

    torch keeps what is given back, and hands it out again once no copy uses it: after the first
    layers nothing is allocated. It takes the next power of two of bytes.
    """
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)


def pinned_bytes(size: int) -> int:
    """Return the bytes that pinned memory of a size takes."""
    return 1 << max(0, size - 1).bit_length()


def _after_now(device: torch.device) -> torch.cuda.Stream:
    """Make a stream that may write to new memory: the computation may have had it, and freed it."""
    stream = cuda.Stream(device)
    stream.wait_stream(cuda.current_stream())
    return stream


def inward(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor from the host to the GPU, in the computation's turn; wait for nothing."""
    copy = pinned(tensor.shape, tensor.dtype)
    copy.copy_(tensor)
    return torch.empty_like(tensor, device=device).copy_(copy, non_blocking=True)


class WeightsIn:
    """Weights from mapped files into a layer's own memory on the GPU, piece by piece.

    Args:
        num_slots: layers that have memory.
        dtype: of the weights there.
        device: the GPU.
    """

    def __init__(self, num_slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self._stream = _after_now(device)
        self._pieces = [pinned((PIECE_BYTES // dtype.itemsize,), dtype) for _ in range(2)]
        self._copied = [cuda.Event() for _ in self._pieces]
        self._turn = 0
        self._loaded = [cuda.Event() for _ in range(num_slots)]
        self._used = [cuda.Event() for _ in range(num_slots)]
        self._waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def load(self, slot: int, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Start filling a slot; its last use must have been told.

        Args:
            slot: whose weights they are.
            pairs: where each weight goes, and what is stored of it.
        """
        self._stream.wait_event(self._used[slot])
        for weight, stored in pairs:
            size = len(self._pieces[0])
            parts = torch.split(weight.view(-1), size)
            for part, source in zip(parts, torch.split(stored.reshape(-1), size), strict=True):
                self._turn = 1 - self._turn
                left = self._copied[self._turn]
                left.synchronize()  # what this piece held before has been copied
                piece = self._pieces[self._turn][: len(part)]
                piece.copy_(source)
                with cuda.stream(self._stream):
                    part.copy_(piece, non_blocking=True)
                left.record(self._stream)
        self._loaded[slot].record(self._stream)

    @contextlib.contextmanager
    def waiting(self, slot: int) -> Iterator[None]:
        """Make the computation wait for a slot's weights, whose `load` returns inside."""
        asked, given = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        asked.record(cuda.current_stream())
        yield
        cuda.current_stream().wait_event(self._loaded[slot])
        given.record(cuda.current_stream())
        self._waits.append((asked, given))

    def used(self, slot: int) -> None:
        """Record that all that reads a slot's weights has been given to the computation."""
        self._used[slot].record(cuda.current_stream())

    def pop_wait_seconds(self) -> float:
        """Return the seconds the computation has waited since the last call; waits for it."""
        waits, self._waits = self._waits, []
        if waits:
            waits[-1][1].synchronize()
        return sum(asked.elapsed_time(given) for asked, given in waits) / 1000


class Streams:
    """The streams of one worker's shards, made once, and the pinned memory at their ends.

    torch has thirty-two and deals them out in turn: those of each new shard would in time be the
    weights' own.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.inward, self.outward, self.to_host = (cuda.Stream(device) for _ in range(3))
        self._largest: dict[Hashable, int] = {}

    def host(self, shape: Sequence[int], dtype: torch.dtype, purpose: Hashable) -> Tensor:
        """Return pinned memory; for each purpose of the largest size that there was.

        torch keeps what it has pinned: a short shard's own sizes would stay beside the full ones.
        """
        size = math.prod(shape) * dtype.itemsize
        self._largest[purpose] = max(size, self._largest.get(purpose, 0))
        memory = pinned((self._largest[purpose],), torch.uint8)
        return memory[:size].view(dtype).view(tuple(shape))


class HostHiddenStates:
    """Hidden states in pinned memory, brought to the GPU and back batch by batch.

    Args:
        hidden: [sequence, position, d], pinned; nothing else writes to it from now on.
        batch_sequences: in every batch.
        device: the GPU.
        streams: of this worker.
    """

    def __init__(
        self, hidden: Tensor, batch_sequences: int, device: torch.device, streams: Streams
    ) -> None:
        self._host = torch.split(hidden, batch_sequences)
        self._on_device = [
            torch.empty_like(self._host[0], device=device) for _ in range(BATCHES_ON_DEVICE)
        ]
        self._inward, self._outward = streams.inward, streams.outward
        self._inward.wait_stream(cuda.current_stream())  # which may have had the new memory
        self._arrived = [cuda.Event() for _ in self._on_device]
        self._released = [cuda.Event() for _ in self._on_device]

    def __iter__(self) -> Iterator[Tensor]:
        """Yield each batch on the GPU, to be changed in place before the next is asked for."""
        self._fetch(0)
        for number, host in enumerate(self._host):
            if number + 1 < len(self._host):
                self._fetch(number + 1)
            slot = number % BATCHES_ON_DEVICE
            batch = self._on_device[slot]
            cuda.current_stream().wait_event(self._arrived[slot])
            yield batch
            done = cuda.Event()
            done.record(cuda.current_stream())
            self._outward.wait_event(done)
            with cuda.stream(self._outward):
                host.copy_(batch, non_blocking=True)
            self._released[slot].record(self._outward)

    def _fetch(self, number: int) -> None:
        """Start bringing a batch.

        Batches go home in one stream, in turn; so once the last one of this slot is gone, this
        batch, which came not after that one, is home from the layer before.
        """
        slot = number % BATCHES_ON_DEVICE
        self._inward.wait_event(self._released[slot])
        with cuda.stream(self._inward):
            self._on_device[slot].copy_(self._host[number], non_blocking=True)
        self._arrived[slot].record(self._inward)


def to_host(made: Iterable[Sequence[Tensor]], streams: Streams) -> Iterator[list[Tensor]]:
    """Copy what each layer's pass makes to the host, while the next layer is computed.

    Args:
        made: gives a layer's tensors on the GPU once they are given to the computation.
        streams: of this worker.

    Yields:
        Each layer's tensors on the host, arrived; one layer late.
    """
    stream = streams.to_host
    before = None
    for tensors in made:
        ready, copied = cuda.Event(), cuda.Event()
        ready.record(cuda.current_stream())
        stream.wait_event(ready)
        copies = [streams.host(t.shape, t.dtype, _kind(t)) for t in tensors]
        with cuda.stream(stream):
            for copy, tensor in zip(copies, tensors, strict=True):
                copy.copy_(tensor, non_blocking=True)
        copied.record(stream)
        if before is not None:
            yield _arrived(*before)
        before = (copied, copies, tensors)
    if before is not None:
        yield _arrived(*before)


def _arrived(copied: torch.cuda.Event, copies: list[Tensor], _: Sequence[Tensor]) -> list[Tensor]:
    """Wait for copies; what they are copied from must live until then."""
    copied.synchronize()
    return copies


def _kind(tensor: Tensor) -> Hashable:
    """Return what is the same of a layer's bits, counts and sums for shards of any length."""
    return tensor.dtype, tensor.shape[0] if tensor.ndim > 1 else None
