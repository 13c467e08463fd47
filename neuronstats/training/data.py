"""Text to train on: a byte-level BPE made from it, and packed sequences, once per training."""

import hashlib
import io
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from neuronstats.corpus.tokenizer import cut_document, encode
from neuronstats.errors import UserError
from neuronstats.store.folder import RunFolder
from neuronstats.training.settings import MAX_VOCABULARY, SPECIAL_TOKENS

PAD_ID = 1
BOS_ID = 2

BATCH_CHARACTERS = 1 << 20

Sequences = NDArray[np.uint16]  # [sequence, position]


def prepare(
    documents: Iterable[tuple[str, str]],
    out: RunFolder,
    *,
    vocab_size: int,
    sequence_length: int,
    heldout_percent: int,
    seed: int,
) -> None:
    """Train the tokenizer and write `train.npy` and `heldout.npy`.

    Args:
        documents: pairs of domain and text, held in memory.
        out: gets both files, token ids [sequence, position], and the folder `tokenizer`.
        vocab_size: entries of the tokenizer.
        sequence_length: tokens in a sequence.
        heldout_percent: share of the documents that are kept out of tokenizer and training.
        seed: decides the order in which documents are joined.

    Raises:
        UserError: too little text.
    """
    texts = [text for _, text in documents if text]
    held_out = [text for text in texts if is_held_out(text, heldout_percent)]
    trained = [text for text in texts if not is_held_out(text, heldout_percent)]
    tokenizer = train_tokenizer(trained, vocab_size)
    tokenizer.model_max_length = sequence_length
    out.clear("tokenizer/")
    with tempfile.TemporaryDirectory(prefix="neuronstats-") as made:
        tokenizer.save_pretrained(made)
        for path in sorted(Path(made).iterdir()):
            out.write(f"tokenizer/{path.name}", path.read_bytes())
    order = np.random.default_rng(seed).permutation(len(trained))
    for name, part in (("heldout", held_out), ("train", [trained[i] for i in order])):
        ids = pack(tokenizer, part, sequence_length)
        if len(ids) == 0:
            raise UserError(
                f"the {name} text ({len(part)} of {len(texts)} documents) gives less than one "
                f"sequence of {sequence_length} tokens: give more text, shorter sequences or "
                "another heldout_percent"
            )
        file = io.BytesIO()
        np.save(file, ids)
        out.write(f"{name}.npy", file.getvalue())


def is_held_out(text: str, percent: int) -> bool:
    """Return whether a document is held out, by its text alone, so that copies stay together."""
    digest = hashlib.sha256(b"heldout:" + text.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < percent


def train_tokenizer(texts: list[str], vocab_size: int) -> Any:
    """Make a byte-level BPE with OPT's four special tokens first.

    Args:
        texts: the text; any other text can be tokenised as well, in bytes at worst.
        vocab_size: entries; fewer come out where the text has too few pairs to merge.

    Returns:
        A PreTrainedTokenizerFast. It puts no token of its own before or after a text, and cuts
        nothing.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL_TOKENS[BOS_ID],
        eos_token=SPECIAL_TOKENS[BOS_ID],
        pad_token=SPECIAL_TOKENS[PAD_ID],
        unk_token=SPECIAL_TOKENS[3],
    )


def pack(tokenizer: Any, texts: list[str], sequence_length: int) -> Sequences:
    """Join documents, the begin-of-sequence token after each, and cut full sequences.

    Args:
        tokenizer: made by `train_tokenizer`.
        texts: documents, in their order.
        sequence_length: tokens in a sequence, 2 or more.

    Returns:
        [sequence, position]; position 0 is the begin-of-sequence token, the rest goes on where the
        sequence before ended. What does not fill a sequence at the end is left out.
    """
    pieces = (piece for n, text in enumerate(texts) for piece in cut_document("", n, text))
    stream = [np.zeros(0, np.uint16)]
    for piece, ids in encode(pieces, tokenizer, MAX_VOCABULARY, BATCH_CHARACTERS):
        stream.append(ids.astype(np.uint16))
        if piece.last:
            stream.append(np.array([BOS_ID], np.uint16))
    joined = np.concatenate(stream)
    body_length = sequence_length - 1
    num_sequences = len(joined) // body_length
    body = joined[: num_sequences * body_length].reshape(num_sequences, body_length)
    first = np.full((num_sequences, 1), BOS_ID, np.uint16)
    return np.concatenate([first, body], axis=1)
