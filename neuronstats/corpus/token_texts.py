"""Token ids -> text, for people to read in tables and on pages."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from neuronstats.corpus.tokenizer import load_tokenizer
from neuronstats.errors import UserError


class TokenTexts:
    """Writes token ids as text; where the model has no tokenizer, as the ids themselves.

    Args:
        folder: the model's, with its tokenizer; None: it is not to be had.
    """

    def __init__(self, folder: Path | None) -> None:
        self._tokenizer: PreTrainedTokenizerFast | None = None
        if folder is not None:
            with contextlib.suppress(UserError):  # data=tokens needs none
                self._tokenizer = load_tokenizer(str(folder))

    def __call__(self, token_ids: Sequence[int]) -> str:
        """Return the text of a few tokens."""
        if self._tokenizer is None:
            return " ".join(f"<{token}>" for token in token_ids)
        return str(self._tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False))
