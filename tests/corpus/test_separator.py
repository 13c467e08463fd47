"""The token between joined documents."""

import pytest
from helpers import models

from neuronstats.corpus.packing import read_corpus
from neuronstats.corpus.settings import DataSettings
from neuronstats.errors import SettingsError, UserError


def read(folder, separator="auto", separator_id=models.BOS):
    models.save_word_tokenizer(folder, models.VOCABULARY)
    for name, first in (("a", 10), ("b", 20)):
        (folder / f"{name}.txt").write_text(" ".join(f"w{i}" for i in range(first, first + 5)))
    data = DataSettings(
        name="t", kind="local", path=f"{folder}/*.txt", sequence_length=8, separator=separator
    )
    return read_corpus(
        data,
        tokenizer=str(folder),
        revision=None,
        bos_id=models.BOS,
        separator_id=separator_id,
        vocab_size=models.VOCABULARY,
        max_positions=64,
    )


@pytest.mark.parametrize(
    ("asked", "token"), [("auto", models.BOS), ("w7", 7), ("9", 9), (str(models.BOS), models.BOS)]
)
def test_documents_are_joined_by_what_is_asked_for(tmp_path, asked, token):
    corpus = read(tmp_path, asked)
    assert corpus.tokens.tolist() == [[models.BOS, *range(10, 15), token, 20]]
    assert corpus.separator_id == token


@pytest.mark.parametrize("asked", ["nothing", "999999", "-1"])
def test_a_token_that_is_none_is_refused(tmp_path, asked):
    with pytest.raises(SettingsError, match=f"data.separator={asked} is no token"):
        read(tmp_path, asked)


def test_a_model_that_names_none_needs_the_setting(tmp_path):
    with pytest.raises(UserError, match=r"names neither .* set data\.separator"):
        read(tmp_path, separator_id=None)
    assert read(tmp_path, "w5", separator_id=None).separator_id == 5
