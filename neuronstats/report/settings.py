"""What a report holds, and how much of it: settings of the report job."""

from dataclasses import dataclass, field

from neuronstats.errors import expect

# The largest values that a page can be read with: a context takes bytes and time.
_LIMITS = {"sample": None, "contexts": 100, "context_tokens": 1000, "max_bytes": None}


@dataclass(kw_only=True, slots=True)
class ReportSettings:
    """What the page holds."""

    neurons: str = "all"
    """Neurons with detail on the page: all (up to max_bytes, detectors and positional ones first),
    classified (detectors, positional ones and a sample of the others), none."""
    sample: int = 200
    """Size of that sample in each run, spread evenly over the neurons not classified."""
    contexts: int = 10
    """Example contexts of a neuron with detail, at most 100; 0: none."""
    context_tokens: int = 20
    """Tokens shown on either side of an activation, at most 1000."""
    max_bytes: int = 200_000_000
    """Bytes that the neurons' details may take in all; what is left out is said on the page."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        known = self.neurons in ("classified", "all", "none")
        expect("report.neurons", self.neurons, "classified, all or none", met=known)
        for name, most in _LIMITS.items():
            value = getattr(self, name)
            words = "0 or more" if most is None else f"0 to {most}"
            expect(
                f"report.{name}", value, words, met=value >= 0 and (most is None or value <= most)
            )


@dataclass(kw_only=True, slots=True)
class ReportJob:
    """Make figures and a page, which opens from disk, of one reduced run or several."""

    runs: list[str] = field(default_factory=list)
    """Run folders, or object-store URLs: [DIR,DIR2]."""
    out: str | None = None
    """Folder for figures and page; null: report/ in the first run."""
    serve: bool = False
    """Serve the page on this machine alone, with every neuron's detail, until interrupted."""
    port: int = 8000
    """Port of serve=true; 0: any free one."""
    report: ReportSettings = field(default_factory=ReportSettings)

    def __post_init__(self) -> None:
        """Refuse what is no port.

        Raises:
            SettingsError: names the setting, its value and what was expected.
        """
        expect("port", self.port, "a number from 0 to 65535", met=0 <= self.port < 1 << 16)
