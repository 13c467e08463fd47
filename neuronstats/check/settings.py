"""Settings of the check job."""

from dataclasses import dataclass, field

from neuronstats.cluster.settings import RaySettings
from neuronstats.errors import expect


@dataclass(kw_only=True, slots=True)
class CheckJob:
    """Read every stored byte of a run and compare it with what was committed."""

    run: str | None = None
    """The run folder, or an object-store URL."""
    repair: bool = False
    """Put right what can be computed again: from the run's inputs, and by reducing again."""
    ray: RaySettings = field(default_factory=RaySettings)

    def __post_init__(self) -> None:
        """Refuse a run without a name.

        Raises:
            SettingsError: it is empty.
        """
        expect("run", "''", "a run folder or an object-store URL", met=self.run != "")
