"""Sums beside the bits: exact, and the same whatever the order and the cut of the work."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronstats.bits import quantities
from neuronstats.bits.sums import LEFT_OUT, NO_SLOT, Sums

CPU = torch.device("cpu")
SPECIAL = [0.0, -0.0, 1e-30, -1e-30, 2.0**-24, 2.0**-25, -(2.0**-25), 3.0, 65535.0, -65535.5, 1e-3]


def oracle(gate, activation, up, value, slots, num_slots, gated):
    """Each row of `Sums.values` and of `Sums.by_token`, with Python's whole numbers."""
    num_neurons = gate.shape[1]
    values = [[0] * num_neurons for _ in quantities.names(gated=gated)]
    by_token = [[0] * num_neurons for _ in range(num_slots)]
    for row, slot in enumerate(slots.tolist()):
        for n in range(num_neurons) if slot != LEFT_OUT else ():
            a, is_open = value[row, n].item(), gate[row, n].item() > 0
            case = 0 if is_open else 1
            if gated:
                case = 2 * case + (not up[row, n].item() > 0)
            values[case][n] += 1
            first = 4 if gated else 2
            fixed = round(a * 2**24)  # half to even, as np.rint
            values[first][n] += fixed
            values[first + 1][n] += abs(fixed)
            values[first + 2][n] += abs(fixed) * is_open
            square = a * a * 2.0**8
            high = math.floor(square)
            values[first + 3][n] += high
            values[first + 4][n] += round((square - high) * 2**32)
            values[first + 5][n] = max(values[first + 5][n], abs(fixed))
            if slot >= 0:
                by_token[slot][n] += fixed
    return values, by_token


def make(seed, num_rows, num_neurons, gated):
    rng = np.random.default_rng(seed)
    scale = rng.choice([1e-6, 1e-2, 1.0, 50.0], num_neurons)
    gate = rng.normal(size=(num_rows, num_neurons)).astype(np.float32)
    up = (rng.normal(size=(num_rows, num_neurons)) * scale).astype(np.float32)
    gate[rng.random(gate.shape) < 0.05] = 0.0
    odd = rng.random(up.shape) < 0.1
    up[odd] = rng.choice(SPECIAL, odd.sum())
    gate, up = torch.from_numpy(gate), torch.from_numpy(up)
    activation = torch.nn.functional.silu(gate)
    value = activation * up if gated else activation
    slots = torch.from_numpy(rng.integers(LEFT_OUT, 3, num_rows))
    return gate, activation, up, value, slots


def added(parts, order, cuts, gated, *, by_torch=False):
    """The sums of rows in some order, in pieces."""
    gate, activation, _, value, slots = (part[order] for part in parts)
    found = Sums(gate.shape[1], 3, gated=gated, device=CPU)
    add = found._add_chunk if by_torch else found.add
    for piece in zip(
        *(torch.tensor_split(part, cuts) for part in (gate, activation, value, slots)), strict=True
    ):
        if len(piece[0]):
            add(*piece)
    return found


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 7), st.booleans(), st.data())
@settings(deadline=None, max_examples=60)
def test_any_order_and_cut_gives_the_same_whole_numbers(seed, rows, neurons, gated, data):
    parts = make(seed, rows, neurons, gated)
    order = torch.tensor(data.draw(st.permutations(range(rows))))
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
    gate, activation, up, value, slots = parts
    # where u is 0 (not below), or f(g) is 0, its sign is that of a, which f(g) 0 has lost
    up = torch.where((activation == 0) & (up == 0), torch.copysign(torch.ones(()), up), up)
    expected, by_token = oracle(gate, activation, up, value, slots, 3, gated)
    for by_torch in (False, True):
        found = added(parts, order, cuts, gated, by_torch=by_torch)
        lost = (value == 0) & (up != 0) & (activation != 0)  # too small a product: u counts as 0
        if not lost.any():
            assert found.values.tolist() == expected
        assert found.values[-6:].tolist() == expected[-6:]
        assert found.by_token.tolist() == by_token


def test_more_rows_and_neurons_than_are_added_at_once(monkeypatch):
    parts = make(1, 5000, 2000, gated=True)
    rows = torch.arange(5000)
    together = added(parts, rows, [], gated=True)
    apart = added(parts, rows.flip(0), [1, 2047, 2048, 4000], gated=True)
    by_torch = added(parts, rows, [2048, 4096], gated=True, by_torch=True)
    for other in (apart, by_torch):
        assert torch.equal(together.values, other.values)
        assert torch.equal(together.by_token, other.by_token)


def test_the_largest_values_add_up_exactly():
    """As many rows as are added in float64, each just below the limit, and then again."""
    # a float32 just below the limit
    value = torch.full((3 * quantities.ROWS, 1), quantities.LIMIT - 2**-7)
    slots = torch.full((len(value),), NO_SLOT)
    found = Sums(1, 0, gated=False, device=CPU)
    found.add(value, value, value, slots)
    a = value[0, 0].item()
    assert a < quantities.LIMIT
    total = int(a * 2**24) * len(value)
    high = math.floor(a * a * 2**8)
    assert found.values[:, 0].tolist()[:6] == [
        len(value),
        0,
        total,
        total,
        total,
        high * len(value),
    ]
    assert quantities.largest(found.values.numpy()) == a


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_summed_as_what_they_are(dtype):
    gate, activation, _, value, slots = make(2, 64, 5, gated=True)
    narrow = [part.to(dtype) for part in (gate, activation, value)]
    found, wanted = (Sums(5, 3, gated=True, device=CPU) for _ in range(2))
    found.add(*narrow, slots)
    wanted.add(*(part.float() for part in narrow), slots)
    assert torch.equal(found.values, wanted.values)


def test_merged_shards_are_the_whole():
    parts = make(3, 60, 6, gated=True)
    whole = added(parts, torch.arange(60), [], gated=True).values.numpy()
    total = np.zeros_like(whole)
    for start in (40, 0, 20):
        part = added(parts, torch.arange(start, start + 20), [], gated=True).values.numpy()
        quantities.merge(total, part)
    assert (total == whole).all()
    amounts = quantities.as_floats(whole, gated=True)
    value = parts[3][parts[4] != LEFT_OUT].double().numpy()
    for name, wanted in (
        ("sum", value.sum(0)),
        ("absolute", abs(value).sum(0)),
        ("square", (value**2).sum(0)),
        ("maximum", abs(value).max(0)),
    ):
        np.testing.assert_allclose(amounts[name], wanted, atol=60 * 2.0**-25, rtol=1e-12)
