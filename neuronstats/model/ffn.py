"""Where a layer's neurons are: its activation function and down projection, found by structure.

One forward of a layer on the meta device, without any weight, shows which module's output has its
input's shape and goes into a projection back to the residual stream.
"""

import re
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.pytorch_utils import Conv1D

from neuronstats.model.record import Call

NO_ACTIVATION = re.compile("Linear|Conv|Norm|Dropout|Identity|Embedding|Rotary")
EXPERTS = re.compile(r"(^|\.)(experts|shared_experts?)(\.|$)")
META = torch.device("meta")


class NotFound(Exception):
    """A layer's neurons are not where they are looked for; says why, to be read after "it"."""


@dataclass(frozen=True)
class Ffn:
    """A layer's FFN, by the modules' names within the layer."""

    activation: str
    """Its input decides whether a neuron is activated."""
    down: str
    """The projection back to the residual stream."""
    neurons: int
    gated: bool
    """The activation's output is multiplied by another projection."""
    in_place: bool
    """A ReLU between two projections: it may be applied to its input's own memory."""
    norm: str | None
    """A norm that the projection's output alone goes through on its way to the residual stream."""


def find_ffn(layer: nn.Module, call: Call, hidden: Tensor) -> Ffn:
    """Find a layer's activation and down projection.

    Args:
        layer: the layer, on the meta device.
        call: what it is called with, on any device.
        hidden: its input, [sequence, position, d] of the meta device.

    Raises:
        NotFound: there is none, or more than one, or experts.
    """
    experts = [name for name, _ in layer.named_modules() if EXPERTS.search(name)]
    if experts:
        raise NotFound(f"is a mixture of experts ({experts[0]})")
    leaves = _run(layer, call, hidden)
    outputs = [leaf for leaf in leaves if isinstance(leaf.output, Tensor)]
    found = []
    for number, leaf in enumerate(outputs):
        if (
            NO_ACTIVATION.search(type(leaf.module).__name__)
            or leaf.output.shape != leaf.input.shape
        ):
            continue
        before = [other.input for other in outputs[:number]]
        for down in outputs[number + 1 :]:
            if (
                isinstance(down.module, (nn.Linear, Conv1D))
                and down.input.shape == leaf.output.shape
                and down.output.shape[-1] == hidden.shape[-1]
                and not any(down.input is other for other in before)  # an up projection
            ):
                found.append((leaf, down))
                break
    if len(found) != 1:
        names = ", ".join(leaf.name for leaf, _ in found)
        raise NotFound(
            f"has {len(found)} modules that could be the FFN's activation ({names})"
            if found
            else "has no module that is the activation of an FFN (a function may compute it)"
        )
    [(leaf, down)] = found
    gated = down.input is not leaf.output
    made_by = [o for o in outputs if o.output is leaf.input and isinstance(o.module, nn.Linear)]
    after = [o for o in outputs if o.input is down.output]
    norms = [o.name for o in after if "Norm" in type(o.module).__name__]
    return Ffn(
        activation=leaf.name,
        down=down.name,
        neurons=leaf.output.shape[-1],
        gated=gated,
        in_place=type(leaf.module) is nn.ReLU and not gated and bool(made_by),
        norm=norms[0] if norms else None,
    )


@dataclass(frozen=True)
class _Leaf:
    """One call of a module without modules in it."""

    name: str
    module: nn.Module
    input: Tensor
    output: Tensor


@torch.no_grad()
def _run(layer: nn.Module, call: Call, hidden: Tensor) -> list[_Leaf]:
    """Run the layer, and list its leaves' calls in order."""
    leaves: list[_Leaf] = []
    handles = []
    for name, module in layer.named_modules():
        if next(module.children(), None) is not None:
            continue

        def seen(
            module: nn.Module, args: tuple[Any, ...], output: Tensor, name: str = name
        ) -> None:
            if args and isinstance(args[0], Tensor):
                leaves.append(_Leaf(name, module, args[0], output))

        handles.append(module.register_forward_hook(seen))
    call = call.to(META)
    try:
        layer(hidden, *call.args, **call.kwargs)
    except Exception as error:
        raise NotFound(f"has a layer that cannot be looked through ({error!r})") from error
    finally:
        for handle in handles:
            handle.remove()
    return leaves


def has_exact_zeros(activation: nn.Module) -> bool:
    """Return whether a function is 0 exactly where its input is not above 0, as ReLU is."""
    if next(activation.parameters(), None) is not None:
        return False
    with torch.no_grad():
        below = activation(torch.linspace(-30, 0, 3001))
        above = activation(torch.linspace(0.01, 30, 3000))
    return bool((below == 0).all() and (above != 0).all())


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the tensors that live at once, of those made inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bytes, self.most = dict[int, int](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _storage(tensor) not in given:
                self._bytes[_storage(tensor)] = tensor.untyped_storage().nbytes()
                weakref.finalize(tensor.untyped_storage(), self._bytes.pop, _storage(tensor), 0)
        self.most = max(self.most, sum(self._bytes.values()))
        return result


def _storage(tensor: Tensor) -> int:
    """Return what tells a tensor's memory from all others alive."""
    return int(tensor.untyped_storage()._cdata)


@torch.no_grad()
def copies(activation: nn.Module) -> int:
    """Count the tensors as large as its input that a function takes at once, its output too."""
    values = torch.linspace(-1, 1, 4096)
    with _Live() as live:
        activation(values)
    return -(-live.most // (values.numel() * values.element_size()))
