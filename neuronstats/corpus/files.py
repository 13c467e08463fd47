"""Files of text: which there are, their rows as (place, domain, text), and their fingerprints."""

import json
import reprlib
from collections.abc import Iterable, Iterator
from glob import has_magic
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from neuronstats.corpus.settings import NO_COLUMN, NO_VALUE
from neuronstats.errors import SettingsError, UserError

SUFFIXES = (".txt", ".jsonl", ".parquet", ".arrow")
BATCH_ROWS = 64
WHOLE_BYTES, STRIDE_BYTES, SAMPLE_BYTES = 64 << 20, 16 << 20, 64 << 10
BYTE_ORDER_MARK = "\ufeff"  # at a file's start no part of the text

SHORTENED = reprlib.Repr()  # writes values of any size in a few words

Document = tuple[str, str, str]  # place (for messages), domain, text


def find_files(path: str) -> list[tuple[str, Path]]:
    """List the text files that a path stands for.

    Args:
        path: a file, a folder (searched through all its subfolders) or a glob; names that start
            with a dot are passed over.

    Returns:
        Name relative to the folder (or to the glob's fixed part) and path, sorted by that name.

    Raises:
        SettingsError: nothing is there, or no file of a known kind.
    """
    root = Path(path).expanduser()
    if root.is_file():
        files = {root.name: root}
    elif root.is_dir():
        files = _walk(root, root)
    elif has_magic(path):
        pattern, root = root, _fixed_part(root)
        files = {}
        for match in root.glob(str(pattern.relative_to(root))):
            files |= _walk(match, root) if match.is_dir() else {_name(match, root): match}
    else:
        raise SettingsError(f"data.path={path}: there is no such file or folder.")
    known = {name: file for name, file in files.items() if file.suffix in SUFFIXES}
    if not known:
        seen = ", ".join(sorted(files)[:5]) or "nothing"
        raise SettingsError(
            f"data.path={path}: no file ends in {', '.join(SUFFIXES)}; found {seen}"
        )
    return sorted(known.items())


def _walk(folder: Path, root: Path) -> dict[str, Path]:
    files = {_name(file, root): file for file in folder.rglob("*") if file.is_file()}
    return {name: file for name, file in files.items() if not f"/{name}".count("/.")}


def _name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def _fixed_part(pattern: Path) -> Path:
    magic = next(number for number, part in enumerate(pattern.parts) if has_magic(part))
    return Path(*pattern.parts[:magic])


def read_documents(path: Path, text: str, domain: str | None) -> Iterator[Document]:
    """Read one file's documents in its order.

    Args:
        path: a .txt (one document, held as a whole), .jsonl, .parquet or .arrow file.
        text: the text's column; dots go into nested columns. Of no meaning for .txt.
        domain: the domain's column, or None.

    Yields:
        Place (for messages), domain and text; domain is "text" without a column and "unknown"
        where the column holds null, text is empty where its column holds null.

    Raises:
        UserError: names the file and row of what cannot be read, or the columns that exist.
    """
    try:
        if path.suffix == ".txt":
            yield _read_text(path)
        else:
            reader = {".jsonl": _json_rows, ".parquet": _parquet_rows, ".arrow": _arrow_rows}
            columns = [text] if domain is None else [text, domain]
            for place, row in reader[path.suffix](path, columns):
                yield place, domain_in(row, domain), text_in(place, row, text)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        raise UserError(f"{path}: broken or cut short ({error})") from error


def _read_text(path: Path) -> Document:
    return str(path), NO_COLUMN, _decode(str(path), path.read_bytes(), 0)


def _decode(place: str, data: bytes, offset: int) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: byte 0x{data[error.start]:02x} at offset {offset + error.start} is not "
            "UTF-8 text; convert the file (iconv -t UTF-8) or leave it out"
        ) from error
    return text if offset else text.removeprefix(BYTE_ORDER_MARK)


