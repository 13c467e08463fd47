"""Documents by domain, read in one fixed order from local files or from the hub."""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from neuronstats.errors import SettingsError, UserError
from neuronstats.textfiles import (
    NO_COLUMN,
    Document,
    check_columns,
    find_files,
    hash_file,
    read_documents,
    text_in,
    value_in,
)

log = logging.getLogger(__name__)

KINDS = ("sample", "local", "tokens", "hub")
PACKINGS = ("concat", "document")
SAMPLE = Path(__file__).parent / "embedded" / "sample"


@dataclass(kw_only=True, slots=True)
class Source:
    """One domain of a collection on the hub."""

    domain: str = ""
    """The domain's name in every table and figure."""
    path: str = ""
    """The data set's id on the hub."""
    config: str | None = None
    """The configuration's name; null: the data set's only or default one."""
    split: str = "train"
    """The split's name, held-out text where there is some."""
    revision: str | None = None
    """A commit of the data set; null: its newest."""
    text: str = "text"
    """The text's column; dots go into nested columns."""
    filter_column: str | None = None
    """Take only rows whose value in this column (dots go into nested ones) is filter_value."""
    filter_value: str | None = None
    """The value to take."""
    share: float = 1.0
    """The domain's share of max_tokens, relative to the shares of the other domains."""


@dataclass(kw_only=True, slots=True)
class DataSettings:
    """Which text or tokens to read, and how to cut them into sequences."""

    name: str = "sample"
    """Name of the collection; names the default run folder."""
    kind: str = "sample"
    """sample (embedded), local (text files), tokens (an array of token ids) or hub."""
    path: str | None = None
    """local: a file, folder or glob of .txt, .jsonl, .parquet, .arrow. tokens: an .npy file."""
    text: str = "text"
    """The text's column in local files; dots go into nested columns."""
    domain: str | None = None
    """The domain's column in local files; null: everything is one domain, "text"."""
    sequence_length: int | None = None
    """Tokens in a sequence, the begin-of-sequence token included; null: the model's positions."""
    max_tokens: int | None = None
    """Take whole sequences, at most so many tokens in all; null: all there is."""
    packing: str = "concat"
    """concat: documents of a domain joined; document: only full pieces of single documents."""
    shares: dict[str, float] | None = None
    """A domain's share of max_tokens, relative to the others; domains without one are left out.
    Null: in proportion to what there is (whole sequences, or characters where these are more than
    16 times max_tokens)."""
    sources: list[Source] = field(default_factory=list)
    """hub: the domains, in their order."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant.

        Raises:
            SettingsError: names the field, its value and what it may be.
        """
        _check_one_of("kind", self.kind, KINDS)
        _check_one_of("packing", self.packing, PACKINGS)
        own = self.kind in ("local", "tokens")
        if own and not self.path:
            what = "a file, folder or glob" if self.kind == "local" else "an .npy file"
            raise SettingsError(f"data={self.name} needs data.path: {what}")
        if self.path and not own:
            raise SettingsError(f"data.path={self.path} is for data=local and data=tokens")
        if self.kind == "tokens" and self.packing != "concat":
            raise SettingsError("data.packing is for text; an array's sequences stay as they are")
        if self.sequence_length is not None and self.sequence_length < 2:
            raise SettingsError(f"data.sequence_length={self.sequence_length}: give 2 or more")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise SettingsError(f"data.max_tokens={self.max_tokens}: give 1 or more, or null")
        if self.kind == "hub":
            _check_sources(self)
        _check_shares(self)


def _check_one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise SettingsError(f"data.{name}={value}: choose one of {', '.join(choices)}")


def _check_sources(settings: DataSettings) -> None:
    if not settings.sources:
        raise SettingsError(f"data={settings.name} reads the hub, but data.sources is empty")
    if settings.max_tokens is None:
        raise SettingsError(f"data={settings.name} reads the hub: set data.max_tokens")
    if settings.shares is not None:
        raise SettingsError("data.shares is for local data; a hub source has its own share")
    for source in settings.sources:
        if not source.domain or not source.path:
            raise SettingsError(f"data.sources: domain and path are needed, got {source}")
        if (source.filter_column is None) != (source.filter_value is None):
            raise SettingsError(
                f"data.sources, {source.domain}: filter_column and filter_value go together"
            )
    names = [source.domain for source in settings.sources]
    if len(set(names)) < len(names):
        raise SettingsError(f"data.sources: a domain is there twice: {', '.join(names)}")


def _check_shares(settings: DataSettings) -> None:
    if settings.shares is not None and settings.max_tokens is None:
        raise SettingsError("data.shares are shares of data.max_tokens: set that as well")
    shares = domain_shares(settings)
    if shares is None:
        return
    wrong = {name: share for name, share in shares.items() if not 0 <= share < float("inf")}
    if wrong or not sum(shares.values()) > 0:
        raise SettingsError(f"domain shares must be 0 or more and not all 0, got {wrong or shares}")


def domain_shares(settings: DataSettings) -> dict[str, float] | None:
    """Say how the domains share the tokens, as far as that is known before reading.

    Args:
        settings: the data's settings.

    Returns:
        Each domain's share relative to the others, in the order of the settings; None where it
        is in proportion to what there is.
    """
    if settings.kind == "hub":
        return {source.domain: source.share for source in settings.sources}
    if settings.shares is not None:
        return dict(settings.shares)
    if settings.kind == "local" and settings.domain is None:
        return {NO_COLUMN: 1.0}
    return None


def documents(
    settings: DataSettings, full: Collection[str] = frozenset()
) -> Iterator[tuple[str, str]]:
    """Read documents one after another, in an order that is the same at every call.

    Files come in the order of their names, sources in the order of the settings. Empty documents
    (no character but white space) are left out. A .txt file is one document and is held in memory
    as a whole; of other files only some rows are.

    Args:
        settings: the data's settings, of kind sample, local or hub.
        full: domains that need no more documents. It may grow while documents are read: a stream
            of the hub whose domains are all in it is left at once.

    Yields:
        Domain and text.

    Raises:
        UserError: the path, a column or any text is missing; bytes are not UTF-8; a file is
            broken; the hub cannot be reached.
    """
    reader = _hub_documents(settings, full) if settings.kind == "hub" else _file_documents(settings)
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


def _hub_documents(settings: DataSettings, full: Collection[str]) -> Iterator[Document]:
    def stream(source: Source) -> tuple[str | None, ...]:
        columns = (source.text, source.filter_column)
        return (source.path, source.config, source.split, source.revision, *columns)

    for _, group in groupby(settings.sources, key=stream):
        yield from _stream_documents(list(group), full)


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

    datasets.disable_progress_bars()
    where = {"split": source.split, "revision": source.revision}
    try:
        yield from datasets.load_dataset(source.path, source.config, **where, streaming=True)
    except Exception as error:  # the library lets through those of five others
        raise UserError(
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
        return {"sources": [{key: getattr(s, key) for key in keys} for s in settings.sources]}
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
    """Name the file of domains that may lie beside an array of token ids.

    Args:
        array: the .npy file.

    Returns:
        The same name with .npy replaced by .domains.txt.
    """
    return array.with_name(array.name.removesuffix(".npy") + ".domains.txt")
