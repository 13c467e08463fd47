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

from neuronstats.errors import UserError
from neuronstats.model.source import WEIGHT_NAMES

PREFIXES = ("model.decoder.", "decoder.", "")
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
        kind = json.loads((folder / "config.json").read_text())["model_type"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{folder}/config.json cannot be read: {error!r}") from error
    if kind != "opt":
        raise UserError(
            f"{folder} is a model of type {kind!r}; the FFN of OPT models (model_type 'opt') is"
            " what neuronstats understands."
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"{folder}/config.json cannot be used: {error}") from error
    if config.activation_function != "relu":
        raise UserError(
            f"{folder} has the activation {config.activation_function!r}: a neuron counts as"
            " activated where a ReLU lets it through, so only 'relu' can be measured."
        )
    if config.bos_token_id is None:
        raise UserError(
            f"{folder}/config.json names no bos_token_id, which the analysis leaves out."
        )
    config._attn_implementation = "sdpa"  # what from_pretrained chooses; a layer alone would not
    return config


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
                except (ValueError, KeyError, AttributeError) as error:
                    raise UserError(f"{index} cannot be read: {error!r}") from error
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
            return self._file(path).get(full)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise UserError(f"{path} is damaged at {full}: {error}") from error

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
