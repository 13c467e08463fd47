"""Curves like fig. 7's panels, with the type that each must get; writes docs/position_types.md.

python tests/helpers/panels.py
"""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np

from neuronstats.stats.curves import TYPES, classify
from neuronstats.stats.positions import mutual_information
from neuronstats.stats.settings import PositionSettings

POSITIONS = (64, 512, 2048)
SEQUENCES = (50, 200, 1000)
DRAWS = 6  # curves of each kind, number of positions and number of sequences


def square(rng, x):
    periods, phase, duty = rng.uniform(3, 12), rng.random(), rng.uniform(0.35, 0.65)
    low, high = rng.uniform(0, 0.2), rng.uniform(0.7, 1)
    return low + (high - low) * ((x * periods + phase) % 1 < duty)


def perfect_square(rng, x):
    return ((x * rng.uniform(3, 12) + rng.random()) % 1 < 0.5).astype(float)


def sinusoid(rng, x):
    middle = rng.uniform(0.4, 0.6)
    height = rng.uniform(0.28, min(middle, 1 - middle))
    return middle + height * np.sin(2 * np.pi * (x * rng.uniform(3, 12) + rng.random()))


def logistic(x, centre, steepness):
    return 1 / (1 + np.exp(-np.clip(steepness * (x - centre), -500, 500)))


def sigmoid_up(rng, x):
    low, high = rng.choice([0, 0.04]), rng.choice([0.96, 1])
    return low + (high - low) * logistic(x, rng.uniform(0.3, 0.7), rng.uniform(15, 100))


def sigmoid_down(rng, x):
    return sigmoid_up(rng, 1 - x)


def plateau(rng, x):
    steepness = rng.uniform(40, 400)
    up, down = rng.uniform(0.15, 0.4), rng.uniform(0.6, 0.85)
    return logistic(x, up, steepness) - logistic(x, down, steepness)


def decay_to_0(rng, x):
    return rng.uniform(0.5, 1) * np.exp(-x / rng.uniform(0.07, 0.25))


def rise_from_0(rng, x):
    return decay_to_0(rng, 1 - x)


def rise_to_1(rng, x):
    return 1 - decay_to_0(rng, x)


def fall_from_1(rng, x):
    return 1 - decay_to_0(rng, 1 - x)


def half_sigmoid(rng, x):
    return rng.uniform(0.4, 0.75) * sigmoid_up(rng, x)


def falling_line(rng, x):
    return rng.uniform(0.78, 0.98) * (1 - x) + rng.uniform(0.02, 0.22) * x


def whole_line(_rng, x):
    return 1 - x


def rising_line(rng, x):
    return falling_line(rng, 1 - x)


def middle_step(rng, x):
    return np.where(x < rng.uniform(0.35, 0.65), rng.uniform(0.15, 0.25), rng.uniform(0.7, 0.85))


PANEL = {
    square: "oscillatory",
    perfect_square: "oscillatory",
    sinusoid: "oscillatory",
    sigmoid_up: "both_extremes",
    sigmoid_down: "both_extremes",
    plateau: "both_extremes",
    decay_to_0: "one_extreme",
    rise_from_0: "one_extreme",
    rise_to_1: "one_extreme",
    fall_from_1: "one_extreme",
    half_sigmoid: "one_extreme",
    falling_line: "other",
    rising_line: "other",
    whole_line: "other",
    middle_step: "other",
}


def noise_alone(rng, x):
    return np.full_like(x, rng.uniform(0.02, 0.98))


def white(rng, x):
    return np.clip(rng.normal(0.5, 0.25, x.shape), 0, 1)


def one_period(rng, x):
    return 0.5 + rng.uniform(0.35, 0.5) * np.sin(2 * np.pi * (x + rng.random()))


def early_start(rng, x):
    return np.where(x < 0.006, 1, plateau(rng, x))


# Curves that must not be oscillatory, whatever else they are.
NOT_WAVES = (noise_alone, white, one_period, early_start)


def draw(kind, num_positions, num_sequences, seed, draws=DRAWS):
    """Counts [position, neuron] of positional curves of one kind, with binomial noise."""
    rng = np.random.default_rng([seed, num_positions, num_sequences, len(kind.__name__)])
    x = np.linspace(0, 1, num_positions)
    curves = []
    while len(curves) < draws:
        curve = kind(rng, x)
        exact = np.rint(curve * 10**6).astype(np.int64)[:, None]
        if kind in NOT_WAVES or mutual_information(exact, 10**6)[0] > 0.05:
            curves.append(curve)
    return rng.binomial(num_sequences, np.clip(curves, 0, 1)).T


