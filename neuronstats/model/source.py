"""Where a model lies: a folder, an embedded model, or the hub."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import OfflineModeIsEnabled

from neuronstats.errors import SettingsError, UserError
from neuronstats.model.settings import ModelSettings

EMBEDDED = Path(__file__).parents[1] / "embedded"
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")  # the first that exists is read
SMALL_FILES = ["*.json", "*.txt", "*.model"]  # configuration and tokenizer


def locate(settings: ModelSettings, *, weights: bool = True) -> Path:
    """Return the model's folder, fetched from the hub where it is no folder here.

    Raises:
        SettingsError: no path, or a path that looks like a folder and is none.
        UserError: the hub does not give it.
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
        fetch = partial(snapshot_download, settings.path, revision=settings.revision)
        folder = Path(fetch(allow_patterns=SMALL_FILES))
        if weights:
            fetch(allow_patterns=_hub_weights(settings))
        return folder
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"model.path={settings.path} is no folder here, and the hub did not give it ({reason})."
            " Check the name and the connection, or set model.path to a folder."
        ) from error


def tokenizer_folder(settings: ModelSettings) -> Path | None:
    """Return the folder with the model's tokenizer; None where it is not to be had."""
    try:
        return locate(settings, weights=False)
    except UserError:
        return None


def is_here(settings: ModelSettings) -> bool:
    """Whether the model is in a folder, and nothing of it is to be fetched."""
    path = settings.path or ""
    return path.startswith("embedded:") or Path(path).expanduser().is_dir()


def absolute(settings: ModelSettings) -> ModelSettings:
    """Make a folder's path absolute: a worker may have another current folder, or another home."""
    folder = Path(settings.path or "").expanduser()
    if not settings.path or not folder.is_dir():
        return settings
    return replace(settings, path=str(folder.absolute()))


def _hub_weights(settings: ModelSettings) -> list[str]:
    """Say which of a repository's weight files to fetch: safetensors if it has them, else .bin."""
    assert settings.path is not None
    try:
        files = list_repo_files(settings.path, revision=settings.revision)
    except (OfflineModeIsEnabled, OSError):
        return ["*.safetensors", "pytorch_model*.bin"]  # whichever of them was fetched before
    has_safetensors = any(
        name.startswith("model") and name.endswith(".safetensors") for name in files
    )
    return ["model*.safetensors"] if has_safetensors else ["pytorch_model*.bin"]
