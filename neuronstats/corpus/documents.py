"""Documents by domain, read in one fixed order from local files or from the hub."""

import logging
from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from neuronstats.corpus.files import (
    Document,
    check_columns,
    find_files,
    hash_file,
    read_documents,
    text_in,
    value_in,
)
from neuronstats.corpus.settings import DataSettings, Source
from neuronstats.errors import SettingsError, UserError

log = logging.getLogger(__name__)

SAMPLE = Path(__file__).parents[1] / "embedded" / "sample"


def documents(
    settings: DataSettings, full: Collection[str] = frozenset(), gone: set[str] | None = None
) -> Iterator[tuple[str, str]]:
    """Read documents one after another, in an order that is the same at every call.

    Files come in the order of their names, sources in the order of the settings. Empty documents
    (no character but white space) are left out. A .txt file is one document and is held in memory
    as a whole; of other files only some rows are.

    Args:
        settings: the data's settings, of kind sample, local or hub.
        full: domains that need no more documents. It may grow while documents are read: a stream
            of the hub whose domains are all in it is left at once.
        gone: grows by the domains whose data set the hub has no more, or does not give; the others
            are read. None: such a data set is an error.

    Yields:
        Domain and text.

    Raises:
        UserError: the path, a column or any text is missing; bytes are not UTF-8; a file is
            broken; the hub cannot be reached.
    """
    is_hub = settings.kind == "hub"
    reader = _hub_documents(settings, full, gone) if is_hub else _file_documents(settings)
    empty = given = 0
    for _, domain, text in reader:
        if not text or text.isspace():
            empty += 1
            continue
        given += 1
        yield domain, text
    if not given:
        raise UserError(
            f"data={settings.name}: there is no text in {_origin(settings)} (documents: {empty}, "
            "all of them empty)"
        )
    if empty:
        log.warning("%s: left out %d empty documents", settings.name, empty)


def _origin(settings: DataSettings) -> str:
    if settings.kind == "hub":
        return ", ".join(dict.fromkeys(source.path for source in settings.sources))
    return str(SAMPLE) if settings.kind == "sample" else str(settings.path)


def _file_documents(settings: DataSettings) -> Iterator[Document]:
    files = find_files(_origin(settings))
    if settings.domain is not None and all(path.suffix == ".txt" for _, path in files):
        raise SettingsError(
            f"data.domain={settings.domain}: .txt files have no columns; leave it null, or use "
            ".jsonl or .parquet"
        )
    for _, path in files:
        yield from read_documents(path, settings.text, settings.domain)


class _SourceGoneError(UserError):
    """The hub has a data set no more, or does not give it."""


def _hub_documents(
    settings: DataSettings, full: Collection[str], gone: set[str] | None
) -> Iterator[Document]:
    def stream(source: Source) -> tuple[str | None, ...]:
        columns = (source.text, source.filter_column)
        return (source.path, source.config, source.split, source.files, source.revision, *columns)

    for _, group in groupby(settings.sources, key=stream):
        sources = list(group)
        try:
            yield from _stream_documents(sources, full)
        except _SourceGoneError as error:
            domains = [source.domain for source in sources]
            if gone is None or len(gone) + len(domains) == len(settings.sources):
                raise
            gone.update(domains)
            log.warning("%s: left out; %s", ", ".join(domains), str(error).split("\n")[0])


def _stream_documents(sources: list[Source], full: Collection[str]) -> Iterator[Document]:
    """Read the domains that are rows of one data set, which is streamed once for all of them."""
    first, domains = sources[0], {source.filter_value: source.domain for source in sources}
    if all(domain in full for domain in domains.values()):
        return
    columns = [first.text] if first.filter_column is None else [first.text, first.filter_column]
    for number, row in enumerate(_hub_rows(first), start=1):
        place = f"{first.path}, {first.split}, row {number}"
        if number == 1:
            check_columns(place, row, columns)
        value = value_in(row, first.filter_column) if first.filter_column else None
        if value in domains:
            yield place, domains[value], text_in(place, row, first.text)
            if all(domain in full for domain in domains.values()):
                return


def _hub_rows(source: Source) -> Iterator[dict[str, Any]]:
    import datasets  # here: it takes seconds to import, and local data need none of it
    from datasets.exceptions import FileNotFoundDatasetsError

    datasets.disable_progress_bars()
    where: dict[str, Any] = {"split": source.split, "revision": source.revision}
    if source.files is not None:
        where["data_files"] = {source.split: source.files}
    try:
        yield from datasets.load_dataset(source.path, source.config, **where, streaming=True)
    except Exception as error:  # the library lets through those of five others
        missing = isinstance(error, FileNotFoundDatasetsError)
        raise (_SourceGoneError if missing else UserError)(
            f"{source.path} (split {source.split}) cannot be read from the hub: "
            f"{type(error).__name__}: {error}\n"
            "Check the network and the id, or read text of your own: data=local data.path=..."
        ) from error


def content_fingerprint(settings: DataSettings) -> dict[str, Any]:
    """Describe the content to be read, so that changed content is noticed.

    Independent of where the files lie and of their times. Of files above 64 MiB samples are
    hashed, so that a change between the samples that keeps the size is not seen.

    Args:
        settings: the data's settings, of any kind.

    Returns:
        A value for JSON: name, size and hash (xxh3_128, hex) of each file, or id, configuration,
        split and revision of each source of the hub.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    if settings.kind == "hub":
        keys = ("path", "config", "split", "revision")
        named = [{"files": s.files} if s.files else {} for s in settings.sources]
        about = [{key: getattr(s, key) for key in keys} for s in settings.sources]
        return {"sources": [a | b for a, b in zip(about, named, strict=True)]}
    if settings.kind == "tokens":
        array = Path(_origin(settings)).expanduser()
        beside = domains_file(array)
        files = [(path.name, path) for path in (array, beside) if path == array or path.exists()]
    else:
        files = find_files(_origin(settings))
    described = []
    for name, path in files:
        size, digest = hash_file(path)
        described.append({"name": name, "bytes": size, "xxh3": digest})
    return {"files": described}


def domains_file(array: Path) -> Path:
    """Return the file of domains that may lie beside an array: .npy replaced by .domains.txt."""
    return array.with_name(array.name.removesuffix(".npy") + ".domains.txt")