def run_panel(kinds=PANEL, draws=DRAWS, seed=0):
    """Counter of (kind, positions, sequences, type given, strong)."""
    results = Counter()
    for kind in kinds:
        for num_positions in POSITIONS:
            for num_sequences in SEQUENCES:
                counts = draw(kind, num_positions, num_sequences, seed, draws)
                types, strong = classify(counts, num_sequences, PositionSettings())
                for given, is_strong in zip(types, strong, strict=True):
                    results[kind, num_positions, num_sequences, TYPES[given], bool(is_strong)] += 1
    return results


def total(results, **wanted):
    """Add up the results whose kind, positions, sequences, given or strong are the wanted ones."""
    names = ("kind", "positions", "sequences", "given", "strong")
    return sum(
        number
        for key, number in results.items()
        if all(dict(zip(names, key, strict=True))[name] == value for name, value in wanted.items())
    )


def share_right(results, **wanted):
    right = sum(total(results, kind=kind, given=PANEL[kind], **wanted) for kind in PANEL)
    return right / sum(total(results, kind=kind, **wanted) for kind in PANEL)


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def page(draws):
    """docs/position_types.md as text."""
    results, others = run_panel(PANEL, draws), run_panel(NOT_WAVES, draws)
    shares = [
        [num_positions]
        + [
            f"{100 * share_right(results, positions=num_positions, sequences=s):.1f}"
            for s in SEQUENCES
        ]
        for num_positions in POSITIONS
    ]
    confusion = [
        [
            kind.__name__.replace("_", " "),
            PANEL[kind],
            *(total(results, kind=kind, given=given) for given in TYPES),
            f"{100 * total(results, kind=kind, strong=True) / total(results, kind=kind):.0f}",
        ]
        for kind in PANEL
    ]
    controls = [
        [kind.__name__.replace("_", " "), *(total(others, kind=kind, given=g) for g in TYPES)]
        for kind in NOT_WAVES
    ]
    settings = [
        [f"`{field.name}`", getattr(PositionSettings(), field.name)]
        for field in dataclasses.fields(PositionSettings)
    ]
    return TEXT.format(
        curves=sum(results.values()),
        draws=draws,
        kinds=len(PANEL),
        right=f"{100 * sum(share_right(results, sequences=s) for s in SEQUENCES[1:]) / 2:.2f}",
        few=f"{100 * share_right(results, sequences=SEQUENCES[0]):.2f}",
        shares=table(["positions", *(f"{s} sequences" for s in SEQUENCES)], shares),
        confusion=table(["panel", "wanted", *TYPES, "strong, %"], confusion),
        controls=table(["curve", *TYPES], controls),
        settings=table(["setting", "default"], settings),
    )


TEXT = """# How positional curves get their types

Written by `python tests/helpers/panels.py`; the panels are drawn there. The rules are in
`neuronstats/stats/curves.py`, the meaning of each threshold in `neuronstats/stats/settings.py`.

The curve is f(p), the share of S sequences in which a neuron was activated at position p, without
position 0. Its noise is binomial and so known. In order:

1. **oscillatory**: the smoothed curve goes through its middle at least `min_crossings` times, each
   time clearly: by `swing_share` of its height and by `swing_errors` standard errors either way.
   Smoothing takes as many positions as S asks for, within bounds that follow the number of
   positions, and must leave `wave_share` of the curve's variance: a jagged curve is no wave.
2. **both extremes**, **one extreme**: there is a range at 0 or at 1. A range is a run of positions,
   at least `range_share` of all, over which f is at most `near` (or at least 1 - `near`) in the
   mean, and in which the curve stays: its slope there is at most `level` of its slope on the way
   to the middle. A straight line from 1 to 0 passes near both and has no range.
3. **other**: the rest.

**Strong**: both extremes and one extreme have their range within `exact` of the extreme;
oscillatory curves the middle halves of their half-waves, taken together; other curves are thin:
`thin` of their variance is predicted by a point's two neighbours. Noise is taken off first.

## The panels of fig. 7

{curves} curves: {kinds} kinds, {draws} of each for each number of positions and of sequences, all
of more than 0.05 nats. Right in type: **{right} %** with 200 and 1000 sequences, {few} % with 50.
By size:

{shares}

All sizes together:

{confusion}

## Curves that must not be called oscillatory

Noise about a constant; frequencies drawn for each position by themselves; one period; a plateau
whose first few positions are at 1 too. As many of each. Neurons of the first kind are not
positional and get no type in the tables.

{controls}

## Thresholds

{settings}
"""

if __name__ == "__main__":
    path = Path(__file__).parents[2] / "docs" / "position_types.md"
    path.write_text(page(40))
