"""docs/reliability.md: every row ends with the names of tests that are there."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
ROWS = [
    line.strip().strip("|").split("|")
    for line in PAGE.read_text().splitlines()
    if line.startswith("|") and not re.match(r"\|[-| ]+\|$|\| (finding|fault) ", line)
]


def named(cell):
    """Yield (file, function or None): a name without a file is of the file named before."""
    file = None
    for name in re.findall(r"`([^`]+)`", cell):
        path, _, function = name.rpartition("::") if "::" in name else ("", "", name)
        if name.endswith(".py"):
            path, function = name, None
        file = path or file
        yield file, function


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip()[:40])
def test_the_tests_of_a_row_are_there(row):
    found = list(named(row[-1]))
    assert found
    for file, function in found:
        text = (TESTS / file).read_text()
        assert function is None or f"\ndef {function}(" in text, (file, function)


def test_every_finding_has_a_row():
    numbers = [int(row[0].split()[0][1:]) for row in ROWS if re.match(r" [ABC]\d+ ", row[0])]
    assert numbers == list(range(1, 24))
