"""Packed bits in NumPy: their order, and counts."""

import numpy as np
import pytest
import torch
from helpers.packed import (
    DTYPES,
    expected_activations,
    expected_rows,
    make_values,
    packed,
    random_rows,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronstats import bits
from neuronstats.bits import tensors


def test_bit_order_is_lowest_first():
    """The order by hand: positions 0 and 9 of ten give 1 and 2."""
    values = torch.zeros(10, 1)
    values[0] = values[9] = 1
    assert packed(values, 10).tolist() == [[[1], [2]]]
    assert bits.pack(values[:, 0].numpy() > 0).tolist() == [1, 2]
    assert np.flatnonzero(bits.unpack(np.array([1, 2], np.uint8), 10)).tolist() == [0, 9]


@pytest.mark.parametrize(("positions", "expected"), [(1, 1), (8, 1), (9, 2), (2048, 256)])
def test_packed_bytes(positions, expected):
    assert bits.packed_bytes(positions) == expected


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    leading=st.lists(st.integers(0, 4), max_size=2),
    num_positions=st.integers(1, 70),
)
def test_unpack_undoes_pack(seed, leading, num_positions):
    values = np.random.default_rng(seed).random((*leading, num_positions)) < 0.5
    data = bits.pack(values)
    assert data.shape == (*leading, bits.packed_bytes(num_positions))
    assert data.dtype == np.uint8
    restored = bits.unpack(data, num_positions)
    assert restored.dtype == np.bool_
    np.testing.assert_array_equal(restored, values)
    by_hand = expected_rows(values.reshape(-1, num_positions, 1))[..., 0]
    np.testing.assert_array_equal(data.reshape(by_hand.shape), by_hand)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    leading=st.lists(st.integers(0, 4), max_size=2),
    num_sequences=st.integers(0, 5),
    num_bytes=st.integers(0, 20),
    split=st.integers(0, 5),
)
def test_count(seed, leading, num_sequences, num_bytes, split):
    data = random_rows(seed, *leading, num_sequences, num_bytes).numpy()
    expected = sum((data.astype(np.int64) // 2**j % 2).sum((-2, -1)) for j in range(8))
    counts = bits.count(data)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected)
    parts = bits.count(data[..., :split, :]) + bits.count(data[..., split:, :])
    np.testing.assert_array_equal(parts, expected)


def test_count_over_several_blocks(monkeypatch):
    data = random_rows(4, 5, 3, 21).numpy()
    expected = np.unpackbits(data, axis=-1).sum((-2, -1))
    for size in (1, 63, 64, 200):
        monkeypatch.setattr(bits, "_COUNT_BLOCK", size)
        np.testing.assert_array_equal(bits.count(data), expected)


def test_count_refuses():
    with pytest.raises(ValueError, match=r"uint8 .*not bool"):
        bits.count(np.zeros((2, 3), np.bool_))
    with pytest.raises(ValueError, match=r"uint8 .*\(3,\)"):
        bits.count(np.zeros(3, np.uint8))


def test_unpack_refuses():
    with pytest.raises(ValueError, match="9 positions take 2 bytes, not 1"):
        bits.unpack(np.zeros((3, 1), np.uint8), 9)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_sequences=st.integers(1, 5),
    num_positions=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
)
def test_the_whole_way(seed, num_sequences, num_positions, dtype):
    """From values to counts, by the functions that the sweep calls one after another."""
    values = make_values(seed, (num_sequences * num_positions, 16), dtype)
    activations = expected_activations(values, num_positions)  # [sequence, position, neuron]
    rows = packed(values, num_positions)
    stored = tensors.neuron_major(rows).numpy()
    np.testing.assert_array_equal(
        bits.unpack(stored, num_positions), activations.transpose(2, 0, 1)
    )
    np.testing.assert_array_equal(bits.count(stored), activations.sum((0, 1)))
    np.testing.assert_array_equal(tensors.position_counts(rows, num_positions), activations.sum(0))
