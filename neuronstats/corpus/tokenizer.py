"""The tokenizer: loaded without running a repository's code, applied to plain text in batches."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from neuronstats.errors import SettingsError, UserError

PIECE_CHARACTERS = 1 << 17  # tokenising takes some 50 times a text's size in memory
VOCABULARY_FILES = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("tokenizer.model",),
    ("spiece.model",),
    ("vocab.txt",),
)

Ids = NDArray[np.integer[Any]]


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder or the hub; code from a model repository is never run.

    Raises:
        UserError: there is none, it is broken, or it has no fast version.
    """
    folder = Path(path).expanduser()
    # Without its files, transformers makes an empty tokenizer and says nothing.
    if folder.is_dir() and not any(
        all((folder / name).is_file() for name in names) for names in VOCABULARY_FILES
    ):
        expected = ", ".join(" + ".join(names) for names in VOCABULARY_FILES)
        raise UserError(
            f"{path}: no tokenizer in this folder (none of {expected}); copy the model's there, "
            "or give token ids: data=tokens data.path=FILE.npy"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder) if folder.is_dir() else path, revision=revision, trust_remote_code=False
        )
    except Exception as error:  # a broken tokenizer.json raises bare Exception
        raise UserError(f"{path}: its tokenizer cannot be loaded: {error}") from error
    if not tokenizer.is_fast or len(tokenizer) < 2:
        raise UserError(f"{path}: {type(tokenizer).__name__} has no fast version or no vocabulary")
    return tokenizer


def first_token(
    tokenizer: PreTrainedTokenizerFast, setting: str, bos_id: int | None, *, always: bool
) -> int | None:
    """Return the token that each sequence starts with; None: sequences start with text.

    Args:
        tokenizer: the model's.
        setting: data.bos.
        bos_id: the token by the model's configuration, which says nothing about its use.
        always: what `auto` does not ask the tokenizer for.

    Raises:
        SettingsError: one is asked for, and the model has none.
    """
    own: int | None = tokenizer.bos_token_id
    if setting == "false":
        return None
    if setting == "true" or always:
        if bos_id is None and own is None:
            raise SettingsError(
                "data.bos=true: the model has no begin-of-sequence token; give false"
            )
        return own if bos_id is None else bos_id
    return own if own is not None and tokenizer("a").input_ids[:1] == [own] else None


def separator_token(
    tokenizer: PreTrainedTokenizerFast, setting: str, separator_id: int | None
) -> int:
    """Return the token between joined documents, by data.separator or the model's configuration.

    Raises:
        SettingsError: the tokenizer does not have the one that is asked for.
        UserError: none is asked for, and the model names none.
    """
    if setting != "auto":
        known = tokenizer.get_vocab()
        found = known.get(setting, int(setting) if setting.isdecimal() else -1)
        if found not in known.values():
            raise SettingsError(
                f"data.separator={setting} is no token of the model's tokenizer: expected auto, one"
                f" of its {len(known)} tokens such as {tokenizer.eos_token!r}, or an id."
            )
        return int(found)
    if separator_id is None:
        raise UserError(
            f"{tokenizer.name_or_path}/config.json names neither eos_token_id nor bos_token_id:"
            " expected the token between documents; set data.separator, or give token ids"
            " (data=tokens)."
        )
    return separator_id


class Piece(NamedTuple):
    """Text that is tokenised at once: a document, or a piece of a long one."""

    domain: str
    number: int  # of the document, from 1, as read
    text: str
    last: bool  # the document ends here


def cut_document(domain: str, number: int, text: str) -> Iterator[Piece]:
    """Cut a document of more than 131072 characters into pieces.

    A piece ends before a space between two other characters, if there is one. Tokenizers that
    start words with their space, as OPT's, give the same tokens as for the whole.

    Args:
        domain: the document's domain.
        number: the document's number, for messages.
        text: the document.

    Yields:
        Its pieces, one for a short document, none for an empty one.
    """
    start = 0
    while start < len(text):
        stop = _cut(text, start)
        yield Piece(domain, number, text[start:stop], stop == len(text))
        start = stop


def _cut(text: str, start: int) -> int:
    limit = start + PIECE_CHARACTERS
    if len(text) <= limit:
        return len(text)
    stop = text.rfind(" ", start + 1, limit)
    while stop > 0 and (text[stop - 1].isspace() or text[stop + 1].isspace()):
        stop = text.rfind(" ", start + 1, stop)
    return stop if stop > 0 else limit


def encode(
    pieces: Iterable[Piece],
    tokenizer: PreTrainedTokenizerFast,
    vocab_size: int,
    batch_characters: int,
) -> Iterator[tuple[Piece, Ids]]:
    """Tokenise as plain text, in which the name of a special token is only its characters.

    Args:
        pieces: the text.
        tokenizer: a fast tokenizer; its settings are left as they were.
        vocab_size: ids must be below it.
        batch_characters: text that is tokenised at once.

    Yields:
        Each piece with its token ids, int64 [token]; nothing is put before or after them.

    Raises:
        UserError: an id is outside the vocabulary.
    """
    for batch in _batches(pieces, batch_characters):
        with _plain_text(tokenizer) as backend:
            texts = [piece.text for piece in batch]
            encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        for piece, encoding in zip(batch, encodings, strict=True):
            ids = np.array(encoding.ids, np.int64)
            if ids.size and ids.max() >= vocab_size:
                token_id = int(ids[ids >= vocab_size][0])
                raise UserError(
                    f"document {piece.number} ({piece.domain}): token id {token_id} "
                    f"({tokenizer.convert_ids_to_tokens(token_id)!r}) is outside the model's "
                    f"vocabulary, 0 to {vocab_size - 1}; is the tokenizer another model's?"
                )
            yield piece, ids


def _batches(pieces: Iterable[Piece], batch_characters: int) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= batch_characters:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@contextmanager
def _plain_text(tokenizer: PreTrainedTokenizerFast) -> Iterator[Tokenizer]:
    """Yield the tokenizer's inside, set to read special tokens as text and to cut nothing."""
    backend = tokenizer.backend_tokenizer
    encode_special, truncation = backend.encode_special_tokens, backend.truncation
    padding = backend.padding
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    try:
        yield backend
    finally:
        backend.encode_special_tokens = encode_special
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)
