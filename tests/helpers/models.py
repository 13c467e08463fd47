"""Tiny OPT checkpoints in every form they are found in, and Hugging Face's own FFN inputs.

Nothing here imports neuronstats: these are the things it is held against.

    model = tiny_opt("pre", seed=3)                         # or "post": the 350m way
    folder = save_checkpoint(model, tmp_path, layout="bin_sharded", prefix="decoder.")
    save_tokenizer(folder)
    values = hf_fc1_outputs(model, random_tokens(8, 40), batch=3)
"""

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

BOS = 2
VOCABULARY = 320
POSITIONS = 64
LAYOUTS = ("safetensors", "safetensors_sharded", "bin", "bin_sharded")

TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "def count(neurons):\n    return sum(1 for neuron in neurons if neuron.dead)\n",
    "Let x = 3 and y = 4. What is x*x + y*y? The answer is 25.",
    "Naïve cafés serve crème brûlée; 猫 sleeps. The court held that the claim was void.",
]


def tiny_opt(
    order: str = "pre",
    *,
    seed: int = 0,
    num_layers: int = 3,
    hidden: int = 32,
    heads: int = 4,
    ffn: int = 100,
    vocabulary: int = VOCABULARY,
    positions: int = POSITIONS,
    embedding: int | None = None,
) -> OPTForCausalLM:
    """A random float32 OPT whose neurons are dead, rare, or on for up to half of the tokens.

    `order` is "pre" (LayerNorm before the blocks, a final LayerNorm) or "post" (the 350m way: after
    them, no final one, embeddings of another width projected in and out). Of every ten neurons of a
    layer one is dead, the others are on for roughly 5 to 50 % of the tokens; the first neuron is
    always on. LayerNorm gains and all biases differ from their defaults, so forgetting one shows.
    """
    if order not in ("pre", "post"):
        raise ValueError(f"order is {order!r}, expected 'pre' or 'post'")
    if embedding is None:
        embedding = hidden if order == "pre" else hidden - 8
    config = OPTConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=num_layers,
        ffn_dim=ffn,
        max_position_embeddings=positions,
        num_attention_heads=heads,
        do_layer_norm_before=order == "pre",
        word_embed_proj_dim=embedding,
        dropout=0.1,  # as on the hub: a forward left in training mode shows
        bos_token_id=BOS,
        eos_token_id=BOS,
        pad_token_id=1,
    )
    model = OPTForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: torch.Tensor, deviation: float, mean: float = 0.0) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation + mean)

    decoder = model.model.decoder
    with torch.no_grad():
        normal(decoder.embed_tokens.weight, 1.0)
        normal(decoder.embed_positions.weight, 0.7)
        for projection in (decoder.project_in, decoder.project_out):
            if projection is not None:
                normal(projection.weight, projection.in_features**-0.5)
        if decoder.final_layer_norm is not None:
            normal(decoder.final_layer_norm.weight, 0.1, 1.0)
            normal(decoder.final_layer_norm.bias, 0.1)
        for layer in decoder.layers:
            attention = layer.self_attn
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
                normal(linear.weight, 1.5 * hidden**-0.5)
                normal(linear.bias, 0.2)
            normal(attention.out_proj.weight, hidden**-0.5)
            normal(attention.out_proj.bias, 0.1)
            for norm in (layer.self_attn_layer_norm, layer.final_layer_norm):
                normal(norm.weight, 0.1, 1.0)
                normal(norm.bias, 0.1)
            normal(layer.fc1.weight, hidden**-0.5)
            layer.fc1.bias.zero_()
            normal(layer.fc2.weight, ffn**-0.5)
            normal(layer.fc2.bias, 0.1)
    _set_rates(model, generator)
    return model


def _set_rates(model: OPTForCausalLM, generator: torch.Generator) -> None:
    """Set fc1's biases, from the first layer up, so that each neuron has the rate drawn for it."""
    config = model.config
    tokens = random_tokens(16, config.max_position_embeddings, vocabulary=config.vocab_size)
    for index, layer in enumerate(model.model.decoder.layers):
        values = torch.tensor(hf_fc1_outputs(model, tokens)[index]).flatten(0, 1)  # [token, neuron]
        rates = 0.05 + 0.45 * torch.rand(config.ffn_dim, generator=generator)
        kept = ((1 - rates) * len(values)).long()
        thresholds = values.sort(0).values.gather(0, kept[None])[0]
        thresholds[3::10] = 100.0  # dead whatever the input
        thresholds[0] = -10.0
        with torch.no_grad():
            layer.fc1.bias.copy_(-thresholds)


def save_with_nan(folder: Path, layer: int) -> Path:
    """Write a tiny checkpoint with a NaN in a layer's first FFN matrix; returns the folder."""
    damaged = tiny_opt("pre")
    with torch.no_grad():
        damaged.model.decoder.layers[layer].fc1.weight[5, 7] = float("nan")
    return save_checkpoint(damaged, folder)


