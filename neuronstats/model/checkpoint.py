"""A checkpoint's files -> its configuration and single tensors, read when asked for.

safetensors or .bin, one file or several with an index, from a folder or the hub. Pickles are only
ever read with ``weights_only=True``, and no code of a model repository is ever run.
"""

import json
import pickle
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from neuronstats.errors import SettingsError, UserError
from neuronstats.model.config import load_config
from neuronstats.model.source import WEIGHT_NAMES

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SAMPLE_STRIDE = 64 << 20  # of a large weight file, 64 KiB in every so many bytes are hashed
SAMPLE_BYTES = 64 << 10


class Checkpoint:
    """The weights of one folder, by the names that they are stored under.

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
        self._where: dict[str, Path] = {}
        for path in self.weight_files() if weights else []:
            self._where |= dict.fromkeys(self._file(path).names(), path)
        if weights and not self._where:
            raise UserError(f"{folder} has weight files that hold no weight: fetch it again.")

    def names(self) -> list[str]:
        """Return the stored weights' names; none where no weights were fetched."""
        return list(self._where)

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
                except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
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

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type that the weights are stored in: the largest one's."""
        if not self._where:
            return self.config.dtype or torch.float32
        return max(map(self.tensor, self._where), key=Tensor.numel).dtype

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its stored name.

        Raises:
            SettingsError: it holds no floating-point numbers.
            UserError: its bytes cannot be read.
        """
        path = self._where[name]
        try:
            found = self._file(path).get(name)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise UserError(f"{path} is damaged at {name}: {error}") from error
        if found.dtype not in FLOATS:
            raise SettingsError(
                f"{path} holds {name} as {str(found.dtype).removeprefix('torch.')}: expected"
                " float32, float16 or bfloat16; quantised weights cannot be measured."
            )
        return found

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
    """Return whether an index's entry is a weight file's name in the model's own folder.

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
