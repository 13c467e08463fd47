"""A model without weights: transformers' own, on the meta device, and what fits where in it."""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, rename_source_key

from neuronstats.errors import SettingsError, UserError


def build(config: PreTrainedConfig, dtype: torch.dtype, where: str) -> PreTrainedModel:
    """Build a model of no bytes, with the attention that transformers would choose for it.

    Raises:
        UserError: the configuration makes no model.
    """
    try:
        own = copy.deepcopy(config)  # transformers writes the dtype into what it is given
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(own, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # whatever a number that makes no sense leads to
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{where}/config.json cannot be used: {reason}") from error
    return model.eval()


def find_layers(model: PreTrainedModel, where: str) -> tuple[str, nn.ModuleList]:
    """Return the decoder layers and their name in the model.

    Raises:
        SettingsError: there is not exactly one list of as many modules as the model has layers.
    """
    number = model.config.num_hidden_layers
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == number
    }
    outer = [n for n in found if not any(n.startswith(f"{o}.") for o in found)]
    if len(outer) != 1:
        names = f" ({', '.join(outer)})" if outer else ""
        raise SettingsError(
            f"{where}: a {model.config.model_type} model has {len(outer)} lists of {number}"
            f" modules{names}: expected one, its decoder layers."
        )
    return outer[0], found[outer[0]]


@contextlib.contextmanager
def norms_after(model: PreTrainedModel, layers: Sequence[nn.Module]) -> Iterator[list[str]]:
    """Yield a list that is filled, by a forward pass in the context, with the final norm's name.

    The first norm outside the layers that runs once the last layer has run; empty without one.
    """
    inside = {id(module) for layer in layers for module in layer.modules()}
    found: list[str] = []
    ended: list[bool] = []

    def note(name: str) -> None:
        if ended and not found:
            found.append(name)

    handles = [layers[-1].register_forward_hook(lambda *_: ended.append(True))]
    for name, module in model.named_modules():
        if "Norm" in type(module).__name__ and id(module) not in inside:
            handles.append(module.register_forward_pre_hook(lambda *_, n=name: note(n)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def resolve_names(model: PreTrainedModel, stored: Iterable[str], where: str) -> dict[str, str]:
    """Match a model's own names of weights with stored ones, as transformers does when loading.

    Returns:
        The stored name of each weight that is stored; what belongs nowhere is left out.

    Raises:
        SettingsError: a weight would have to be made from several stored ones.
    """
    transforms = get_model_conversion_mapping(model)
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    renamings: list[Any] = [t for t in transforms if not isinstance(t, WeightConverter)]
    own = model.state_dict()
    found: dict[str, str] = {}
    for key in stored:
        name, converted = rename_source_key(
            key, renamings, converters, model.base_model_prefix, own
        )
        if converted is not None:
            raise SettingsError(
                f"{where} stores {key}, of which a {model.config.model_type} model makes another"
                " weight with others (fused weights, such as a mixture of experts): this is not"
                " understood."
            )
        target = name if name in own else key
        if target in own and (target not in found or target == key):
            found[target] = key
    return found


def restore_buffers(
    model: PreTrainedModel, parts: Iterable[tuple[str, nn.Module]], device: torch.device
) -> None:
    """Set the buffers of parts of the model, by name, which no checkpoint holds.

    transformers' own initialisation fills them; the weights must still be on the meta device.

    Raises:
        SettingsError: a buffer is not filled by it.
    """
    owners = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    for name, part in parts:
        empty = [key for key, buffer in part.named_buffers(recurse=False) if buffer.is_meta]
        if not empty:
            continue
        owner = [o for o in owners if any(part is inside for inside in o.modules())][-1]
        values = [_initialised(owner, part, empty, fill, device) for fill in (0, 1)]
        for key in empty:
            if not torch.equal(values[0][key], values[1][key]):
                raise SettingsError(
                    f"a {model.config.model_type} model has the buffer {name}.{key}, which no"
                    " checkpoint holds and transformers does not fill: this is not understood."
                )


def _initialised(
    owner: PreTrainedModel, part: nn.Module, names: list[str], fill: int, device: torch.device
) -> dict[str, Tensor]:
    """Fill buffers with a number, then initialise their module."""
    for name in names:
        part._buffers[name] = torch.full_like(part.get_buffer(name), fill, device=device)
    with torch.no_grad():
        owner._init_weights(part)
    return {name: part.get_buffer(name) for name in names}
