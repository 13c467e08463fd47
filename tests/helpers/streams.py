"""A stand-in for torch.cuda on a CPU that finds races between streams.

Every operation runs at once; what is checked is whether a GPU would have had to run it in that
order. Each stream and each host thread has a vector clock; events carry clocks from one to another.
Two accesses to the same bytes, one of them a write, race where neither happens before the other.

Memory is the host's where it was pinned, or made of host memory alone, or not made by an operation
seen here (mapped weights, NumPy's arrays); all else is the GPU's. Operations on host memory alone
are done by the calling thread, others by its current stream. Memory is never used again, so what a
freed tensor's next owner would meet is not seen.
"""

import contextlib
import linecache
import sys
from collections import defaultdict
from concurrent.futures import Future

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

UNWRITTEN = ("empty", "new_empty", "empty_like", "empty_strided")


class Actor:
    """A stream or a host thread."""

    def __init__(self):
        self.clock = defaultdict(int)

    def join(self, clock):
        for actor, time in clock.items():
            self.clock[actor] = max(self.clock[actor], time)


class Streams(TorchDispatchMode):
    """Takes the place of torch.cuda; use it as a context, and as the module.

    Args:
        forget: a line of code that waits, which is left out: to see that it is needed.
    """

    def __init__(self, forget=None):
        super().__init__()
        self.races = []
        self.waits = set()
        self._forget = forget
        self._host = Actor()
        self._current = {self._host: Actor()}
        self._gpu = {}  # tensors by their storage: held, so that no address is used twice
        self._of_host = []  # held as well
        self._accesses = defaultdict(list)
        outer = self

        class Event:
            def __init__(self, enable_timing=False):
                self.clock = {}

            def record(self, stream):
                stream.join(outer._host.clock)
                self.clock = dict(stream.clock)

            def synchronize(self):
                if outer._heeded():
                    outer._host.join(self.clock)

            def elapsed_time(self, other):
                return 0.0

        class Stream(Actor):
            def __init__(self, device=None):
                super().__init__()

            def wait_event(self, event):
                if outer._heeded():
                    self.join(outer._host.clock)
                    self.join(event.clock)

            def wait_stream(self, stream):
                self.join(stream.clock)

        self.Event, self.Stream = Event, Stream
        self._current[self._host] = Stream()

    def _heeded(self):
        frame = sys._getframe(2)
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).split("  #")[0].strip()
        self.waits.add(line)
        return line != self._forget

    def current_stream(self):
        return self._current[self._host]

    @contextlib.contextmanager
    def stream(self, stream):
        before, self._current[self._host] = self._current[self._host], stream
        yield
        self._current[self._host] = before

    def pinned(self, shape, dtype):
        tensor = torch.empty(tuple(shape), dtype=dtype)
        self._of_host.append(self._gpu.pop(tensor.untyped_storage().data_ptr()))
        return tensor

    def executor(self, *_, **__):
        """One more host thread: what it is given is done at once, but on a clock of its own."""
        outer, thread = self, Actor()
        self._current[thread] = self.Stream()

        class Executor:
            def submit(self, function, *args):
                future = Future()
                thread.join(outer._host.clock)
                caller, outer._host = outer._host, thread
                try:
                    future.set_result(function(*args))
                finally:
                    outer._host = caller
                clock, result = dict(thread.clock), future.result
                future.result = lambda: (outer._host.join(clock), result())[1]
                return future

        return Executor()

    def access(self, reads=(), writes=(), *, wait=False):
        """Note an operation, done by the host where all its memory is the host's."""
        tensors = [*reads, *writes]
        on_gpu = any(t.untyped_storage().data_ptr() in self._gpu for t in tensors)
        actor = self.current_stream() if on_gpu else self._host
        if on_gpu:
            actor.join(self._host.clock)
        actor.clock[actor] += 1
        for tensor, written in [*((t, False) for t in reads), *((t, True) for t in writes)]:
            self._check(actor, tensor, written)
        if on_gpu and wait:
            self._host.join(actor.clock)

    def _check(self, actor, tensor, written):
        if not tensor.numel():
            return
        reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        first = tensor.data_ptr()
        last = first + reach * tensor.element_size()
        known = self._accesses[tensor.untyped_storage().data_ptr()]
        for other, time, other_first, other_last, other_written in known:
            overlap = first < other_last and other_first < last
            if overlap and (written or other_written) and actor.clock[other] < time:
                self.races.append((tuple(tensor.shape), written, other_written))
        known.append((actor, actor.clock[actor], first, last, written))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        result = func(*args, **kwargs)
        returned = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        infos = [r.alias_info for r in func._schema.returns]
        if any(info is not None and not info.is_write for info in infos):
            return result  # a view
        made_empty = func._schema.name.split("::")[1] in UNWRITTEN
        known = {t.untyped_storage().data_ptr() for t in given}
        fresh = [t for t in returned if t.untyped_storage().data_ptr() not in known]
        if made_empty or not given or any(pointer in self._gpu for pointer in known):
            for tensor in fresh:
                self._gpu[tensor.untyped_storage().data_ptr()] = tensor
        else:
            self._of_host += fresh
        if made_empty:
            return result
        changed = [
            value
            for value, argument in zip(args, func._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        reads = [t for t in given if not any(t is c for c in changed)]
        blocking = func is torch.ops.aten.copy_.default and not (len(args) > 2 and args[2])
        into_host = any(c.untyped_storage().data_ptr() not in self._gpu for c in changed)
        self.access(reads, [*changed, *fresh], wait=blocking and into_host)
        return result
