"""A checkpoint's files -> its configuration and single tensors, read when asked for.

safetensors or .bin, one file or several with an index, from a folder or the hub. Pickles are only
ever read with ``weights_only=True``, and no code of a model repository is ever run.
"""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, OPTConfig

from neuronstats.errors import SettingsError, UserError
from neuronstats.model.source import WEIGHT_NAMES

PREFIXES = ("model.decoder.", "decoder.", "")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SAMPLE_STRIDE = 64 << 20  # of a large weight file, 64 KiB in every so many bytes are hashed
SAMPLE_BYTES = 64 << 10


def load_config(folder: Path) -> OPTConfig:
    """Read the model's shape and refuse what is not measured here.

    Raises:
        UserError: no config.json, a broken one, another architecture, or another activation.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no checkpoint: it has no config.json.")
    try:
        raw = json.loads((folder / "config.json").read_text())
        kind = raw["model_type"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{folder}/config.json cannot be read: {error!r}") from error
    refuse_what_is_not_plain(folder, raw)
    if kind != "opt":
        raise UserError(
            f"{folder} is a model of type {kind!r}; the FFN of OPT models (model_type 'opt') is"
            " what neuronstats understands."
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}/config.json cannot be used: {reason}") from error
    if config.activation_function != "relu":
        raise UserError(
            f"{folder} has the activation {config.activation_function!r}: a neuron counts as"
            " activated where a ReLU lets it through, so only 'relu' can be measured."
        )
    if config.bos_token_id is None:
        raise UserError(
            f"{folder}/config.json names no bos_token_id, which the analysis leaves out."
        )
    _check_ids(folder, config)
    config._attn_implementation = "sdpa"  # what from_pretrained chooses; a layer alone would not
    return config


def _check_ids(folder: Path, config: Any) -> None:
    """Check that the special tokens are in the vocabulary.

    Raises:
        UserError: names the token and the vocabulary's size.
    """
    for key in ("bos_token_id", "eos_token_id"):
        value = getattr(config, key, None)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(number) is int and 0 <= number < config.vocab_size for number in ids):
            raise UserError(
                f"{folder}/config.json says {key} {value!r}: expected a token id from 0 to"
                f" {config.vocab_size - 1}, the vocabulary's last."
            )


def refuse_what_is_not_plain(folder: Path, raw: dict[str, Any]) -> None:
    """Refuse quantised weights and code of a model's own, by what config.json says.

    Raises:
        SettingsError: names what was found.
    """
    if raw.get("quantization_config") or raw.get("compression_config"):
        found = raw.get("quantization_config") or raw["compression_config"]
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


class Checkpoint:
    """The weights of one folder by name, without the prefix that varies between OPT checkpoints.

    Files stay memory-mapped; a tensor's bytes are read when it is used.

    Args:
        folder: a folder with config.json and weights.
        weights: False where they were not fetched; then only what config.json says is known.

    Raises:
        UserError: a file is missing, truncated or of another kind.
    """

    def __init__(self, folder: Path, *, weights: bool = True) -> None:
        self.folder = folder
        self.config = load_config(folder)
        self._open_files: dict[Path, _Safetensors | _Pickle] = {}
        self._where: dict[str, tuple[Path, str]] = {}
        for path in self.weight_files() if weights else []:
            for name in self._file(path).names():
                self._where[_bare(name)] = (path, name)

    def _file(self, path: Path) -> "_Safetensors | _Pickle":
        if path not in self._open_files:
            self._open_files[path] = _open(path)
        return self._open_files[path]

    def release(self) -> None:
        """Unmap all files; they are opened again when needed. Tensors handed out stay valid."""
        self._open_files.clear()

    def weight_files(self) -> list[Path]:
        """Return the weight files, in the order of their names.

        Raises:
            UserError: there are none, or the index names one that is missing.
        """
        for name in WEIGHT_NAMES:
            index = self.folder / f"{name}.index.json"
            if index.is_file():
                try:
                    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
                except (ValueError, KeyError, AttributeError, TypeError) as error:
                    raise UserError(f"{index} cannot be read: {error!r}") from error
                outside = [n for n in names if not _is_inside(n)]
                if outside:
                    raise UserError(
                        f"{index} names {outside[0]!r}: expected the name of a {Path(name).suffix}"
                        " file in the model's folder; nothing outside of it is read."
                    )
                missing = [n for n in names if not (self.folder / n).is_file()]
                if missing:
                    raise UserError(
                        f"{self.folder} lacks {', '.join(missing)}, which {index.name} names."
                    )
                return [self.folder / n for n in names]
            if (self.folder / name).is_file():
                return [self.folder / name]
        raise UserError(
            f"{self.folder} has no weights: expected {' or '.join(WEIGHT_NAMES)}, or an index."
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type that the weights are stored in."""
        if not self._where:
            return self.config.dtype or torch.float32
        return self.tensor("embed_tokens.weight").dtype

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its bare name, such as ``layers.0.fc1.weight``.

        Raises:
            UserError: the checkpoint lacks it, or its bytes cannot be read.
        """
        if name not in self._where:
            raise UserError(f"{self.folder} lacks the weight {name}: is the checkpoint complete?")
        path, full = self._where[name]
        try:
            found = self._file(path).get(full)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise UserError(f"{path} is damaged at {full}: {error}") from error
        if found.dtype not in FLOATS:
            raise SettingsError(
                f"{path} holds {full} as {str(found.dtype).removeprefix('torch.')}: expected"
                " float32, float16 or bfloat16; quantised weights cannot be measured."
            )
        return found

    def layer(self, index: int) -> dict[str, Tensor]:
        """Return the tensors of one decoder layer, by their names within it.

        Raises:
            UserError: there is none of this number.
        """
        prefix = f"layers.{index}."
        names = [name for name in self._where if name.startswith(prefix)]
        if not names:
            raise UserError(f"{self.folder} lacks layer {index}: is the checkpoint complete?")
        return {name.removeprefix(prefix): self.tensor(name) for name in names}

    def layer_bytes(self, index: int) -> int:
        """Bytes of one decoder layer as stored."""
        return sum(t.numel() * t.element_size() for t in self.layer(index).values())

    def fingerprint(self) -> str:
        """Hash the configuration and the weights: names, sizes, contents (of large files samples).

        Independent of the folder's path and of modification times.
        """
        digest = xxhash.xxh3_128()
        config = self.config.to_dict()
        for key in ("_name_or_path", "transformers_version", "torch_dtype", "dtype"):
            config.pop(key, None)
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        for path in self.weight_files():
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            for piece in _sample(path, size):
                digest.update(piece)
        return digest.hexdigest()


def _is_inside(name: object) -> bool:
    """Whether an index's entry is a weight file's name in the model's own folder.

    The name decides, not where a link leads: the hub's cache is made of links.
    """
    if not isinstance(name, str) or Path(name).suffix not in (".safetensors", ".bin"):
        return False
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _sample(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        if size <= SAMPLE_STRIDE:
            yield file.read()
            return
        for start in [*range(0, size - SAMPLE_BYTES, SAMPLE_STRIDE), size - SAMPLE_BYTES]:
            file.seek(start)
            yield file.read(SAMPLE_BYTES)


def _bare(name: str) -> str:
    return next(name.removeprefix(p) for p in PREFIXES if name.startswith(p))


def _open(path: Path) -> "_Safetensors | _Pickle":
    return _Safetensors(path) if path.suffix == ".safetensors" else _Pickle(path)


class _Safetensors:
    def __init__(self, path: Path) -> None:
        try:
            self._file: Any = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is truncated or no safetensors file: {error}") from error

    def names(self) -> list[str]:
        return list(self._file.keys())

    def get(self, name: str) -> Tensor:
        return self._file.get_tensor(name)


class _Pickle:
    def __init__(self, path: Path) -> None:
        try:
            try:
                state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                state = torch.load(path, map_location="cpu", weights_only=True)  # torch < 1.6 files
        except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{path} is truncated, or holds more than weights: {reason}") from error
        if not isinstance(state, dict) or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
        ):
            raise UserError(f"{path} holds no dictionary of tensors.")
        self._state: dict[str, Tensor] = state

    def names(self) -> list[str]:
        return list(self._state)

    def get(self, name: str) -> Tensor:
        return self._state[name]
