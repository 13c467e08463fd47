"""A network of machines, and a run that they and this process make alike."""

import shutil

import pytest
import torch
from helpers import machines, models
from helpers.readme import SEQUENCES, SHARD_SEQUENCES
from helpers.serial import collect_job, quiet, save_tokens, serial

from neuronstats.errors import DONE


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    with machines.Network(tmp_path_factory.mktemp("network")) as network:
        yield network


@pytest.fixture(scope="module")
def inputs(network, tiny_checkpoint):
    shutil.copytree(tiny_checkpoint("pre"), network.shared / "model")
    tokens = models.random_tokens(SEQUENCES, 64, seed=3)
    return network.shared / "model", save_tokens(network.shared / "tokens.npy", tokens)


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    """The same run, collected and reduced in this process."""
    from neuronstats.collect.job import collect
    from neuronstats.reduce.job import reduce
    from neuronstats.reduce.settings import ReduceJob

    run, threads = tmp_path_factory.mktemp("alone") / "run", torch.get_num_threads()
    torch.set_num_threads(1)  # more would wait for each other, beside the machines
    with pytest.MonkeyPatch.context() as patch, serial(patch):
        job = collect_job(run, *inputs, collect__shard_sequences=SHARD_SEQUENCES)
        assert collect(job, quiet()) == DONE
        assert reduce(ReduceJob(run=str(run)), quiet()) == DONE
    torch.set_num_threads(threads)
    return run
