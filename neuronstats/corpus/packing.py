"""Documents -> token ids [sequence, position], begin-of-sequence first, one domain each.

All text is plain text: a special token's name in it is tokenised as the characters that it is.
Packing "concat" joins a domain's documents, with a separator between them, and cuts the whole into
pieces one shorter than a sequence; "document" cuts each document by itself. An incomplete last
piece is dropped. No sequence mixes domains.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerFast

from neuronstats.corpus.corpus import (
    Corpus,
    allot,
    choose_sequences,
    load_npy,
    token_dtype,
    whole_sequences,
)
from neuronstats.corpus.documents import documents
from neuronstats.corpus.settings import DataSettings, domain_shares
from neuronstats.corpus.tokenizer import (
    Ids,
    Piece,
    cut_document,
    encode,
    first_token,
    load_tokenizer,
    separator_token,
)
from neuronstats.errors import SettingsError, UserError

BATCH_CHARACTERS = 1 << 20  # tokenised at once
PLENTY_CHARACTERS = 16  # for each token that is wanted; text has some 4


class Keeper(Protocol):
    """Keeps the tokens of domains that are done while others are still made."""

    def load(self, domain: str) -> bytes | None:
        """Return what was kept of a domain; None where nothing was, or not whole."""

    def keep(self, domain: str, tokens: bytes) -> None:
        """Keep all of a domain's tokens that are wanted."""


def read_corpus(
    settings: DataSettings,
    *,
    tokenizer: str,
    revision: str | None,
    bos_id: int | None,
    separator_id: int | None,
    vocab_size: int,
    max_positions: int,
    bos_always: bool = True,
    keeper: Keeper | None = None,
) -> Corpus:
    """Make the corpus that the settings ask for.

    Args:
        settings: the data's settings.
        tokenizer: the model's folder or hub id; not looked at for an array of tokens.
        revision: the hub's revision of it.
        bos_id: the model's begin-of-sequence token; None where it has none.
        separator_id: the end-of-sequence token, put between documents that are joined.
        vocab_size: the model's vocabulary.
        max_positions: the model's positions.
        bos_always: with data.bos=auto sequences start with it, whatever the tokenizer does.
        keeper: keeps what is done; see `tokenize`.

    Returns:
        The corpus.

    Raises:
        SettingsError: sequences longer than the model's positions, or other settings that clash.
        UserError: text, tokens or tokenizer are missing or wrong.
    """
    length = settings.sequence_length
    if length is not None and length > max_positions:
        raise SettingsError(
            f"data.sequence_length={length} is longer than the model's {max_positions} positions"
        )
    if settings.kind == "tokens":
        corpus = _read_array(settings, vocab_size, max_positions)
        starts = bos_id is not None and bool((corpus.tokens[:, 0] == bos_id).all())
        is_first = settings.bos == "true" or (settings.bos == "auto" and (bos_always or starts))
        return replace(corpus, bos_id=bos_id if is_first else None, separator_id=separator_id)
    shares = domain_shares(settings)
    if shares is None and settings.max_tokens is not None:
        shares = _plentiful_shares(settings, settings.max_tokens)
    full: set[str] = set()
    gone: set[str] = set()
    loaded = load_tokenizer(tokenizer, revision)
    return tokenize(
        documents(settings, full, gone),
        loaded,
        bos_id=first_token(loaded, settings.bos, bos_id, always=bos_always),
        separator_id=separator_token(loaded, settings.separator, separator_id),
        vocab_size=vocab_size,
        sequence_length=length or max_positions,
        max_tokens=settings.max_tokens,
        packing=settings.packing,
        shares=shares,
        full=full,
        keeper=keeper,
        gone=gone,
    )


def _read_array(settings: DataSettings, vocab_size: int, max_positions: int) -> Corpus:
    assert settings.path is not None
    corpus = load_npy(
        settings.path,
        vocab_size=vocab_size,
        max_positions=max_positions,
        max_tokens=settings.max_tokens,
        shares=settings.shares or None,
    )
    length = corpus.tokens.shape[1]
    if settings.sequence_length not in (None, length):
        raise SettingsError(
            f"data.sequence_length={settings.sequence_length}, but the array's sequences have "
            f"{length} tokens; leave it null for data=tokens"
        )
    return corpus


