"""A model's sizes, and what follows from them alone: light to import, unlike the model itself."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from transformers import OPTConfig

from neuronstats.errors import SettingsError


@dataclass(frozen=True)
class Shape:
    """The sizes that memory and work follow from."""

    num_layers: int
    hidden: int  # d, width of the residual stream
    neurons: int  # of one layer
    heads: int
    vocabulary: int
    embedding: int  # width of the token embeddings
    positions: int

    @classmethod
    def of(cls, config: OPTConfig) -> "Shape":
        """Read the sizes off a configuration."""
        return cls(
            num_layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            neurons=config.ffn_dim,
            heads=config.num_attention_heads,
            vocabulary=config.vocab_size,
            embedding=config.word_embed_proj_dim,
            positions=config.max_position_embeddings,
        )

    @classmethod
    def read(cls, model: Mapping[str, Any]) -> "Shape":
        """Read the sizes from a run's `model`."""
        return cls(**{item.name: model[item.name] for item in fields(cls)})

    @property
    def layer_weights(self) -> int:
        """Numbers in one decoder layer."""
        return 4 * self.hidden**2 + 2 * self.hidden * self.neurons + 9 * self.hidden + self.neurons


def num_first_layers(setting: str | int, num_layers: int, name: str) -> int:
    """Resolve ``all``, ``first_half``, ``none`` or a number of first layers.

    The first half of L layers is floor(L / 2), at least 1, counted on the whole model.

    Raises:
        SettingsError: another word, or a number beyond the model's layers.
    """
    words = {"all": num_layers, "first_half": max(1, num_layers // 2), "none": 0}
    number = words.get(str(setting), setting)
    if isinstance(number, str) and number.isdigit():
        number = int(number)
    if type(number) is not int or not 0 <= number <= num_layers:
        raise SettingsError(
            f"{name}={setting}: expected all, first_half, none or a number of first layers, at most"
            f" {num_layers}, which is what the model has."
        )
    return number
