"""Fixtures: one training that nothing disturbed."""

import pytest
from helpers.training import run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    return out, run(out)
