"""The model of no bytes."""

import torch
from helpers import models

from neuronstats.model.skeleton import build


def test_building_leaves_the_configuration_as_it_is():
    """The plan reads the stored type from it after the model was built in another."""
    config = models.tiny_opt("pre").config
    config.dtype = torch.float16
    build(config, torch.float32, "here")
    assert config.dtype == torch.float16
