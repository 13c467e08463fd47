"""Fixtures: two tokenizers."""

import pytest
from helpers.words import WORDS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def words():
    """One token for each letter between spaces: easy to foretell."""
    inside = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    inside.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inside, bos_token="</s>", eos_token="</s>")


@pytest.fixture(scope="module")
def bytes_bpe():
    """Byte-level BPE with the special tokens, start and cutting of OPT's."""
    inside = Tokenizer(models.BPE())
    inside.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inside.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inside.train_from_iterator(["the theme of these theses is there"] * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inside, bos_token="</s>", eos_token="</s>", pad_token="<pad>"
    )
