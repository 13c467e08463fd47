"""Where a model lies: a folder, an embedded model, or the hub."""

import fnmatch
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from huggingface_hub import constants, list_repo_files, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from neuronstats.errors import SettingsError, UserError
from neuronstats.model.settings import ModelSettings

disable_progress_bars()  # the jobs say themselves how far they are

EMBEDDED = Path(__file__).parents[1] / "embedded"
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")  # the first that exists is read
WEIGHT_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")  # as they are called on the hub
SMALL_FILES = ["*.json", "*.txt", "*.model"]  # configuration and tokenizer


def locate(settings: ModelSettings, *, weights: bool = True, cached: bool = False) -> Path:
    """Return the model's folder, fetched from the hub where it is no folder here.

    Args:
        settings: which model.
        weights: False: configuration and tokenizer are enough.
        cached: ask the hub for nothing where all was fetched before, whatever is newer there.

    Raises:
        SettingsError: no path, a path that looks like a folder and is none, or a name or revision
            that the hub does not have or does not give.
        UserError: the hub does not give it for another reason.
    """
    if not settings.path:
        raise SettingsError("model.path is not set: give a folder with a checkpoint, or a hub id.")
    if settings.path.startswith("embedded:"):
        return EMBEDDED / settings.path.removeprefix("embedded:")
    folder = Path(settings.path).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if folder.exists() or folder.is_absolute() or settings.path.count("/") != 1:
        what = "is a file" if folder.exists() else "does not exist"
        raise SettingsError(
            f"model.path={settings.path} {what}: expected a folder with config.json and weights,"
            " or a hub id such as facebook/opt-125m."
        )
    try:
        if cached and (found := in_cache(settings)):
            return found
        fetch = partial(snapshot_download, settings.path, revision=settings.revision)
        folder = Path(fetch(allow_patterns=SMALL_FILES))
        if weights and not in_cache(settings):
            fetch(allow_patterns=hub_weights(settings))
        return folder
    except Exception as error:
        raise refusal(settings, error) from error


def refusal(settings: ModelSettings, error: Exception) -> UserError:
    """Return why the hub does not give a model, and what to do."""
    name, page = f"model.path={settings.path}", f"{constants.ENDPOINT}/{settings.path}"
    login = "run `hf auth login` (or set HF_TOKEN)"
    if isinstance(error, GatedRepoError):
        return SettingsError(
            f"{name} is gated: agree to its terms on {page}, then {login} and give the same command"
            " again."
        )
    if isinstance(error, RepositoryNotFoundError):
        return SettingsError(
            f"{name}: no folder here, and no model that the hub shows us ({page}). Check the name;"
            f" if it is private, {login}."
        )
    if isinstance(error, RevisionNotFoundError):
        return SettingsError(
            f"model.revision={settings.revision}: {settings.path} has none of that name on the hub:"
            " expected a branch, tag or commit, or null for the newest."
        )
    if constants.HF_HUB_OFFLINE:
        return UserError(
            f"{name} was not fetched before, and HF_HUB_OFFLINE is set: unset it, or set model.path"
            " to a folder."
        )
    reason = str(error).strip().split("\n")[0]
    return UserError(
        f"{name} is no folder here, and the hub did not give it ({reason})."
        " Check the name and the connection, or set model.path to a folder."
    )


def tokenizer_folder(settings: ModelSettings) -> Path | None:
    """Return the folder with the model's tokenizer; None where it is not to be had."""
    try:
        return locate(settings, weights=False, cached=True)
    except UserError:
        return None


def is_here(settings: ModelSettings) -> bool:
    """Return whether the model is in a folder, and nothing of it is to be fetched."""
    path = settings.path or ""
    return path.startswith("embedded:") or Path(path).expanduser().is_dir()


def absolute(settings: ModelSettings) -> ModelSettings:
    """Make a folder's path absolute: a worker may have another current folder, or another home."""
    folder = Path(settings.path or "").expanduser()
    if not settings.path or not folder.is_dir():
        return settings
    return replace(settings, path=str(folder.absolute()))


def in_cache(settings: ModelSettings) -> Path | None:
    """Return the folder of a model that was fetched before, with all of its weights."""
    assert settings.path is not None
    for pattern in WEIGHT_PATTERNS:
        try:
            found = snapshot_download(
                settings.path,
                revision=settings.revision,
                allow_patterns=[*SMALL_FILES, pattern],
                local_files_only=True,
            )
        except LocalEntryNotFoundError:
            continue
        folder = Path(found)
        if any(folder.glob(pattern)) and not _missing(folder, pattern):
            return folder
    return None


def _missing(folder: Path, pattern: str) -> set[str]:
    """Return the weight files that an index names and that are not there."""
    named: set[str] = set()
    for index in folder.glob(f"{pattern}.index.json"):
        named |= set(json.loads(index.read_text())["weight_map"].values())
    return {name for name in named if not (folder / name).is_file()}


def hub_weights(settings: ModelSettings) -> list[str]:
    """Return a repository's weight files to fetch: safetensors if it has them, else .bin."""
    assert settings.path is not None
    files = list_repo_files(settings.path, revision=settings.revision)
    return next(
        ([pattern] for pattern in WEIGHT_PATTERNS if fnmatch.filter(files, pattern)),
        list(WEIGHT_PATTERNS),
    )