def _json_rows(path: Path, columns: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    offset, checked = 0, False
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            place = f"{path}, line {number}"
            line = _decode(place, data, offset)
            offset += len(data)
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise UserError(f"{place}: expected an object, got {line[:60].strip()}")
            # Rows may leave out a domain, but where the first one does, the name is wrong.
            check_columns(place, row, columns if not checked else columns[:1])
            checked = True
            yield place, row


def _parquet_rows(path: Path, columns: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
        names = check_columns(str(path), file.schema_arrow.names, columns)
        yield from _batch_rows(path, file.iter_batches(batch_size=BATCH_ROWS, columns=names))


def _arrow_rows(path: Path, columns: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    with pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            source.seek(0)
            batches = reader = pa.ipc.open_stream(source)
        names = check_columns(str(path), reader.schema.names, columns)
        yield from _batch_rows(path, (_checked(batch.select(names)) for batch in batches))


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch that is mapped from a file, unless it refers to memory that is not its own.

    Raises:
        pa.ArrowInvalid: it does, or has a column of a type that cannot be read.
    """
    try:
        columns = batch.columns
    except KeyError as error:
        raise pa.ArrowInvalid(f"a column has Arrow's type {error}, which is not read") from error
    for column in columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            # Text that is not UTF-8 is found row by row, in words of ours.
            text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            if not (text and "UTF8" in str(error)):
                raise
    return batch


def _batch_rows(
    path: Path, batches: Iterable[pa.RecordBatch]
) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    for batch in batches:
        for first in range(0, batch.num_rows, BATCH_ROWS):
            try:
                rows = batch.slice(first, BATCH_ROWS).to_pylist()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, rows {number + 1} to {number + BATCH_ROWS}: a text has a byte "
                    f"0x{error.object[error.start]:02x} at its offset {error.start}, which is not "
                    "UTF-8 text"
                ) from error
            except (ValueError, OverflowError, KeyError) as error:  # dates, time zones
                raise UserError(
                    f"{path}, rows {number + 1} to {number + BATCH_ROWS}: a value cannot be read"
                    f" ({error!s:.200})"
                ) from error
            for row in rows:
                number += 1
                yield f"{path}, row {number}", row


def check_columns(place: str, names: Iterable[str], columns: Iterable[str]) -> list[str]:
    """Check that columns exist.

    Args:
        place: what has the columns, for the message.
        names: the columns that exist.
        columns: the columns that are asked for; dots go into nested ones.

    Returns:
        The top-level columns that hold them.

    Raises:
        UserError: names the missing column and those that exist.
    """
    there, top = list(names), dict[str, None]()
    for column in columns:
        outer = column if column in there else column.split(".")[0]
        if outer not in there:
            raise UserError(
                f"{place}: there is no column {column!r}; the columns are {', '.join(there)} "
                "(set data.text and data.domain)"
            )
        top[outer] = None
    return list(top)


def value_in(row: dict[str, Any], column: str) -> Any:
    """Return a column's value (dots go into nested ones); None where it is null or absent."""
    if column in row or "." not in column:
        return row.get(column)
    outer, inner = column.split(".", maxsplit=1)
    nested = row.get(outer)
    return value_in(nested, inner) if isinstance(nested, dict) else None


def text_in(place: str, row: dict[str, Any], column: str) -> str:
    """Return the text of a row, which `place` names in messages; empty where there is null.

    Raises:
        UserError: the value is not text, or holds half a surrogate pair.
    """
    value = value_in(row, column)
    if value is None:
        return ""
    if not isinstance(value, str):
        shown = f"{type(value).__name__} {SHORTENED.repr(value)}"
        raise UserError(f"{place}: {column!r} holds {shown}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: half a surrogate pair at character {error.start}") from error
    return value


def domain_in(row: dict[str, Any], column: str | None) -> str:
    """Return a row's domain: "text" without a column, "unknown" where it is null or empty."""
    if column is None:
        return NO_COLUMN
    value = value_in(row, column)
    return str(value).strip() or NO_VALUE if value is not None else NO_VALUE


def hash_file(path: Path) -> tuple[int, str]:
    """Hash a file's content: whole up to 64 MiB, else 64 KiB in each 16 MiB and the last 64 KiB.

    Returns:
        Size in bytes, and xxh3_128 in hex.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    digest = xxhash.xxh3_128()
    try:
        size = path.stat().st_size
        step = 1 << 20 if size <= WHOLE_BYTES else STRIDE_BYTES
        length = step if size <= WHOLE_BYTES else SAMPLE_BYTES
        with path.open("rb") as file:
            for offset in [*range(0, size, step), max(0, size - SAMPLE_BYTES)]:
                file.seek(offset)
                digest.update(file.read(length))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return size, digest.hexdigest()
