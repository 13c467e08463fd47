"""What is recorded, and in which portions: settings of the collect job."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from neuronstats.cluster.settings import RaySettings
from neuronstats.corpus.settings import DataSettings
from neuronstats.errors import expect
from neuronstats.model.settings import ModelSettings

LARGEST = 65504.0  # of float16: no threshold above it is one for every type


@dataclass(kw_only=True, slots=True)
class CollectSettings:
    """What is recorded, and in which portions."""

    layers: int | str = "all"
    """Layers to run: all, first_half or a number of first layers."""
    bitmaps: int | str = "first_half"
    """Layers whose bitmaps are kept: first_half, all, none or a number of first layers."""
    shard_sequences: int | str = "auto"
    """Sequences in a shard, the unit of work and loss; auto: by the plan."""
    batch_sequences: int | str = "auto"
    """Sequences in a batch; auto: by the plan."""
    sums: bool = True
    """Beside the bits of a model whose neurons write when they are not activated, or in either
    direction (GELU, SiLU, gated FFNs), take sums of what they hand on; OPT has none."""
    sum_tokens: int = 256
    """The most frequent tokens, each of whose values is summed by itself too."""
    threshold: float = 0.0
    """A gate is open where the activation function's input is above this; of ReLU models 0."""
    verify: bool = True
    """When going on with a run, read every committed object and compare its checksum."""

    def __post_init__(self) -> None:
        """Refuse lengths that are no lengths."""
        for name in ("shard_sequences", "batch_sequences"):
            value = getattr(self, name)
            met = value == "auto" or (type(value) is int and value >= 1)
            expect(f"collect.{name}", value, "auto or a number from 1", met=met)
        expect("collect.sum_tokens", self.sum_tokens, "0 or more", met=self.sum_tokens >= 0)
        wanted = f"a number from -{LARGEST:g} to {LARGEST:g}"
        met = math.isfinite(self.threshold) and abs(self.threshold) <= LARGEST
        expect("collect.threshold", self.threshold, wanted, met=met)
        self.threshold = float(self.threshold) + 0.0  # of -0.0, which is no other threshold, 0.0


@dataclass(kw_only=True, slots=True)
class CollectJob:
    """Run a model over text and record which neurons are activated on which tokens."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    collect: CollectSettings = field(default_factory=CollectSettings)
    ray: RaySettings = field(default_factory=RaySettings)
    run: str | None = None
    """The run folder, or an object-store URL; null: runs/MODEL-DATA under the current folder."""
    plan: bool = False
    """Print what it would take, and run nothing."""
    repair: bool = False
    """Compute committed shards again whose bytes have changed."""
    report: str | None = None
    """Then reduce the run, or with -m all runs, and report on them together in this folder, with
    the defaults of both jobs; null: do not."""

    def __post_init__(self) -> None:
        """Refuse a run folder without a name.

        Raises:
            SettingsError: it is empty.
        """
        expect("run", "''", "a folder, an object-store URL, or null", met=self.run != "")

    @property
    def location(self) -> str:
        """The run folder."""
        location = self.run or f"runs/{self.model.name}-{self.data.name}"
        return location if "://" in location else str(Path(location).expanduser())
