"""What is measured, and on how much: settings of the bench job, and all sizes."""

from dataclasses import dataclass, field

from neuronstats.errors import expect
from neuronstats.model.settings import ModelSettings

PARTS = (
    *("forward", "pack", "reduce", "merge", "stream", "start"),
    *("workers", "whole", "growth", "flips", "page"),
)
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """On how much each part works."""

    layers: int | None = None
    """Of the random weights; None: all of the shape's."""
    active: float = 0.05
    """Of the random weights: share of tokens on which a neuron is activated, about."""
    sequences: int = 8
    """Of the shard, filled up to whole batches; GPU_TIMES as many on a GPU."""
    positions: int = 512
    """Of a sequence, at most."""
    batch_sequences: int | None = None
    """Of the sweep and of hooks; None: what a collect run takes."""
    reduce_tokens: int = 5_000_000
    """Of the reduction's corpus."""
    reduce_neurons: int = 120
    """Of the reduction, a multiple of 20."""
    merge_tokens: int = 5_000_000
    """Of the run that is merged."""
    merge_layers: int = 1
    """Its layers, all with bitmaps."""
    merge_neurons: int = 3072
    """Of each of its layers."""
    start_tokens: int = 200_000
    """Of the embedded text."""
    workers_tokens: int = 900_000
    """Of the embedded text."""
    workers_layers: int = 16
    """Of the run that is reduced by one worker and by two: as `merge`, with more layers."""
    page_layers: int = 64
    """Of the run whose page is opened, of 36 864 neurons each, as opt-66b has."""
    growth_tokens: int = 524_288
    """Of the smallest run whose growth is looked at."""
    whole_tokens: int = 200_000
    """Of the embedded text, for the whole job against a script."""
    whole_random_tokens: int = 20_480
    """For the same on random weights."""


FULL = Sizes()
SHORT = Sizes(
    layers=2,
    sequences=4,
    reduce_tokens=500_000,
    reduce_neurons=20,
    merge_tokens=50_000,
    merge_neurons=120,
    start_tokens=50_000,
    workers_tokens=50_000,
    workers_layers=2,
    page_layers=2,
    growth_tokens=8_192,
    whole_tokens=50_000,
    whole_random_tokens=4096,
)
GPU_TIMES = 32
WARMUPS, THREADS = 1, 1  # rounds that do not count; of torch's operations


@dataclass(kw_only=True, slots=True)
class BenchSettings:
    """What is measured, and on how much."""

    parts: list[str] = field(default_factory=lambda: list(PARTS[:6]))
    """forward: bare models, hooks, the sweep, the store; pack: packing and counting alone; reduce:
    the n-grams; merge: a synthetic run merged; stream: weights that do not fit in memory; start:
    jobs/collect.py on the embedded model; workers: two workers against one, on a machine at rest;
    whole: collect and reduce against a script of one's own; growth: ever more tokens and neurons;
    flips: bits that float16 and bfloat16 flip against float32; page: a report of as many neurons as
    opt-66b has, opened in a browser."""
    run: str | None = None
    """A collected run: its model and sequences from all over its text are taken instead."""
    short: bool = False
    """Smaller sizes: two minutes."""
    shape: str = "opt-125m"
    """Without a model: random weights in this shape; "tiny" is one too."""
    rounds: int = 5
    """Rounds that count; in each, every way is taken once."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is a GPU."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            SettingsError: names the setting, its value and what was expected.
        """
        known = bool(self.parts) and set(self.parts) <= set(PARTS)
        expect("bench.parts", self.parts, f"some of {', '.join(PARTS)}", met=known)
        expect("bench.rounds", self.rounds, "a number from 1", met=self.rounds >= 1)
        known = self.device in DEVICES
        expect("bench.device", self.device, f"one of {', '.join(DEVICES)}", met=known)


@dataclass(kw_only=True, slots=True)
class BenchJob:
    """Measure how fast it is here, as ratios against what one would use instead."""

    model: ModelSettings = field(default_factory=lambda: ModelSettings(name="random"))
    bench: BenchSettings = field(default_factory=BenchSettings)
    out: str = "runs/bench"
    """Folder for bench.md, and while it runs for the weights and the run written."""
    page: str | None = None
    """A Markdown page, such as docs/performance.md, whose sections of these parts are replaced."""