def _plentiful_shares(settings: DataSettings, max_tokens: int) -> dict[str, float] | None:
    """Estimate the domains' proportions by characters, where there is far more than is wanted.

    Reading is a hundred times faster than tokenising, so that little of a large collection costs
    little; of a small one all is tokenised, and its proportions are counted in sequences.
    """
    characters: Counter[str] = Counter()
    for domain, text in documents(settings):
        characters[domain] += len(text)
    return dict(characters) if characters.total() > PLENTY_CHARACTERS * max_tokens else None


def tokenize(
    texts: Iterable[tuple[str, str]],
    tokenizer: PreTrainedTokenizerFast,
    *,
    bos_id: int | None,
    separator_id: int,
    vocab_size: int,
    sequence_length: int,
    max_tokens: int | None = None,
    packing: str = "concat",
    shares: Mapping[str, float] | None = None,
    full: set[str] | None = None,
    gone: Collection[str] = frozenset(),
    keeper: Keeper | None = None,
) -> Corpus:
    """Turn documents into sequences.

    Reading ends as soon as all is there; where shares are not known, it goes to the end, for the
    proportions are those of the whole. Of each domain at most max_tokens are held.

    Args:
        texts: domain and text of each document.
        tokenizer: a fast tokenizer.
        bos_id: the first token of each sequence; None: none is put there.
        separator_id: put between joined documents.
        vocab_size: ids must be below it.
        sequence_length: tokens in a sequence, the first one included; at least 2.
        max_tokens: take whole sequences, at most so many tokens in all; None: all there is.
        packing: concat or document.
        shares: each domain's share of max_tokens, relative to the others; domains without one are
            left out. None: in proportion to what there is.
        full: grows by the domains that need no more documents, for the reader to look at.
        gone: grows, while texts are read, by the domains that have none; their share stays empty.
        keeper: keeps each domain as soon as there is enough of it, where shares are known; what
            it has already is not tokenised again.

    Returns:
        The corpus; its rows are its own sequences.

    Raises:
        UserError: too little text, none of a domain with a share, an id outside the vocabulary.
        SettingsError: max_tokens is less than one sequence.
    """
    limit = whole_sequences(max_tokens, sequence_length)
    streams = _Streams(
        body=sequence_length - (bos_id is not None),
        packing=packing,
        separator_id=separator_id,
        dtype=np.dtype(token_dtype(vocab_size)),
        limit=limit,
        quotas=None if shares is None or limit is None else allot(limit, shares),
        full=set() if full is None else full,
        keeper=keeper,
    )
    streams.take_up()
    for piece, ids in encode(streams.needed(texts), tokenizer, vocab_size, BATCH_CHARACTERS):
        streams.add(piece, ids)
    streams.keep_rest()
    return streams.corpus(bos_id, shares, gone)


