"""Fixtures: models and checkpoints, built once a session by models.py and planted.py."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Heavy imports stay inside the fixtures: most tests need none of them.
if TYPE_CHECKING:
    from transformers import OPTForCausalLM

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: threads would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"
# Long or waiting: first, so that no test process begins one when the others are done.
LONGEST = {
    f"test_{name}.py" for name in ("nodes", "resume", "cluster", "crash", "wheel", "hub", "s3")
}


def pytest_configure(config):
    """Hide GPUs from the tests, whose numbers are a CPU's; -m gpu runs those of a GPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items):
    """Put the longest files first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def tiny_model():
    """tiny_model("pre" | "post", seed=0): the random model, made once. Do not change it."""
    from helpers import models

    made: dict[tuple[str, int], OPTForCausalLM] = {}

    def get(order="pre", seed=0):
        if (order, seed) not in made:
            made[order, seed] = models.tiny_opt(order, seed=seed)
        return made[order, seed]

    return get


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model, tmp_path_factory):
    """tiny_checkpoint("pre", seed=0, layout=..., ...): its folder, with a tokenizer, written once.

    Keywords are those of models.save_checkpoint. Copy the folder before damaging it.
    """
    from helpers import models

    made: dict[tuple[object, ...], Path] = {}

    def get(order="pre", seed=0, **settings):
        key = (order, seed, *sorted(settings.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp(f"opt-{order}")
            models.save_checkpoint(tiny_model(order, seed), folder, **settings)
            made[key] = models.save_tokenizer(folder)
        return made[key]

    return get


@pytest.fixture(scope="session")
def smallest_checkpoint(tmp_path_factory):
    """The folder of a model of two layers of 24 neurons, 16 positions, with a tokenizer."""
    from helpers import models

    model = models.tiny_opt(num_layers=2, hidden=16, heads=2, ffn=24, positions=16)
    folder = tmp_path_factory.mktemp("opt-smallest")
    return models.save_tokenizer(models.save_checkpoint(model, folder))


@pytest.fixture(scope="session")
def forks():
    """Processes that exit at any moment of a job."""
    from helpers.exits import Forks

    with contextlib.closing(Forks()) as forks:
        yield forks


@pytest.fixture(scope="session", params=["pre", "post"])
def order(request):
    """Both LayerNorm orders: a test that takes this runs twice."""
    return request.param


@pytest.fixture(scope="session")
def planted_model():
    """The model of planted.py. Do not change it."""
    from helpers import planted

    return planted.planted_opt()


@pytest.fixture(scope="session")
def planted_checkpoint(planted_model, tmp_path_factory):
    """The planted model's folder: one safetensors file, and a tokenizer of words w3, w4, ..."""
    from helpers import models, planted

    folder = models.save_checkpoint(planted_model, tmp_path_factory.mktemp("opt-planted"))
    return models.save_word_tokenizer(folder, planted.VOCABULARY)


@pytest.fixture(scope="session")
def run_folder(planted_checkpoint, tmp_path_factory):
    """The planted model's reduced run, of reported.py. Copy it before changing it."""
    from helpers.reported import planted_run

    return planted_run(tmp_path_factory.mktemp("reported"), planted_checkpoint)


@pytest.fixture(scope="session")
def planted_corpus():
    """Token ids [sequence, position] and domains of the planted corpus, with its defaults."""
    from helpers import planted

    return planted.corpus()