def save_checkpoint(
    model: OPTForCausalLM,
    folder: Path,
    *,
    layout: str = "safetensors",
    prefix: str = "model.decoder.",
    dtype: torch.dtype = torch.float32,
    tied_head: bool = False,
    num_files: int = 3,
) -> Path:
    """Write config.json and the weights; returns the folder.

    `layout` is one of LAYOUTS. The sharded ones cut between tensors, so that a layer's weights may
    lie in two files, and carry an index. `prefix` is what the decoder's keys begin with: small OPTs
    on the hub have "model.decoder.", large ones "decoder.". `tied_head` adds `lm_head.weight`, a
    copy of the embedding.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}, expected one of {LAYOUTS}")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        prefix + name.removeprefix("model.decoder."): value.detach().to(dtype).clone().contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    if tied_head:
        embedding = model.model.decoder.embed_tokens.weight
        tensors["lm_head.weight"] = embedding.detach().to(dtype).clone()

    config = model.config.to_dict()
    config.pop("dtype", None)
    config["architectures"] = ["OPTForCausalLM"]
    # transformers 5 writes "dtype"; the .bin checkpoints on the hub are older and say "torch_dtype"
    key = "torch_dtype" if layout.startswith("bin") else "dtype"
    config[key] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2))

    stem, ending = (
        ("pytorch_model", "bin") if layout.startswith("bin") else ("model", "safetensors")
    )
    if not layout.endswith("sharded"):
        _write(tensors, folder / f"{stem}.{ending}")
        return folder
    weight_map = {}
    for number, names in enumerate(_cut(tensors, num_files), start=1):
        name = f"{stem}-{number:05d}-of-{num_files:05d}.{ending}"
        _write({key: tensors[key] for key in names}, folder / name)
        weight_map |= dict.fromkeys(names, name)
    total = sum(value.numel() * value.element_size() for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index, indent=2))
    return folder


def _write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path, metadata={"format": "pt"})


def _cut(tensors: dict[str, torch.Tensor], num_files: int) -> list[list[str]]:
    """Names in their order, cut into `num_files` runs of about the same number of tensors."""
    names = list(tensors)
    edges = [round(len(names) * file / num_files) for file in range(num_files + 1)]
    return [names[start:end] for start, end in itertools.pairwise(edges)]


def save_tokenizer(folder: Path, *, style: str = "fast") -> Path:
    """A byte-level BPE of VOCABULARY ids in OPT's manner; returns the folder.

    `</s>` (id 2) is begin-of-sequence and end-of-sequence, and is put before every text unless
    add_special_tokens=False. `style` "fast" writes tokenizer.json; "hub" writes vocab.json and
    merges.txt, as the OPTs on the hub have.
    """
    if style not in ("fast", "hub"):
        raise ValueError(f"style is {style!r}, expected 'fast' or 'hub'")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", BOS)]
    )
    specials = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
    if style == "fast":
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **specials)
        fast.save_pretrained(folder)
        return folder
    tokenizer.model.save(str(folder))
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "unk_token": "</s>"}
    settings |= {"errors": "replace", "add_prefix_space": False, **specials}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps({"unk_token": "</s>", **specials}))
    return folder


def save_word_tokenizer(folder: Path, vocabulary: int) -> Path:
    """A tokenizer with a word for each id, from 3 on "w3", "w4", ...; returns the folder.

    The first three are "<unk>", "<pad>" and, for BOS, "</s>".
    Text made of these words with blanks between gives back just those ids.
    """
    names = ["<unk>", "<pad>", "</s>", *(f"w{i}" for i in range(3, vocabulary))]
    words = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    specials = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **specials)
    fast.save_pretrained(folder)
    return folder


def random_tokens(
    num_sequences: int, num_positions: int, *, seed: int = 0, vocabulary: int = VOCABULARY
) -> np.ndarray:
    """Token ids [sequence, position], int64: BOS first, then any ids from 3 on."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(3, vocabulary, (num_sequences, num_positions))
    tokens[:, 0] = BOS
    return tokens


def hf_fc1_outputs(model: OPTForCausalLM, tokens: np.ndarray, batch: int = 8) -> list[np.ndarray]:
    """The ReLU's inputs in Hugging Face's own forward, by hooks on fc1.

    Returns for each layer a float32 array [sequence, position, neuron].
    """
    layers = model.model.decoder.layers
    found: list[list[np.ndarray]] = [[] for _ in layers]

    def keep(index: int):
        def hook(module, inputs, output):
            # OPT's FFN sees [batch x position, channel]
            found[index].append(output.detach().float().cpu().numpy())

        return hook

    handles = [layer.fc1.register_forward_hook(keep(i)) for i, layer in enumerate(layers)]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(tokens), batch):
                ids = torch.as_tensor(np.asarray(tokens[start : start + batch]).astype(np.int64))
                model.model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return [np.concatenate(parts).reshape(*tokens.shape, -1) for parts in found]


def fire_bits(values: list[np.ndarray]) -> list[np.ndarray]:
    """What hf_fc1_outputs means: for each layer a bool array [neuron, sequence, position]."""
    return [np.ascontiguousarray((value > 0).transpose(2, 0, 1)) for value in values]
