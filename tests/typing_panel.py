"""Curves like the panels of fig. 7, with the type that each must get; writes docs/typing.md.

python tests/typing_panel.py
"""

from collections import Counter

import numpy as np

from neuronstats.position_types import TYPES, PositionSettings, classify
from neuronstats.positions import mutual_information

POSITIONS = (64, 512, 2048)
SEQUENCES = (50, 200, 1000)
DRAWS = 16  # curves of each kind, number of positions and number of sequences


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


def slow_drift(rng, x):
    walk = np.cumsum(rng.normal(0, 1, 9))
    curve = np.interp(x, np.linspace(0, 1, 9), walk)
    return 0.05 + 0.9 * (curve - curve.min()) / np.ptp(curve)


def one_period(rng, x):
    return 0.5 + rng.uniform(0.35, 0.5) * np.sin(2 * np.pi * (x + rng.random()))


def few_bumps(rng, x):
    return 0.5 + rng.uniform(0.35, 0.5) * np.sin(2 * np.pi * (1.4 * x + rng.random()))


# Curves that must not be oscillatory, whatever else they are.
NOT_WAVES = (noise_alone, white, one_period, few_bumps)


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


def types_of(kind, num_positions, num_sequences, seed=0, draws=DRAWS):
    counts = draw(kind, num_positions, num_sequences, seed, draws)
    return [TYPES[t] for t in classify(counts, num_sequences, PositionSettings())[0]]


def run_panel(seed=0, draws=DRAWS):
    """Counter of (kind, positions, sequences, type given)."""
    return Counter(
        (kind, t, s, given)
        for kind in PANEL
        for t in POSITIONS
        for s in SEQUENCES
        for given in types_of(kind, t, s, seed, draws)
    )


def share_right(results, num_sequences=SEQUENCES, num_positions=POSITIONS):
    chosen = {k: v for k, v in results.items() if k[2] in num_sequences and k[1] in num_positions}
    right = sum(v for k, v in chosen.items() if k[3] == PANEL[k[0]])
    return right / sum(chosen.values())


if __name__ == "__main__":
    import sys

    for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1):
        results = run_panel(seed, 40)
        print("S>=200", share_right(results, (200, 1000)), "S=50", share_right(results, (50,)))
    for kind in PANEL:
        for t in POSITIONS:
            row = []
            for s in SEQUENCES:
                c = {g: results[kind, t, s, g] for g in TYPES if results[kind, t, s, g]}
                row.append(str(c))
            print(f"{kind.__name__:15s} T={t:5d}", " | ".join(row))
    for kind in (*NOT_WAVES, slow_drift):
        for t in POSITIONS:
            print(kind.__name__, t, [Counter(types_of(kind, t, s, 0, 200)) for s in SEQUENCES])
