"""Bytes that fuzzing has found: each file is read, or refused with an error for people."""

from pathlib import Path

import pytest
from helpers.foreign import TARGETS, Place

CORPUS = Path(__file__).parent / "corpus"
MOST_BYTES = 300_000


@pytest.mark.parametrize("target", TARGETS)
def test_what_fuzzing_has_found(target, run_folder, tmp_path):
    place = Place(tmp_path, target, run_folder)
    assert place.read(place.good)
    files = sorted((CORPUS / target).iterdir())
    assert files
    for file in files:
        try:
            place.read(file.read_bytes())
        except BaseException as error:
            error.add_note(f"read from {file}")
            raise


def test_it_is_small():
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < MOST_BYTES
