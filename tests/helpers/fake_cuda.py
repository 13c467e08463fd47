"""CUDA tensors without CUDA: torch's fake tensors have shapes, types and devices, but no numbers.

An operation on tensors of two devices fails as it would on a GPU; the bytes that live there at once
are counted. What asks for a number gets an answer here, or fails. Not public, and so of one version
of torch: a build without CUDA has no device guard, which slicing and copying ask for.
"""

import contextlib
import weakref
from concurrent.futures import Future
from types import SimpleNamespace
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neuronstats.bits import tensors
from neuronstats.collect import transfer, weights
from neuronstats.model import decoder

CUDA = torch.device("cuda", 0)


class Live(TorchDispatchMode):
    """Adds up the bytes of the CUDA tensors that live at once."""

    def __init__(self):
        super().__init__()
        self.most, self._bytes = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cuda":
                storage = tensor.untyped_storage()
                if storage._cdata not in self._bytes:
                    self._bytes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self._bytes.pop, storage._cdata, 0)
        self.most = max(self.most, sum(self._bytes.values()))
        return result


@contextlib.contextmanager
def fake_cuda(patch):
    """Let all tensors be fake inside, and a sweep's streams do nothing; gives a Live."""
    patch.setattr(FakeTensor, "__getitem__", _get)
    patch.setattr(FakeTensor, "__setitem__", _set)
    patch.setattr(FakeTensor, "copy_", _copy)
    patch.setattr(FakeTensor, "contiguous", _contiguous)
    patch.setattr(FakeTensor, "__invert__", _invert)
    patch.setattr(transfer, "cuda", mock.Mock(stream=lambda _: contextlib.nullcontext()))
    patch.setattr(weights, "ThreadPoolExecutor", lambda *_, **__: SimpleNamespace(submit=_submit))
    # What is a question of numbers.
    patch.setattr(tensors, "_find_triton", lambda: False)
    patch.setattr(torch, "equal", lambda one, other: True)
    patch.setattr(decoder, "has_exact_zeros", lambda activation: True)
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        yield live


def _submit(function, *args):
    future = Future()
    future.set_result(function(*args))
    return future


def _get(tensor, index):
    index = index if isinstance(index, tuple) else (index,)
    if any(isinstance(i, torch.Tensor) for i in index):
        if index[0].dtype is torch.bool:  # as if all were chosen
            (chosen,) = index
            assert chosen.device == tensor.device
            return tensor.clone()
        return torch.ops.aten.index.Tensor(tensor, index)
    if Ellipsis in index:
        at = index.index(Ellipsis)
        missing = tensor.ndim - sum(i is not None and i is not Ellipsis for i in index)
        index = (*index[:at], *[slice(None)] * missing, *index[at + 1 :])
    axis = 0
    for i in index:
        if isinstance(i, int):
            tensor = tensor.select(axis, i)
            continue
        if i is None:
            tensor = tensor.unsqueeze(axis)
        else:
            tensor = torch.ops.aten.slice.Tensor(tensor, axis, i.start, i.stop, i.step or 1)
        axis += 1
    return tensor


def _set(tensor, index, value):
    _get(tensor, index).copy_(value)


def _copy(tensor, source, non_blocking=False):
    return torch.ops.aten.copy_.default(tensor, source, non_blocking)


def _contiguous(tensor):
    if tensor.is_contiguous():
        return tensor
    return torch.ops.aten.clone.default(tensor, memory_format=torch.contiguous_format)


def _invert(tensor):
    return torch.ops.aten.bitwise_not.default(tensor)