class _Stream:
    """One domain's tokens on the way to whole sequences, of which the first are held."""

    def __init__(self, dtype: np.dtype[Any], cap: int | None) -> None:
        self.dtype = dtype
        self.cap_bytes = None if cap is None else cap * dtype.itemsize
        self.held = bytearray()
        self.num_read = self.num_streamed = 0
        self.inside = False  # concat: a document has begun and not ended
        self.document: list[Ids] = []  # document: its tokens so far

    def join(self, ids: Ids, *, last: bool, separator_id: int) -> None:
        """Add a document's next tokens (last ends it), after a separator where it begins."""
        if ids.size and self.num_read and not self.inside:
            self._push(np.array([separator_id]))
        self._push(ids)
        self.inside = not last and (self.inside or ids.size > 0)
        self.num_read += ids.size

    def cut(self, ids: Ids, *, last: bool, body: int) -> None:
        """Add a document's next tokens; when last ends it, what fills whole pieces of body."""
        self.document.append(ids)
        self.num_read += ids.size
        if last:
            whole = np.concatenate(self.document)
            self._push(whole[: len(whole) - len(whole) % body])
            self.document = []

    def _push(self, ids: Ids) -> None:
        self.num_streamed += ids.size
        if self.cap_bytes is not None:
            ids = ids[: (self.cap_bytes - len(self.held)) // self.dtype.itemsize]
        self.held += ids.astype(self.dtype).tobytes()


@dataclass(kw_only=True)
class _Streams:
    """The domains' streams, in the order of their first documents."""

    body: int  # tokens of a sequence without its first one
    packing: str
    separator_id: int
    dtype: np.dtype[Any]
    limit: int | None  # sequences in all
    quotas: dict[str, int] | None  # sequences of each domain, where they are known beforehand
    full: set[str]  # domains that need no more documents
    keeper: Keeper | None = None
    streams: dict[str, _Stream] = field(default_factory=dict)

    def take_up(self) -> None:
        """Take up the domains that were done before."""
        for domain in self.quotas or ():
            tokens = None if self.keeper is None else self.keeper.load(domain)
            if tokens is not None:
                self._open(domain)
                stream = self.streams[domain]
                stream.held += tokens
                stream.num_read = stream.num_streamed = len(tokens) // self.dtype.itemsize
                self.full.add(domain)

    def keep_rest(self) -> None:
        """Keep the domains of which there was less than is wanted: all is read now."""
        for domain in set(self.streams) - self.full if self.quotas is not None else ():
            self._keep(domain)

    def _keep(self, domain: str) -> None:
        if self.keeper is not None and self.streams[domain].held:
            self.keeper.keep(domain, bytes(self.streams[domain].held))

    def needed(self, texts: Iterable[tuple[str, str]]) -> Iterator[Piece]:
        """Pass on the text that is needed, and end when no more is."""
        if self.quotas is not None and self.full.issuperset(self.quotas):
            return
        for number, (domain, text) in enumerate(texts, start=1):
            if domain not in self.streams:
                self._open(domain)
            for piece in cut_document(domain, number, text):
                if domain in self.full:
                    break
                yield piece
            if self.quotas is not None and self.full.issuperset(self.quotas):
                return

    def _open(self, domain: str) -> None:
        num_sequences = self.limit if self.quotas is None else self.quotas.get(domain, 0)
        cap = None if num_sequences is None else num_sequences * self.body
        self.streams[domain] = _Stream(self.dtype, cap)
        self._note_full(domain)

    def _note_full(self, domain: str) -> None:
        stream = self.streams[domain]
        # Without quotas, what cannot be held is still counted.
        if self.quotas is None or len(stream.held) != stream.cap_bytes or domain in self.full:
            return
        self.full.add(domain)
        self._keep(domain)

    def add(self, piece: Piece, ids: Ids) -> None:
        """Add a piece's token ids to its domain's stream."""
        stream = self.streams[piece.domain]
        if self.packing == "concat":
            stream.join(ids, last=piece.last, separator_id=self.separator_id)
        else:
            stream.cut(ids, last=piece.last, body=self.body)
        self._note_full(piece.domain)

    def corpus(
        self, bos_id: int | None, shares: Mapping[str, float] | None, gone: Collection[str]
    ) -> Corpus:
        """Choose the sequences and put the begin-of-sequence token before each."""
        available = {
            name: stream.num_streamed // self.body for name, stream in self.streams.items()
        }
        taken = choose_sequences(available, self.limit, shares, gone)
        if not taken:
            found = {name: stream.num_read for name, stream in self.streams.items()}
            unit = "domain" if self.packing == "concat" else "document"
            raise UserError(
                f"too little text for one sequence: it takes {self.body} tokens of one {unit}, and "
                f"there are {found} tokens by domain; give more text or a smaller "
                "data.sequence_length"
            )
        first = int(bos_id is not None)
        tokens = np.empty((sum(taken.values()), first + self.body), self.dtype)
        if bos_id is not None:
            tokens[:, 0] = bos_id
        start = 0
        for name, number in taken.items():
            held = np.frombuffer(self.streams[name].held, self.dtype, number * self.body)
            tokens[start : start + number, first:] = held.reshape(number, self.body)
            start += number
        return Corpus(
            tokens=tokens,
            domain=np.repeat(np.arange(len(taken)), list(taken.values())).astype(np.int16),
            row=np.arange(len(tokens), dtype=np.int64),
            domains=tuple(taken),
            bos_id=bos_id,
            separator_id=self.separator_id,
        )
