"""Thresholds of the statistics: settings of the group `reduce`."""

from dataclasses import dataclass, field, fields
from fractions import Fraction

from neuronstats.errors import SettingsError, expect

# Shares are compared as fractions of whole numbers, and the products must fit 64 bits.
MAX_DENOMINATOR = 10**9
MAX_COUNT = 2**32 - 1  # occurrences are counted in 32 bits


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
        lengths = self.ngrams
        met = bool(lengths) and min(lengths) >= 1 and len(set(lengths)) == len(lengths)
        words = "different lengths of at least 1, such as [1,2,3]"
        expect("reduce.ngrams", lengths, words, met=met)
        for name, share in (("cover_share", self.cover_share), ("detect_rate", self.detect_rate)):
            met = 0 < share <= 1 and exact(share).denominator <= MAX_DENOMINATOR
            words = "more than 0, at most 1, and at most nine decimals"
            expect(f"reduce.{name}", share, words, met=met)
        for name, least in (("min_count", 1), ("top_triggers", 0)):
            value = getattr(self, name)
            met, words = least <= value <= MAX_COUNT, f"at least {least}, at most {MAX_COUNT}"
            expect(f"reduce.{name}", value, words, met=met)
        for n in self.ngrams:
            if self.max_cover.get(n, 0) < 1:
                raise SettingsError(
                    f"reduce.max_cover={self.max_cover} gives no cover of at least 1 for n={n}: "
                    f"add one, such as {n}: 50, or leave {n} out of ngrams"
                )
        widest = max(self.max_cover[n] for n in self.ngrams)
        words = f"at least max_cover={widest} (or detectors would be lost), or null for no limit"
        met = self.cover_limit is None or self.cover_limit >= widest
        expect("reduce.cover_limit", self.cover_limit, words, met=met)


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
            value = getattr(self, name)
            expect(f"reduce.{name}", value, f"at least {least}", met=value >= least)
        for entry in fields(PositionSettings):  # not those of a subclass
            value = getattr(self, entry.name)
            if entry.type is float and entry.name != "swing_errors":
                expect(f"reduce.{entry.name}", value, "a number from 0 to 1", met=0 <= value <= 1)
        errors, near, share = self.swing_errors, self.near, self.range_share
        words = f"at least exact={self.exact} and below 0.5"
        expect("reduce.swing_errors", errors, "at least 0", met=errors >= 0)
        expect("reduce.near", near, words, met=self.exact <= near < 0.5)
        expect("reduce.range_share", share, "above 0 and up to 0.5", met=0 < share <= 0.5)
        ordered = self.smooth_least <= self.smooth_most
        words = f"at most smooth_most={self.smooth_most}"
        expect("reduce.smooth_least", self.smooth_least, words, met=ordered)


@dataclass(kw_only=True)
class VocabularySettings:
    """Which neurons are prediction, suppression or partition neurons.

    Source: Gurnee et al. 2024, sec. 5. The bound of the kurtosis is their code's, 10 where a normal
    distribution has 3; for "high variance" they give no number, ours is by the ratio below.
    """

    vocabulary: bool = True
    """Project every neuron's update on the vocabulary; false: the checkpoint is then read for token
    detectors alone, and the columns are null."""
    vocabulary_kurtosis: float = 7.0
    """Excess kurtosis of a projection above which it is about few tokens: prediction neurons where
    the skewness is above 0, suppression neurons where it is below."""
    vocabulary_variance: float = 4.0
    """Of the others: variance above which a neuron is a partition neuron, in multiples of what an
    update of its length in a random direction has."""

    def __post_init__(self) -> None:
        """Refuse thresholds that mean nothing.

        Raises:
            SettingsError: names the setting, its value and what was expected.
        """
        for name in ("vocabulary_kurtosis", "vocabulary_variance"):
            value = getattr(self, name)
            expect(f"reduce.{name}", value, "a number of at least 0", met=value >= 0)


@dataclass(kw_only=True)
class ReduceSettings(NgramSettings, PositionSettings, VocabularySettings):
    """Thresholds: they can be changed without running the model again."""

    few_occurrences: int = 10
    """Detectors whose detected n-grams occur less often in all are counted as resting on little."""
    centred: bool = False
    """Subtract a projection's mean over the vocabulary, which softmax does not see."""

    def __post_init__(self) -> None:
        """Refuse thresholds that cannot be meant."""
        NgramSettings.__post_init__(self)
        PositionSettings.__post_init__(self)
        VocabularySettings.__post_init__(self)
        few = self.few_occurrences
        expect("reduce.few_occurrences", few, "at least 0", met=few >= 0)


def exact(share: float) -> Fraction:
    """Read a share as the decimal number that it is written as: 0.95 is 19/20."""
    return Fraction(str(share))
