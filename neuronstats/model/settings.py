"""Which model: settings of the group `model`."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Dtype(Enum):
    """The type the forward pass computes in."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@dataclass(kw_only=True, slots=True)
class ModelSettings:
    """Which model."""

    name: str = "???"
    """Names the default run folder."""
    path: str | None = None
    """Hub id, or a folder with config.json and weights."""
    revision: str | None = None
    """The hub's branch, tag or commit; null: its main."""
    dtype: Dtype = Dtype.auto
    """auto: the checkpoint's on a GPU (float32 for float64), float32 on a CPU."""
    sizes: dict[str, Any] | None = field(default_factory=dict)
    """What config.json says: for plan=true where the hub cannot be reached."""
