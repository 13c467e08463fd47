"""Weights of the hub, fetched once on a machine, before its workers load the model."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from tqdm import tqdm

from neuronstats.cluster.pool import Pool
from neuronstats.console import PLAIN_SECONDS, Advance, Console
from neuronstats.model.settings import ModelSettings
from neuronstats.model.source import hub_weights, in_cache, is_here, locate, refusal
from neuronstats.units import size

REPORT_SECONDS = 1.0


def fetch(settings: ModelSettings, on_bytes: Callable[[int, int], None]) -> None:
    """Fetch what is missing here of a model on the hub, one file after another.

    A file that came whole is kept, whatever happens to the others; of one that is cut off, the rest
    is asked for a few times.

    Args:
        settings: which model.
        on_bytes: called with bytes that have come and bytes to come in all.

    Raises:
        SettingsError: the hub does not have it, or does not give it.
        UserError: it cannot be had for another reason.
    """
    if is_here(settings):
        return
    name = str(settings.path)
    commit = locate(settings, weights=False).name  # its weights, whatever is newer by now
    if in_cache(settings):
        return
    try:
        wanted = hub_weights(settings)
        files = snapshot_download(name, revision=commit, allow_patterns=wanted, dry_run=True)
        missing = [file for file in files if file.will_download]
        total = sum(int(file.file_size or 0) for file in missing)

        class Bar(tqdm):  # type: ignore[misc]
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**options, "disable": True})

            def update(self, n: float | None = 1) -> bool | None:
                on_bytes(int(n or 0), total)
                return None

        on_bytes(0, total)
        for file in missing:
            hf_hub_download(name, file.filename, revision=commit, tqdm_class=Bar)
    except Exception as error:
        raise refusal(settings, error) from error


def fetch_here(settings: ModelSettings, console: Console) -> None:
    """Fetch a model's weights in this process, with a progress line where any are missing."""
    advance: Advance | None = None
    with contextlib.ExitStack() as stack:

        def on_bytes(new: int, total: int) -> None:
            nonlocal advance
            if advance is None:
                console.say(f"fetching {size(total)}: the weights of {settings.path}")
                advance = stack.enter_context(console.progress("fetch", total, "bytes"))
            advance(new, str(settings.path))

        fetch(settings, on_bytes)


def fetch_on_nodes(settings: ModelSettings, pool: Pool, console: Console) -> None:
    """Fetch a model's weights once on every machine that gets workers, all at the same time.

    A machine that cannot have them is left out, by name.

    Raises:
        UserError: none is left.
    """
    if is_here(settings):
        return
    reached: dict[str, tuple[int, int]] = {}
    told = time.monotonic()
    for node, now in pool.on_each_node(_reports, (settings,)):
        reached[node.name] = now
        if time.monotonic() - told > PLAIN_SECONDS:
            told = time.monotonic()
            done, total = (sum(column) for column in zip(*reached.values(), strict=True))
            console.say(f"fetch: {size(done)} of {size(total)} on {len(reached)} machines")


def _reports(settings: ModelSettings) -> Iterator[tuple[int, int]]:
    """Fetch in a thread; yield now and then bytes that have come, and bytes to come in all."""
    done, total = 0, 0
    errors: list[BaseException] = []

    def on_bytes(new: int, all_of_them: int) -> None:
        nonlocal done, total
        done, total = done + new, all_of_them

    def work() -> None:
        try:
            fetch(settings, on_bytes)
        except BaseException as error:  # noqa: BLE001 - raised below, where it is waited for
            errors.append(error)

    thread = threading.Thread(target=work, name="fetch", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(REPORT_SECONDS)
        yield done, total
    for error in errors:
        raise error
