"""Thresholds of the statistics: settings of the group `reduce`."""

from dataclasses import dataclass, field, fields
from fractions import Fraction

from neuronstats.errors import SettingsError

# Shares are compared as fractions of whole numbers, and the products must fit 64 bits.
MAX_DENOMINATOR = 10**9


@dataclass(kw_only=True)
class NgramSettings:
    """What an n-gram detector is, and what to report of every neuron.

    Source of the defaults: Voita et al. 2023, sec. 4; 50 for n = 2 is ours (method.md).
    """

    ngrams: list[int] = field(default_factory=lambda: [1, 2, 3])
    """Lengths of the n-grams to count, each at least 1."""
    cover_share: float = 0.95
    """Share of a neuron's counted activations that its covering n-grams account for. Taken as the
    decimal number that it is written as: 0.95 is 19/20."""
    detect_rate: float = 0.95
    """Share of an n-gram's occurrences on which a neuron that detects it is activated. A decimal
    number, as above."""
    max_cover: dict[int, int] = field(default_factory=lambda: {1: 5, 2: 50, 3: 50})
    """For each length, the most covering n-grams that a detector may have."""
    min_count: int = 1
    """Occurrences that an n-gram needs to count as detected; 1 is the paper's."""
    cover_limit: int | None = None
    """Where set, covering numbers above it are given as `cover_limit + 1`, exactly; with
    `top_triggers` 0 this saves most of the counting. At least every `max_cover`."""
    top_triggers: int = 10
    """For each neuron and length, the n-grams of most activations to report."""

    def __post_init__(self) -> None:
        """Refuse what cannot be counted.

        Raises:
            SettingsError: names the setting, its value and what was expected.
        """
        if not self.ngrams or min(self.ngrams) < 1 or len(set(self.ngrams)) < len(self.ngrams):
            raise SettingsError(
                f"ngrams={self.ngrams}: expected different lengths of at least 1, such as [1,2,3]"
            )
        for name, share in (("cover_share", self.cover_share), ("detect_rate", self.detect_rate)):
            if not 0 < share <= 1 or exact(share).denominator > MAX_DENOMINATOR:
                raise SettingsError(
                    f"{name}={share}: expected more than 0, at most 1, and at most nine decimals"
                )
        if self.min_count < 1 or self.top_triggers < 0:
            raise SettingsError(
                f"min_count={self.min_count} and top_triggers={self.top_triggers}: "
                "expected at least 1 and at least 0"
            )
        for n in self.ngrams:
            if self.max_cover.get(n, 0) < 1:
                raise SettingsError(
                    f"max_cover={self.max_cover} gives no cover of at least 1 for n={n}: "
                    f"add one, such as {n}: 50, or leave {n} out of ngrams"
                )
        widest = max(self.max_cover[n] for n in self.ngrams)
        if self.cover_limit is not None and self.cover_limit < widest:
            raise SettingsError(
                f"cover_limit={self.cover_limit} is below max_cover={widest}, so detectors would "
                f"be lost: expected at least {widest}, or null for no limit"
            )


@dataclass(kw_only=True)
class PositionSettings:
    """Which neurons are positional, and every threshold of their types.

    Source: Voita et al. 2023, sec. 5 (0.05 nats); the paper shows the types by example (fig. 7),
    the thresholds are ours.
    """

    positional_mi: float = 0.05
    """Mutual information in nats above which a neuron is positional."""
    min_crossings: int = 3
    """Times an oscillatory curve goes through its middle: two rises or two falls. A plateau goes
    twice, two periods of a wave at least three times."""
    shortest_half: float = 0.0078125
    """Shortest stay on one side of the middle that counts, as a share of the positions (1/128):
    the first few positions of a sequence are often special."""
    swing_share: float = 0.15
    """How far a curve must go past its middle on either side to have gone through it, as a share of
    its height (its 95th percentile less its 5th, after smoothing)."""
    swing_errors: float = 4.0
    """The same in standard errors of the smoothed curve; the larger distance counts."""
    wave_share: float = 0.6
    """Share of the curve's variance, binomial noise taken off, that must be left after smoothing
    for it to be oscillatory. Jagged curves lose more."""
    smooth_error: float = 0.025
    """Standard error that smoothing aims at where f is 0.5: the window is `1/(4*S*error^2)`
    positions, within the bounds below."""
    smooth_least: float = 0.0078125
    """Narrowest smoothing window as a share of the positions (1/128); never below 3 positions."""
    smooth_most: float = 0.03125
    """Widest smoothing window as a share of the positions (1/32); never below 3 positions."""
    near: float = 0.1
    """Highest mean of f in a range near 0; for a range near 1, of 1 - f."""
    exact: float = 0.01
    """The same for a range exactly at the extreme. A range of m positions shows rates down to
    about 3/(m*S)."""
    range_share: float = 0.1
    """Shortest range as a share of the positions."""
    level: float = 0.5
    """Steepest slope of a curve within a range, as a share of its slope between there and its
    middle. A straight line from 1 to 0 passes both extremes and stays at neither."""
    thin: float = 0.9
    """Share of the curve's variance, binomial noise taken off, that the mean of a point's two
    neighbours must predict for a curve of no extreme to be strong."""

    min_domain_sequences: int = 20
    """Sequences that a domain needs to be asked whether a neuron's type holds there."""

    def __post_init__(self) -> None:
        """Refuse thresholds that mean nothing.

        Raises:
            SettingsError: names the setting, its value and what was expected.
        """
        for name, least in (("min_crossings", 2), ("min_domain_sequences", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name}={getattr(self, name)}: expected at least {least}")
        for entry in fields(PositionSettings):  # not those of a subclass
            value = getattr(self, entry.name)
            if entry.type is float and entry.name != "swing_errors" and not 0 <= value <= 1:
                raise SettingsError(f"{entry.name}={value}: expected a number from 0 to 1")
        if not self.swing_errors >= 0:
            raise SettingsError(f"swing_errors={self.swing_errors}: expected at least 0")
        if not self.exact <= self.near < 0.5:
            raise SettingsError(
                f"exact={self.exact}, near={self.near}: expected exact <= near < 0.5"
            )
        if not 0 < self.range_share <= 0.5 or self.smooth_least > self.smooth_most:
            raise SettingsError(
                f"range_share={self.range_share}, smooth_least={self.smooth_least}, "
                f"smooth_most={self.smooth_most}: expected a range_share above 0 and up to 0.5, "
                "and smooth_least <= smooth_most"
            )


@dataclass(kw_only=True)
class ReduceSettings(NgramSettings, PositionSettings):
    """Thresholds: they can be changed without running the model again."""

    few_occurrences: int = 10
    """Detectors whose detected n-grams occur less often in all are counted as resting on little."""
    centred: bool = False
    """Subtract a projection's mean over the vocabulary, which softmax does not see."""

    def __post_init__(self) -> None:
        """Refuse thresholds that cannot be meant."""
        try:
            NgramSettings.__post_init__(self)
            PositionSettings.__post_init__(self)
        except SettingsError as error:
            raise SettingsError(f"reduce.{error}") from None
        if self.few_occurrences < 0:
            raise SettingsError(
                f"reduce.few_occurrences={self.few_occurrences}: expected at least 0"
            )


def exact(share: float) -> Fraction:
    """Read a share as the decimal number that it is written as: 0.95 is 19/20."""
    return Fraction(str(share))
