"""Where the work is done: settings of the group `ray`."""

import re
from dataclasses import dataclass

from neuronstats.errors import expect

ADDRESS = re.compile(r"(ray://)?.+:\d+")
WORDS = {
    "workers": ("auto", "max"),
    "gpus_per_worker": ("auto",),
    "cpus_per_worker": ("auto",),
}


@dataclass(kw_only=True, slots=True)
class RaySettings:
    """Where the work is done."""

    address: str | None = None
    """null: this machine; auto, HOST:PORT or ray://HOST:PORT: a cluster."""
    workers: int | str = "auto"
    """Workers; auto: to collect, one per GPU, or one per machine where there is none; to reduce,
    one per core, as far as memory goes; max: as auto, and more as machines join the cluster."""
    gpus_per_worker: int | str = "auto"
    """auto: to collect, 1 where there are GPUs, else 0."""
    cpus_per_worker: int | str = "auto"
    """Cores of a worker; auto: to collect, the smallest machine's, shared out; to reduce, one."""
    start_timeout: float = 600.0
    """Seconds that a cluster may take to have room for a worker and to start it."""
    flops: float | None = None
    """FLOP per second of one worker, for the time in the plan; null: measured where it will run."""

    def __post_init__(self) -> None:
        """Refuse what is no number."""
        for name, words in WORDS.items():
            value, least = getattr(self, name), 0 if name == "gpus_per_worker" else 1
            met = value in words or (type(value) is int and value >= least)
            expect(f"ray.{name}", value, f"{' or '.join(words)} or a number from {least}", met=met)
        for name in ("start_timeout", "flops"):
            number = getattr(self, name)
            expect(f"ray.{name}", number, "a number above 0", met=number is None or number > 0)
        known = self.address in (None, "auto") or ADDRESS.fullmatch(self.address) is not None
        expected = "null (this machine), auto, HOST:PORT or ray://HOST:PORT"
        expect("ray.address", self.address, expected, met=known)
