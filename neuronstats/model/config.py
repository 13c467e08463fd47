"""config.json -> transformers' configuration, or one line that says what the model is instead."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from neuronstats.errors import SettingsError, UserError

POSITION_NAMES = ("max_position_embeddings", "max_seq_len", "n_positions")
ALWAYS_CAUSAL = ("gpt_neox", "gpt_neox_japanese")  # whatever their is_decoder says
# Trained with the begin-of-sequence token first, whether or not a tokenizer puts it there.
BOS_ALWAYS = ("opt",)


def load_config(folder: Path) -> PreTrainedConfig:
    """Read a model's configuration, and refuse by it what is no plain causal language model.

    Raises:
        SettingsError: quantised, with code of its own, an encoder, several models in one, or of a
            type that transformers has no causal language model of.
        UserError: no config.json, or a broken one.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no checkpoint: it has no config.json.")
    try:
        raw = json.loads((folder / "config.json").read_text())
        kind = raw["model_type"]
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise UserError(f"{folder}/config.json cannot be read: {error!r}") from error
    _refuse_raw(folder, raw)
    if not isinstance(kind, str) or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise SettingsError(
            f"{folder} is a model of type {kind!r}, of which transformers has no causal language"
            " model: expected a decoder such as OPT, GPT-2 or Llama."
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}/config.json cannot be used: {reason}") from error
    if config.get_text_config() is not config:
        raise SettingsError(
            f"{folder} is a model of several parts (type {kind!r}: text and more): expected the"
            f" checkpoint of its text model alone ({config.get_text_config().model_type})."
        )
    decodes = kind in ALWAYS_CAUSAL or getattr(config, "is_decoder", True)
    if config.is_encoder_decoder or not decodes:
        raise SettingsError(f"{folder} is an encoder (type {kind!r}): expected a causal decoder.")
    _check_numbers(folder, config)
    return config


def _refuse_raw(folder: Path, raw: dict[str, Any]) -> None:
    found = raw.get("quantization_config") or raw.get("compression_config")
    if found:
        method = found.get("quant_method", "unnamed") if isinstance(found, dict) else found
        raise SettingsError(
            f"{folder} is a quantised model (quantization_config: {method}): its numbers are no"
            " weights. Give the float32, float16 or bfloat16 checkpoint that it was made from."
        )
    if raw.get("auto_map"):
        raise SettingsError(
            f"{folder} comes with code of its own (auto_map in config.json), which is never run."
            f" If transformers' own {raw['model_type']!r} is the same model, take auto_map out of a"
            " copy's config.json."
        )


def _check_numbers(folder: Path, config: PreTrainedConfig) -> None:
    """Check the numbers that are used before a model is built of them."""
    for key in ("num_hidden_layers", "vocab_size"):
        value = getattr(config, key, None)
        if type(value) is not int or value < 1:
            raise UserError(f"{folder}/config.json says {key} {value!r}: expected 1 or more.")
    for key in ("bos_token_id", "eos_token_id"):
        value = getattr(config, key, None)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(number) is int and 0 <= number < config.vocab_size for number in ids):
            raise UserError(
                f"{folder}/config.json says {key} {value!r}: expected a token id from 0 to"
                f" {config.vocab_size - 1}, the vocabulary's last."
            )


def bos_id(config: PreTrainedConfig) -> int | None:
    """Return the configuration's begin-of-sequence token; None where it names none."""
    found: int | list[int] | None = config.bos_token_id
    return (found[0] if found else None) if isinstance(found, list) else found


def separator_id(config: PreTrainedConfig) -> int | None:
    """Return the token between documents: the end of sequence, else its beginning, else None."""
    end: int | list[int] | None = config.eos_token_id
    end = (end[0] if end else None) if isinstance(end, list) else end
    return bos_id(config) if end is None else end


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return the longest sequence that a model is made for; None where it sets no limit."""
    for name in POSITION_NAMES:
        if type(found := getattr(config, name, None)) is int:
            return found
    return None
