"""Settings of the reduce job."""

from dataclasses import dataclass, field

from neuronstats.cluster.settings import RaySettings
from neuronstats.stats.settings import ReduceSettings


@dataclass(kw_only=True, slots=True)
class ReduceJob:
    """Merge a run's bitmaps and counts into tables."""

    run: str | None = None
    """The run folder, or an object-store URL."""
    runs: list[str] = field(default_factory=list)
    """Several instead, reduced one after another and compared: [DIR,DIR2]."""
    reduce: ReduceSettings = field(default_factory=ReduceSettings)
    ray: RaySettings = field(default_factory=RaySettings)
    layers: int | str = "all"
    """Layers to reduce, of those collected: all, first_half or a number of first layers."""
    partial: bool = False
    """Go on although shards are missing; the tables are marked."""
    plan: bool = False
    """Print what it would take, and reduce nothing."""
