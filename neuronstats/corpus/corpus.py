"""The corpus: token ids [sequence, position], each sequence of one domain; read from an array."""

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from neuronstats.corpus.documents import domains_file
from neuronstats.errors import SettingsError, UserError

log = logging.getLogger(__name__)

BLOCK_TOKENS = 1 << 22  # looked at at once, so that checks need tens of MB
NO_DOMAIN = "text"
NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True, eq=False)
class Corpus:
    """Sequences of tokens, grouped by domain."""

    tokens: NDArray[np.unsignedinteger[Any]]
    """Token ids, uint16 where the vocabulary allows, else uint32 [sequence, position]."""
    domain: NDArray[np.int16]
    """Index into domains, int16 [sequence], never falling."""
    row: NDArray[np.int64]
    """Index of the sequence in the input, int64 [sequence]."""
    domains: tuple[str, ...]
    """Names, each of at least one sequence, in the order of the settings or of appearance."""
    bos_id: int | None = None
    """The begin-of-sequence token, where sequences start with one."""
    separator_id: int | None = None
    """The token between joined documents, where there is one."""

    def __post_init__(self) -> None:
        """Check the shapes and types above."""
        num_sequences = self.tokens.shape[0]
        assert self.tokens.ndim == 2, self.tokens.shape
        assert self.tokens.dtype in (np.uint16, np.uint32), self.tokens.dtype
        assert self.domain.dtype == np.int16, self.domain.dtype
        assert self.row.dtype == np.int64, self.row.dtype
        assert self.domain.shape == self.row.shape == (num_sequences,)
        assert (np.unique(self.domain) == np.arange(len(self.domains))).all()
        assert (np.diff(self.domain) >= 0).all()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of shape, token ids and domains (xxh3_128, hex); the ids' width is no part of it."""
        digest = xxhash.xxh3_128()
        digest.update(json.dumps([self.tokens.shape, self.domains]).encode())
        digest.update(self.domain.astype("<i2").tobytes())
        step = block_sequences(self.tokens.shape[1])
        for start in range(0, len(self.tokens), step):
            digest.update(self.tokens[start : start + step].astype("<u4").tobytes())
        return digest.hexdigest()

    def most_frequent(self, number: int) -> tuple[int, ...]:
        """Return the ids that occur most often, the begin-of-sequence token or separator aside.

        Equal ones by ascending id; fewer than asked for where there are not so many.
        """
        counts = np.bincount(self.tokens.ravel())
        aside = self.separator_id if self.bos_id is None else self.bos_id
        if aside is not None and aside < len(counts):
            counts[aside] = 0
        order = np.argsort(-counts, kind="stable")[:number]
        return tuple(order[counts[order] > 0].tolist())


