"""What a model hands to each of its layers, found out by running its own forward with recorders.

A layer's recorder gives back what it got, so that nothing of a layer is computed. What is recorded
serves for any tokens of the same batch size and length; a model in which that is not so is refused.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (type(None), Tensor, bool, int, float, str)


class NotReplayable(Exception):
    """A model's layers cannot be carried one by one; says why, to be read after "it"."""


class LayersTalk(NotReplayable):
    """A layer hands on more than hidden states."""


@dataclass(frozen=True)
class Call:
    """What a layer is called with beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def to(self, device: torch.device) -> "Call":
        """Move every tensor to a device."""
        return Call(_moved(self.args, device), _moved(self.kwargs, device))


@torch.no_grad()
def record(base: nn.Module, layers: Sequence[nn.Module], tokens: Tensor) -> list[Call]:
    """Record every layer's call.

    Args:
        base: the model without its head.
        layers: its decoder layers.
        tokens: int64 [sequence, position]; the calls serve for this shape alone.

    Returns:
        A call a layer.

    Raises:
        NotReplayable: the guards found something that is computed from the tokens or between
            layers.
    """
    reasons: list[NotReplayable] = []
    for as_tuple in (False, True):  # what a layer returns, its annotation does not always tell
        try:
            calls = _run(base, layers, tokens, as_tuple=as_tuple)
            break
        except LayersTalk:
            raise
        except NotReplayable as error:
            reasons.append(error)
        except Exception as error:  # noqa: BLE001 - a model's code, given what it does not expect
            reasons.append(NotReplayable(f"fails in its own forward ({error!r})"))
    else:
        raise min(reasons, key=lambda reason: "fails" in str(reason))
    if not as_tuple:  # a model may take both, and look for the tuple's second
        try:
            _run(base, layers, tokens, as_tuple=True)
        except LayersTalk:
            raise
        except Exception:  # noqa: BLE001 - a model that takes hidden states alone
            pass
    vocabulary = base.get_input_embeddings().num_embeddings  # type: ignore[operator]
    others = _run(base, layers, (tokens.flip(0, 1) + 1) % vocabulary, as_tuple=as_tuple)
    for index, (call, other) in enumerate(zip(calls, others, strict=True)):
        if not _equal((call.args, call.kwargs), (other.args, other.kwargs)):
            raise NotReplayable(f"hands layer {index} something that depends on the tokens")
    return calls


def _run(
    base: nn.Module, layers: Sequence[nn.Module], tokens: Tensor, *, as_tuple: bool
) -> list[Call]:
    """Run the model once; its layers return hidden states alone, or first in a tuple."""
    calls: list[Call] = []
    second = object()  # what a layer returns beside its hidden states
    previous: tuple[Tensor, int] | None = None

    def forward(index: int, *args: Any, **kwargs: Any) -> Any:
        nonlocal previous
        if index != len(calls):
            raise NotReplayable("does not run its layers one after another")
        if not args or not isinstance(args[0], Tensor) or args[0].ndim != 3:
            raise NotReplayable(f"does not hand layer {index} its hidden states first")
        hidden = args[0]
        _check_between(hidden, previous, index)
        _check_plain((args[1:], kwargs), second, index)
        calls.append(Call(args[1:], kwargs))
        output = hidden.view(hidden.shape)  # the same numbers, another object
        previous = output, output._version
        return (output, second) if as_tuple else output

    with _replaced(layers, forward):
        found = base(input_ids=tokens, use_cache=False)
    if len(calls) != len(layers):
        raise NotReplayable(f"runs {len(calls)} of its {len(layers)} layers")
    if found[0].ndim != 3 or found[0].shape[:2] != tokens.shape:
        raise NotReplayable("takes something else than hidden states from its last layer")
    return calls


class _Reached(Exception):
    pass


@torch.no_grad()
def first_hidden(base: nn.Module, layers: Sequence[nn.Module], tokens: Tensor) -> Tensor:
    """Return the first layer's input, [sequence, position, d]."""
    reached: list[Tensor] = []

    def forward(_: int, hidden: Tensor, *__: Any, **___: Any) -> None:
        reached.append(hidden)
        raise _Reached

    with _replaced(layers[:1], forward):
        try:
            base(input_ids=tokens, use_cache=False)
        except _Reached:
            return reached[0]
    raise AssertionError("no layer was run")


@contextmanager
def _replaced(layers: Sequence[nn.Module], forward: Any) -> Iterator[None]:
    """Put a function in the place of each layer's forward; hooks and attributes stay."""

    def bound(index: int) -> Any:
        return lambda *args, **kwargs: forward(index, *args, **kwargs)

    for index, layer in enumerate(layers):
        layer.forward = bound(index)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _check_between(hidden: Tensor, previous: tuple[Tensor, int] | None, index: int) -> None:
    """Refuse what is not the very output of the layer before, or was changed since."""
    if previous is not None and (hidden is not previous[0] or hidden._version != previous[1]):
        raise NotReplayable(f"computes between layer {index - 1} and layer {index}")


def _check_plain(value: Any, second: object, index: int) -> None:
    """Refuse what one layer could leave for another."""
    if value is second:
        raise LayersTalk(f"hands layer {index} what an earlier layer has computed")
    if isinstance(value, (tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            _check_plain(item, second, index)
        if type(value) in (tuple, dict):
            return
    if not isinstance(value, PLAIN):
        raise NotReplayable(f"hands layer {index} a {type(value).__name__}, which layers may share")


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return value


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return bool(one == other)
