"""What the FFNs of a model hold in its own forward, by hooks; nothing of neuronstats."""

import numpy as np
import torch
from helpers import families


def hooked(model, activation, down, up, tokens, batch):
    """Each layer's g, a and u, float32 [sequence, position, neuron].

    g is the activation's input, a the down projection's, u the output of the module `up` (of one
    that makes the gate as well, its second half), or ones where `up` is None.
    """
    layers = families.layers_of(model)
    found = [{"g": [], "a": [], "u": []} for _ in layers]
    handles = []
    for here, layer in zip(found, layers, strict=True):

        def keep(where, value):
            where.append(
                value.detach().reshape(-1, tokens.shape[1], value.shape[-1]).float().clone()
            )

        for name, place in (("g", activation), ("a", down)):
            hook = layer.get_submodule(place).register_forward_pre_hook
            handles.append(hook(lambda _, args, w=here[name]: keep(w, args[0])))
        if up:
            hook = layer.get_submodule(up).register_forward_hook
            handles.append(hook(lambda _, args, output, w=here["u"]: keep(w, output)))
    with torch.no_grad():
        for start in range(0, len(tokens), batch):
            model(input_ids=torch.from_numpy(tokens[start : start + batch]), use_cache=False)
    for handle in handles:
        handle.remove()
    joined = [{k: torch.cat(v).numpy() for k, v in here.items() if v} for here in found]
    for here in joined:
        width = here["a"].shape[-1]
        here["u"] = here["u"][..., -width:] if up else np.ones_like(here["a"])
    return joined


def sign_cases(is_open, positive, *, gated):
    """The cases that a sweep counts, by name: gate open or not; where gated, u above 0 or not."""
    cases = {"open": is_open, "closed": ~is_open}
    if not gated:
        return cases
    signs = (("positive", positive), ("negative", ~positive))
    return {f"{gate}_{sign}": a & b for gate, a in cases.items() for sign, b in signs}
