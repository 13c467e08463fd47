"""Tiny random models of many families, and what their own forward shows of their FFNs.

Nothing here imports neuronstats: these are the things it is held against.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY, HIDDEN, LAYERS, NEURONS = 64, 32, 3, 40
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": NEURONS,
    "max_position_embeddings": 48,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
LLAMA = {**SMALL, **GROUPED}
# type, other settings, the activation and the down projection within a layer
FAMILIES: dict[str, tuple[str, dict, str, str]] = {
    "gpt2": ("gpt2", {**SMALL, "n_inner": NEURONS}, "mlp.act", "mlp.c_proj"),
    "gpt_neox": ("gpt_neox", SMALL, "mlp.act", "mlp.dense_4h_to_h"),
    "gptj": ("gptj", {**SMALL, "n_inner": NEURONS, "rotary_dim": 4}, "mlp.act", "mlp.fc_out"),
    "gpt_neo": (
        "gpt_neo",
        {
            **{
                k: v
                for k, v in SMALL.items()
                if k not in ("num_hidden_layers", "num_attention_heads")
            },
            **{"num_layers": 4, "num_heads": 4, "window_size": 4},
            "attention_types": [[["global", "local"], 2]],
        },
        "mlp.act",
        "mlp.c_proj",
    ),
    "llama": ("llama", LLAMA, "mlp.act_fn", "mlp.down_proj"),
    "llama_relu": ("llama", {**LLAMA, "hidden_act": "relu"}, "mlp.act_fn", "mlp.down_proj"),
    "mistral": ("mistral", {**LLAMA, "sliding_window": 5}, "mlp.act_fn", "mlp.down_proj"),
    "qwen2": (
        "qwen2",
        {**LLAMA, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        "mlp.act_fn",
        "mlp.down_proj",
    ),
    "qwen3": ("qwen3", LLAMA, "mlp.act_fn", "mlp.down_proj"),
    "gemma": ("gemma", LLAMA, "mlp.act_fn", "mlp.down_proj"),
    "gemma2": ("gemma2", {**LLAMA, "sliding_window": 5}, "mlp.act_fn", "mlp.down_proj"),
    "gemma3": (
        "gemma3_text",
        {
            **LLAMA,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        "mlp.act_fn",
        "mlp.down_proj",
    ),
    "phi": ("phi", SMALL, "mlp.activation_fn", "mlp.fc2"),
    "phi3": ("phi3", {**LLAMA}, "mlp.activation_fn", "mlp.down_proj"),
    "falcon_7b": (
        "falcon",
        {**SMALL, "ffn_hidden_size": NEURONS, "multi_query": True},
        "mlp.act",
        "mlp.dense_4h_to_h",
    ),
    "falcon_rw": (
        "falcon",
        {
            **SMALL,
            "ffn_hidden_size": NEURONS,
            "alibi": True,
            "multi_query": False,
            "parallel_attn": False,
        },
        "mlp.act",
        "mlp.dense_4h_to_h",
    ),
    "falcon_40b": (
        "falcon",
        {**SMALL, "ffn_hidden_size": NEURONS, "new_decoder_architecture": True, "num_kv_heads": 2},
        "mlp.act",
        "mlp.dense_4h_to_h",
    ),
    "bloom": ("bloom", SMALL, "mlp.gelu_impl", "mlp.dense_4h_to_h"),
    "stablelm": ("stablelm", LLAMA, "mlp.act_fn", "mlp.down_proj"),
    "olmo2": ("olmo2", LLAMA, "mlp.act_fn", "mlp.down_proj"),
    "mpt": (
        "mpt",
        {**SMALL, "d_model": HIDDEN, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": 48},
        "ffn.act",
        "ffn.down_proj",
    ),
    "opt": (
        "opt",
        {**SMALL, "ffn_dim": NEURONS, "word_embed_proj_dim": HIDDEN},
        "activation_fn",
        "fc2",
    ),
    "opt_350m": (
        "opt",
        {**SMALL, "ffn_dim": NEURONS, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        "activation_fn",
        "fc2",
    ),
    "gpt_bigcode": ("gpt_bigcode", {**SMALL, "n_inner": NEURONS}, "mlp.act", "mlp.c_proj"),
    "granite": (
        "granite",
        {**LLAMA, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
        "mlp.act_fn",
        "mlp.down_proj",
    ),
    "smollm3": ("smollm3", {**LLAMA, "no_rope_layer_interval": 2}, "mlp.act_fn", "mlp.down_proj"),
    "cohere": ("cohere", LLAMA, "mlp.act_fn", "mlp.down_proj"),
    "cohere2": ("cohere2", {**LLAMA, "sliding_window": 5}, "mlp.act_fn", "mlp.down_proj"),
    "nemotron": ("nemotron", {**LLAMA, "hidden_act": "relu2"}, "mlp.act_fn", "mlp.down_proj"),
}


def build(kind: str, settings: dict, seed: int = 0) -> PreTrainedModel:
    """A random float32 model; no norm or bias is its default, so forgetting one shows."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
            else:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    return model


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers."""
    number = model.config.num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == number]
    return lists[0]


def seen(
    model: PreTrainedModel, activation: str, tokens: np.ndarray, batch: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What the model's own forward shows, by hooks.

    Returns:
        For each layer the activation's input, and the layer's output, [sequence, position, _].
    """
    layers = layers_of(model)
    gates: list[list[np.ndarray]] = [[] for _ in layers]
    hidden: list[list[np.ndarray]] = [[] for _ in layers]

    def keep(where: list[np.ndarray], *, inputs: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            value = args[0] if inputs else output[0] if isinstance(output, tuple) else output
            where.append(value.reshape(-1, tokens.shape[1], value.shape[-1]).float().numpy().copy())

        return hook

    handles = [
        layer.get_submodule(activation).register_forward_hook(keep(gates[i], inputs=True))
        for i, layer in enumerate(layers)
    ] + [
        layer.register_forward_hook(keep(hidden[i], inputs=False)) for i, layer in enumerate(layers)
    ]
    with torch.no_grad():
        for start in range(0, len(tokens), batch):
            model(input_ids=torch.from_numpy(tokens[start : start + batch]), use_cache=False)
    for handle in handles:
        handle.remove()
    return [np.concatenate(g) for g in gates], [np.concatenate(h) for h in hidden]
