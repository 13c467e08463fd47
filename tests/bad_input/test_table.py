"""Bad input, row by row, on the real commands: one message that says what, and what to do."""

import pytest
from bad_input import rows_files, rows_runs, rows_settings

CASES = [*rows_settings.CASES, *rows_files.CASES, *rows_runs.CASES]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input(case, desk, request):
    if case.needs_run:
        request.getfixturevalue("done")
    if case in rows_files.CASES:
        request.getfixturevalue("own_checkpoint")
    if case.damage is not None:
        case.damage(desk)
    words = case.value, case.remedy
    err = desk.fails(case.code, settings=case.command(desk), job=case.job)
    assert all(word in err for word in words), (words, err)


def test_there_are_150_rows_and_more():
    assert len(CASES) == len(set(map(repr, CASES))) > 150
