"""Token ids -> text, for people to read in tables and on pages."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from neuronstats.errors import UserError

# Classes that take tokenizer.json as it is; others build their tokenizer from parts of it.
AS_SAVED = ("TokenizersBackend", "PreTrainedTokenizerFast")


class TokenTexts:
    """Writes token ids as text; where the model has no tokenizer, as the ids themselves.

    Args:
        folder: the model's, with its tokenizer; None: it is not to be had.
    """

    def __init__(self, folder: Path | None) -> None:
        self._tokenizer: Tokenizer | None = None
        if folder is not None:
            with contextlib.suppress(UserError):  # data=tokens needs none
                self._tokenizer = read_backend(folder)

    def __call__(self, token_ids: Sequence[int]) -> str:
        """Return the text of a few tokens."""
        if self._tokenizer is None:
            return " ".join(f"<{token}>" for token in token_ids)
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False)


def read_backend(folder: Path) -> Tokenizer:
    """Return a model's tokenizer: what `load_tokenizer` gives, without transformers if it can be.

    Raises:
        UserError: there is none, it is broken, or it has no fast version.
    """
    with contextlib.suppress(Exception):  # what is broken is named below
        if found := _as_saved(folder):
            return found
    from neuronstats.corpus.tokenizer import load_tokenizer  # transformers takes seconds

    backend: Tokenizer = load_tokenizer(str(folder)).backend_tokenizer
    return backend


def _as_saved(folder: Path) -> Tokenizer | None:
    """Read tokenizer.json; None where transformers would add to it, or change it."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if config.get("tokenizer_class") not in AS_SAVED:
        return None
    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    named = [value for key, value in config.items() if key.endswith("_token") and value]
    is_whole = all(isinstance(t, str) and found.token_to_id(t) is not None for t in named)
    more = any(key.endswith("special_tokens") or key == "added_tokens_decoder" for key in config)
    return found if is_whole and not more and found.get_vocab_size() >= 2 else None
