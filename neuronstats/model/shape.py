"""A model's sizes, and what follows from them alone: light to import, unlike the model itself."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from neuronstats.errors import SettingsError


@dataclass(frozen=True)
class Activation:
    """The function whose input decides whether a neuron is activated: it is above `threshold`."""

    name: str = "ReLU"
    gated: bool = False
    """Its output is multiplied by another projection of the layer's input."""
    exact_zeros: bool = True
    """It is 0 wherever its input is not above 0; else a neuron that is not activated still writes,
    and the bit says only that the gate is open."""
    threshold: float = 0.0
    copies: int = 0
    """Tensors as large as its input that it takes at once, its output included."""

    @property
    def is_relu_like(self) -> bool:
        """Whether all that the paper says of neurons holds: they write nothing, or one way."""
        return self.exact_zeros and not self.gated


@dataclass(frozen=True)
class Shape:
    """The sizes that memory and work follow from, measured on the model without weights."""

    num_layers: int
    hidden: int  # d, width of the residual stream
    neurons: int  # of one layer
    heads: int
    vocabulary: int
    embedding: int  # width of the token embeddings
    positions: int  # 0: no limit
    layer_weights: int  # numbers in one decoder layer, the largest
    front_weights: int  # numbers beside layers and token embeddings, such as position embeddings
    activation: Activation = Activation()
    score_heads: int = 0  # heads whose attention scores are held, not taken block by block

    @classmethod
    def read(cls, model: Mapping[str, Any]) -> "Shape":
        """Read the sizes from a run's `model`.

        Runs of the first versions are of OPT models, and leave out what follows from the others.
        """
        d, n = model["hidden"], model["neurons"]
        plain = {
            "layer_weights": 4 * d**2 + 2 * d * n + 9 * d + n,
            "front_weights": model["positions"] * d,
            "activation": {},
            "score_heads": 0,
        }
        found = {item.name: {**plain, **model}[item.name] for item in fields(cls)}
        return cls(**{**found, "activation": Activation(**found["activation"])})


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
