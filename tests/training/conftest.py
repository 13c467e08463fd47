"""Fixtures: one training that nothing disturbed."""

from pathlib import Path

import pytest
from helpers.training import run

from neuronstats.training.loop import TrainProgress


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TrainProgress]]:
    out = tmp_path_factory.mktemp("undisturbed")
    return out, run(out)
