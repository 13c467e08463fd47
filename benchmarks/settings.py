"""What is measured, and on how much: settings of the bench job."""

from dataclasses import dataclass, field

from neuronstats.errors import SettingsError
from neuronstats.model.settings import ModelSettings


@dataclass(kw_only=True, slots=True)
class BenchSettings:
    """What is measured, and on how much."""

    parts: list[str] = field(
        default_factory=lambda: ["forward", "pack", "reduce", "merge", "stream", "start"]
    )
    """forward: bare models, hooks, the sweep, the store; pack: packing and counting alone; reduce:
    the n-grams; merge: a whole synthetic run reduced; stream: weights that do not fit in memory;
    start: jobs/collect.py on the embedded model; flips: bits that float16 and bfloat16 flip against
    float32; page: a report of half a million neurons, opened in a browser."""
    run: str | None = None
    """A collected run: its model and sequences from all over its text are taken instead."""
    short: bool = False
    """Smaller sizes where none are given: two minutes."""
    shape: str = "opt-125m"
    """Without a model: random weights in this shape; "tiny" is one too."""
    layers: int | None = None
    """Of the random weights; null: all of the shape's, in the short form 2."""
    active: float = 0.05
    """Of the random weights: share of tokens on which a neuron is activated, about."""
    sequences: int | None = None
    """Of the shard, filled up to whole batches; null: 8, in the short form 4, 32 times
    as many on a GPU."""
    positions: int = 512
    """Of a sequence; a multiple of 8."""
    batch_sequences: int | None = None
    """Of the sweep and of hooks; null: what a collect run would take."""
    reduce_tokens: int | None = None
    """Of the reduction's corpus; null: 5 million, in the short form 500 thousand."""
    reduce_neurons: int | None = None
    """Of the reduction, a multiple of 20; null: 120, about a block of so many tokens, in the short
    form 20."""
    merge_layers: int | None = None
    """Of the run that is merged, at least 2; null: 6, in the short form 3."""
    merge_neurons: int | None = None
    """Of each of its layers; null: 3072 (as in opt-125m), in the short form 100."""
    start_tokens: int | None = None
    """Of the embedded text; null: 200 thousand, in the short form 50 thousand."""
    rounds: int = 5
    """Rounds that count; in each, every way is taken once."""
    warmups: int = 1
    """Rounds before, at least 1, which do not count."""
    threads: int = 1
    """Of torch's operations."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is a GPU."""

    def __post_init__(self) -> None:
        """Refuse sizes that are no sizes."""
        sizes = ["layers", "sequences", "batch_sequences", "positions", "rounds", "warmups"]
        sizes += ["threads", "reduce_tokens", "reduce_neurons", "merge_neurons", "start_tokens"]
        for name in sizes:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"bench.{name}={value}: expected a number from 1.")
        if self.reduce_neurons is not None and self.reduce_neurons % 20:
            raise SettingsError(
                f"bench.reduce_neurons={self.reduce_neurons}: expected a multiple of 20."
            )
        if self.merge_neurons is not None and self.merge_neurons < 20:
            raise SettingsError(f"bench.merge_neurons={self.merge_neurons}: expected at least 20.")
        if self.merge_layers is not None and self.merge_layers < 2:  # the first one warms up
            raise SettingsError(f"bench.merge_layers={self.merge_layers}: expected at least 2.")
        if not 0 < self.active < 1:
            raise SettingsError(f"bench.active={self.active}: expected a share between 0 and 1.")


@dataclass(kw_only=True, slots=True)
class BenchJob:
    """Measure how fast it is here, as ratios against what one would use instead."""

    model: ModelSettings = field(default_factory=lambda: ModelSettings(name="random"))
    bench: BenchSettings = field(default_factory=BenchSettings)
    out: str = "runs/bench"
    """Folder for bench.json and bench.md, and while it runs for the weights and the run written."""
    page: str | None = None
    """A Markdown page, such as docs/performance.md, whose sections of these parts are replaced."""
