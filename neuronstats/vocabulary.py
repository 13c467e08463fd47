"""Token ids -> text, for people to read in tables and on pages."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from neuronstats.checkpoint import ModelSettings, locate
from neuronstats.errors import UserError
from neuronstats.tokenizer import load_tokenizer


class Texts:
    """Writes token ids as text; where the model has no tokenizer, as the ids themselves.

    Args:
        model: whose tokenizer is used.
    """

    def __init__(self, model: ModelSettings) -> None:
        self._tokenizer: PreTrainedTokenizerFast | None
        try:
            self._tokenizer = load_tokenizer(str(locate(model, weights=False)), model.revision)
        except UserError:
            self._tokenizer = None  # data=tokens needs none

    def __call__(self, token_ids: Sequence[int]) -> str:
        """Return the text of a few tokens."""
        if self._tokenizer is None:
            return " ".join(f"<{token}>" for token in token_ids)
        return str(self._tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False))
