"""Where the work is done: settings of the group `ray`."""

import re
from dataclasses import dataclass

from neuronstats.errors import expect

ADDRESS = re.compile(r"(ray://)?.+:\d+")


@dataclass(kw_only=True, slots=True)
class RaySettings:
    """Where the work is done."""

    address: str | None = None
    """null: this machine; auto, HOST:PORT or ray://HOST:PORT: a cluster."""
    workers: int | str = "auto"
    """Workers; auto: to collect, one per GPU, or one where there is none; to reduce, one per core,
    as far as memory goes."""
    gpus_per_worker: int | str = "auto"
    """auto: to collect, 1 where there are GPUs, else 0."""
    cpus_per_worker: int | str = "auto"
    """Cores of a worker; auto: to collect, the smallest machine's, shared out; to reduce, one."""

    def __post_init__(self) -> None:
        """Refuse what is no number."""
        for name in ("workers", "gpus_per_worker", "cpus_per_worker"):
            value, least = getattr(self, name), 0 if name == "gpus_per_worker" else 1
            met = value == "auto" or (type(value) is int and value >= least)
            expect(f"ray.{name}", value, f"auto or a number from {least}", met=met)
        known = self.address in (None, "auto") or ADDRESS.fullmatch(self.address) is not None
        words = "null (this machine), auto, HOST:PORT or ray://HOST:PORT"
        expect("ray.address", self.address, words, met=known)