def block_sequences(num_positions: int) -> int:
    """Return the number of sequences to look at at once, at least 1."""
    return max(1, BLOCK_TOKENS // num_positions)


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """Return the narrower of the two types that holds every id of the vocabulary."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def whole_sequences(max_tokens: int | None, num_positions: int) -> int | None:
    """Return how many whole sequences a number of tokens allows, at least 1; None for no limit.

    Raises:
        SettingsError: the tokens allow not even one.
    """
    if max_tokens is None:
        return None
    if max_tokens < num_positions:
        raise SettingsError(
            f"data.max_tokens={max_tokens} is less than one sequence of {num_positions} tokens"
        )
    return max_tokens // num_positions


def allot(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Divide a number of sequences in proportion to weights (largest remainders, exactly).

    Args:
        total: the sequences.
        weights: 0 or more for each domain, not all 0.

    Returns:
        Sequences of each domain, which add up to the total; equal remainders go to the domain
        that comes first.
    """
    exact = {name: Fraction(weight) for name, weight in weights.items()}
    unit = Fraction(total) / sum(exact.values())
    taken = {name: int(weight * unit) for name, weight in exact.items()}
    by_remainder = sorted(exact, key=lambda name: taken[name] - exact[name] * unit)
    for name in by_remainder[: total - sum(taken.values())]:
        taken[name] += 1
    return taken


def choose_sequences(
    available: Mapping[str, int],
    limit: int | None,
    shares: Mapping[str, float] | None,
    gone: Collection[str] = frozenset(),
) -> dict[str, int]:
    """Compute how many sequences of each domain are taken.

    Args:
        available: whole sequences that there are of each domain found in the data.
        limit: sequences in all, or None for no limit.
        shares: each domain's share of the limit, relative to the others; domains without one are
            left out. None: in proportion to what there is.
        gone: domains whose share stays empty.

    Returns:
        Sequences of each domain, at least 1; domains that get none are not in it.

    Raises:
        UserError: a domain with a share is not in the data.
    """
    if shares is None or limit is None:
        named = available if shares is None else {name: available.get(name, 0) for name in shares}
        total = sum(named.values())
        taken = allot(min(limit or total, total), named) if total else {}
    else:
        quotas = {name: n for name, n in allot(limit, shares).items() if name not in gone}
        for name, quota in quotas.items():
            if quota and name not in available:
                raise UserError(
                    f"the domain {name!r} has a share, but there is no text of it; the domains "
                    f"are {', '.join(map(repr, available))}"
                )
        taken = {name: min(quota, available.get(name, 0)) for name, quota in quotas.items()}
        for name, number in taken.items():
            if number < quotas[name]:
                log.warning(
                    "domain %s has %d whole sequences, fewer than its share of %d",
                    *(name, number, quotas[name]),
                )
    for name in available:
        if not taken.get(name):
            log.warning("domain %s is left out: not one whole sequence of it is taken", name)
    return {name: number for name, number in taken.items() if number}


def load_npy(
    path: str | Path,
    *,
    vocab_size: int,
    max_positions: int,
    max_tokens: int | None = None,
    shares: Mapping[str, float] | None = None,
) -> Corpus:
    """Read token ids from an array, which is mapped and never held as a whole.

    Args:
        path: an .npy file of integers [sequence, position]; a file of the same name ending in
            .domains.txt may lie beside it, with one domain a line.
        vocab_size: ids are below it.
        max_positions: the longest sequence that the model takes.
        max_tokens: take whole sequences, the first of each domain, at most so many tokens in all.
        shares: each domain's share of max_tokens; None: in proportion to what there is.

    Returns:
        The corpus; its rows are the array's.

    Raises:
        UserError: the file is missing, broken, of another type or shape; a sequence is too long;
            an id is outside the vocabulary; the domains' file does not fit.
        SettingsError: max_tokens is less than one sequence.
    """
    path = Path(path).expanduser()
    array = _open_array(path, max_positions)
    num_sequences, num_positions = array.shape
    names = _read_domains(path, num_sequences)
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    index = np.array([order[name] for name in names], np.int64)
    available = dict(zip(order, np.bincount(index).tolist(), strict=True))
    taken = choose_sequences(available, whole_sequences(max_tokens, num_positions), shares)
    if not taken:
        raise UserError(f"{path}: no sequence of the domains with a share is in it")
    rows = [np.flatnonzero(index == order[name])[:number] for name, number in taken.items()]
    row = np.concatenate(rows).astype(np.int64)
    return Corpus(
        tokens=_copy_rows(path, array, row, vocab_size),
        domain=np.repeat(np.arange(len(taken)), list(taken.values())).astype(np.int16),
        row=row,
        domains=tuple(taken),
    )


def _open_array(path: Path, max_positions: int) -> NDArray[np.integer[Any]]:
    if not path.is_file():
        raise SettingsError(
            f"data.path={path}: there is no such file; data=tokens reads an .npy file."
        )
    try:
        with path.open("rb") as file:
            magic = file.read(len(NPY_MAGIC))
        # Asked for itself, since numpy takes any other file for a pickle and advises to trust it.
        array = np.load(path, mmap_mode="r", allow_pickle=False) if magic == NPY_MAGIC else None
    except Exception as error:  # numpy's header is parsed as Python, which raises a dozen kinds
        raise UserError(f"{path}: broken, cut short or of objects ({error})") from error
    if array is None:
        raise UserError(f"{path}: not an .npy file; save the array with numpy.save")
    if array.dtype.kind not in "iu" or array.ndim != 2:
        raise UserError(
            f"{path}: expected integers [sequence, position], found {array.dtype} of shape "
            f"{list(array.shape)}"
        )
    if 0 in array.shape:
        raise UserError(f"{path}: shape {list(array.shape)} holds not one sequence of a token")
    if array.shape[1] > max_positions:
        raise UserError(
            f"{path}: sequences of {array.shape[1]} tokens are longer than the model's "
            f"{max_positions} positions; cut them"
        )
    return array


def _read_domains(path: Path, num_sequences: int) -> list[str]:
    beside = domains_file(path)
    if not beside.exists():
        return [NO_DOMAIN] * num_sequences
    try:
        text = beside.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{beside}: cannot be read as UTF-8 text ({error})") from error
    names = [line.strip() for line in text.removesuffix("\n").split("\n")]
    if "" in names:
        raise UserError(f"{beside}: line {names.index('') + 1} is empty; give a domain on each")
    if len(names) != num_sequences:
        raise UserError(
            f"{beside}: {len(names)} lines for {num_sequences} sequences; give one domain a line"
        )
    if len(set(names)) > np.iinfo(np.int16).max:
        raise UserError(f"{beside}: {len(set(names))} domains; at most 32767 can be told apart")
    return names


def _copy_rows(
    path: Path, array: NDArray[np.integer[Any]], row: NDArray[np.int64], vocab_size: int
) -> NDArray[np.unsignedinteger[Any]]:
    tokens = np.empty((len(row), array.shape[1]), token_dtype(vocab_size))
    step = block_sequences(array.shape[1])
    for start in range(0, len(row), step):
        block = array[row[start : start + step]]
        outside = (block < 0) | (block >= vocab_size)
        if outside.any():
            sequence, position = (int(number) for number in np.argwhere(outside)[0])
            raise UserError(
                f"{path}: token id {block[sequence, position]} at [{row[start + sequence]}, "
                f"{position}] is outside the model's vocabulary, 0 to {vocab_size - 1}"
            )
        tokens[start : start + step] = block
    return tokens
