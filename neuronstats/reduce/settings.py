"""Settings of the reduce job."""

from dataclasses import dataclass, field
from pathlib import Path

from neuronstats.cluster.settings import RaySettings
from neuronstats.errors import expect
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
    match_tokens: int = 0
    """Of several runs over the same tokens: find the first one's neurons in the others by the
    correlation of their bits, over at most so many tokens; 0: do not."""
    partial: bool = False
    """Go on although shards are missing; the tables are marked."""
    plan: bool = False
    """Print what it would take, and reduce nothing."""

    def __post_init__(self) -> None:
        """Refuse a run without a name, and a run that is given twice.

        Raises:
            SettingsError: names the setting, its value and what was expected.
        """
        expect("run", "''", "a run folder or an object-store URL", met=self.run != "")
        different = {Path(place).expanduser().resolve() for place in self.runs}
        met = len(different) == len(self.runs)
        expect("runs", self.runs, "different runs to compare, [DIR,DIR2]", met=met)
        met = self.match_tokens == 0 or (0 < self.match_tokens < 1 << 31 and len(self.runs) > 1)
        words = "0, or up to 2147483647 with runs=[DIR,DIR2]"
        expect("match_tokens", self.match_tokens, words, met=met)
