"""Packing, transposing and counting of a forward pass's rows, against plain NumPy."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers.packed import (
    DTYPES,
    THRESHOLDS,
    expected_activations,
    expected_rows,
    make_values,
    packed,
    random_rows,
    unpacked,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neuronstats import bits
from neuronstats.bits import kernels_numba, tensors

NO_TRITON = "triton is not installed: it comes with torch's CUDA builds, elsewhere by pip"


def test_activated_is_above_zero() -> None:
    values = torch.tensor([-1.0, -0.0, 0.0, 1e-45, 1.0, float("inf"), float("-inf")])
    assert tensors.activated(values).tolist() == [False, False, False, True, True, True, False]
    above = [False, False, False, False, True, True, False]
    assert tensors.activated(values, 0.5).tolist() == above
    assert tensors.activated(values, -0.5).tolist() == [False, *[True] * 5, False]
    # A threshold is rounded to the values' type: of bfloat16, to one a little above it.
    assert tensors.activated(torch.tensor([0.1]).bfloat16(), 0.1).tolist() == [False]


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_sequences=st.integers(0, 4),
    num_positions=st.integers(1, 70),
    num_neurons=st.integers(1, 80),
    padding=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES),
    threshold=st.sampled_from(THRESHOLDS),
)
def test_pack_rows(
    seed: int,
    num_sequences: int,
    num_positions: int,
    num_neurons: int,
    padding: int,
    dtype: torch.dtype,
    threshold: float,
) -> None:
    values = make_values(seed, (num_sequences * num_positions, num_neurons), dtype, padding)
    before = values.double()
    expected = expected_rows(expected_activations(values, num_positions, threshold))
    rows = packed(values, num_positions, threshold)
    np.testing.assert_array_equal(rows.numpy(), expected)
    np.testing.assert_array_equal(values.double(), before)  # the input stays as it was

    by_torch = torch.full_like(rows, 255)
    tensors._pack_rows_torch(values, num_positions, by_torch, threshold)
    np.testing.assert_array_equal(by_torch.numpy(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(16, 36864), (4096, 1), (1, 1), (70, 2051)])
def test_pack_rows_of_any_width(shape: tuple[int, int], dtype: torch.dtype) -> None:
    values = make_values(0, shape, dtype)
    expected = expected_rows(expected_activations(values, shape[0]))
    np.testing.assert_array_equal(packed(values, shape[0]).numpy(), expected)


def test_pack_rows_from_several_threads() -> None:
    """Each with sequences of its own, as a sweep on many cores may call it."""
    values = make_values(8, (6 * 30, 64), torch.float16)
    rows = torch.full((6, 4, 64), 255, dtype=torch.uint8)

    def pack_one(sequence: int) -> None:
        taken = values[30 * sequence : 30 * (sequence + 1)]
        tensors.pack_rows(taken, 30, rows[sequence : sequence + 1])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(pack_one, range(6)))
    assert torch.equal(rows, packed(values, 30))


def test_pack_rows_reads_views() -> None:
    """An offset into a larger array, broadcast rows, and gradients asked for."""
    values = make_values(1, (40, 24), torch.bfloat16)[8:32, 5:13].requires_grad_()
    expected = expected_rows(expected_activations(values.detach(), 12))
    np.testing.assert_array_equal(packed(values, 12).numpy(), expected)
    same = values.detach()[:1].expand(16, 8)
    assert set(packed(same, 16).flatten().tolist()) <= {0, 255}


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_pack_rows(dtype: torch.dtype) -> None:
    values = make_values(2, (3 * 21, 50), dtype, padding=1)
    expected, relu = packed(values, 21), torch.relu(values)
    rows = torch.full_like(expected, 255)
    tensors.relu_pack_rows_(values, 21, rows)
    assert torch.equal(rows, expected)
    assert torch.equal(values, relu)


@pytest.mark.parametrize(
    ("values", "positions", "rows", "message"),
    [
        (torch.zeros(8, 3, dtype=torch.float64), 8, torch.zeros(1, 1, 3), "takes float32"),
        (torch.zeros(8, 3), 8, torch.zeros(1, 1, 3), "gives uint8"),
        (torch.zeros(8), 8, torch.zeros(1, 1, 3, dtype=torch.uint8), "sequence [*] position"),
        (torch.zeros(8, 3), 8, torch.zeros(1, 3, dtype=torch.uint8), "sequence, byte, neuron"),
        (torch.zeros(8, 3), 0, torch.zeros(1, 1, 3, dtype=torch.uint8), "at 0 positions"),
        (torch.zeros(9, 3), 9, torch.zeros(1, 1, 3, dtype=torch.uint8), "does not fill"),
        (torch.zeros(8, 3), 8, torch.zeros(2, 1, 3, dtype=torch.uint8), "does not fill"),
        (torch.zeros(8, 3), 8, torch.zeros(1, 1, 4, dtype=torch.uint8), "does not fill"),
        (torch.zeros(3, 8).T, 8, torch.zeros(1, 1, 3, dtype=torch.uint8), "contiguous"),
        (torch.zeros(8, 3), 8, torch.zeros(1, 1, 6, dtype=torch.uint8)[..., ::2], "contiguous"),
        (torch.zeros(8, 3, device="meta"), 8, torch.zeros(1, 1, 3, dtype=torch.uint8), "is on"),
    ],
)
def test_pack_rows_refuses(values: Tensor, positions: int, rows: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tensors.pack_rows(values, positions, rows)
    with pytest.raises(ValueError, match=message):
        tensors.relu_pack_rows_(values, positions, rows)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_sequences=st.integers(0, 9),
    num_bytes=st.integers(1, 17),
    num_neurons=st.one_of(st.integers(0, 40), st.integers(1, 20).map(lambda n: 8 * n)),
    taken=st.one_of(st.none(), st.integers(0, 9)),
)
def test_neuron_major(
    seed: int, num_sequences: int, num_bytes: int, num_neurons: int, taken: int | None
) -> None:
    rows = random_rows(seed, num_sequences, num_bytes, num_neurons)
    expected = rows.numpy()[:taken].transpose(2, 0, 1)
    made = tensors.neuron_major(rows, taken)
    assert made.is_contiguous()
    np.testing.assert_array_equal(made.numpy(), expected)
    given_out = torch.full(expected.shape, 7, dtype=torch.uint8)
    assert tensors.neuron_major(rows, taken, out=given_out) is given_out
    np.testing.assert_array_equal(given_out.numpy(), expected)


@pytest.mark.parametrize("shape", [(3, 24, 3072), (2, 256, 128), (8, 13, 64)])
def test_neuron_major_of_whole_words(shape: tuple[int, int, int]) -> None:
    """Shapes that take the compiled way; strided rows, which do not, give the same."""
    rows = random_rows(3, *shape)
    expected = rows.numpy().transpose(2, 0, 1)
    np.testing.assert_array_equal(tensors.neuron_major(rows).numpy(), expected)
    np.testing.assert_array_equal(tensors.neuron_major(rows[:, ::2]).numpy(), expected[:, :, ::2])


def test_kernels_in_plain_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not compiled, they fail where they read or write outside their arrays."""
    monkeypatch.setattr(kernels_numba, "swap", kernels_numba._swap)
    for num_positions in (3, 8, 13):
        values = make_values(10, (2 * num_positions, 3), torch.float16)
        flat = values.view(torch.int16).flatten().numpy()
        expected = expected_rows(expected_activations(values, num_positions))
        rows = np.empty_like(expected)
        kernels_numba._pack_rows(flat, 3, num_positions, rows)
        np.testing.assert_array_equal(rows, expected)
        counts = np.zeros((num_positions, 3), np.uint32)
        kernels_numba._add_position_counts(rows, counts, np.empty((8, 2048), np.uint8))
        np.testing.assert_array_equal(counts, unpacked(rows).sum(0)[:num_positions])
    table = random_rows(11, 16, 24).numpy()
    columns = np.empty((24, 16), np.uint8)
    kernels_numba._transpose(table.view(np.uint64), columns.view(np.uint64))
    np.testing.assert_array_equal(columns, table.T)


@pytest.mark.parametrize(
    ("rows", "out", "message"),
    [
        (torch.zeros(2, 1, 3), None, "uint8 .sequence, byte, neuron"),
        (torch.zeros(2, 3, dtype=torch.uint8), None, "uint8 .sequence, byte, neuron"),
        (torch.zeros(2, 1, 3, dtype=torch.uint8), torch.zeros(3, 2, 1), "contiguous uint8"),
        (
            torch.zeros(1, 1, 3, dtype=torch.uint8),
            torch.zeros(3, 2, 1, dtype=torch.uint8),
            "shape .3, 1, 1.",
        ),
        (
            torch.zeros(2, 2, 3, dtype=torch.uint8),
            torch.zeros(3, 2, 2, dtype=torch.uint8).transpose(1, 2),
            "contiguous",
        ),
    ],
)
def test_neuron_major_refuses(rows: Tensor, out: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tensors.neuron_major(rows, out=out)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_sequences=st.integers(0, 6),
    num_positions=st.integers(1, 70),
    num_neurons=st.integers(0, 40),
    split=st.integers(0, 6),
)
def test_position_counts(
    seed: int, num_sequences: int, num_positions: int, num_neurons: int, split: int
) -> None:
    rows = random_rows(seed, num_sequences, bits.packed_bytes(num_positions), num_neurons)
    expected = unpacked(rows.numpy()).sum(0)[:num_positions]
    counts = tensors.position_counts(rows, num_positions)
    assert counts.dtype == np.uint32
    np.testing.assert_array_equal(counts, expected)
    parts = [tensors.position_counts(part, num_positions) for part in (rows[:split], rows[split:])]
    np.testing.assert_array_equal(parts[0] + parts[1], expected)
    by_torch = tensors._position_counts_torch(rows)[:num_positions]
    np.testing.assert_array_equal(by_torch.numpy(), expected)


@pytest.mark.parametrize("num_sequences", [255, 256, 600])
@pytest.mark.parametrize("num_neurons", [2, 2048, 2049])
def test_position_counts_of_many(num_sequences: int, num_neurons: int) -> None:
    """More sequences than a byte counts, all activated; more neurons than one tile holds."""
    rows = torch.full((num_sequences, 2, num_neurons), 255, dtype=torch.uint8)
    rows[0, 0, num_neurons // 2] = 0
    expected = np.full((11, num_neurons), num_sequences)
    expected[:8, num_neurons // 2] -= 1
    np.testing.assert_array_equal(tensors.position_counts(rows, 11), expected)
    np.testing.assert_array_equal(tensors._position_counts_torch(rows).numpy()[:11], expected)


def test_position_counts_of_strided_rows() -> None:
    rows = random_rows(5, 6, 4, 10)
    expected = unpacked(rows.numpy()).sum(0)
    for part in (rows[:, :, ::2], rows[:, :, 3:8]):
        start, step = (0, 2) if part.stride(2) == 2 else (3, 1)
        columns = expected[:, start : start + part.shape[2] * step : step]
        np.testing.assert_array_equal(tensors.position_counts(part, 32), columns)


def test_position_counts_refuses() -> None:
    with pytest.raises(ValueError, match="sequence, 2, neuron"):
        tensors.position_counts(torch.zeros(3, 1, 4, dtype=torch.uint8), 9)
    with pytest.raises(ValueError, match="are uint8"):
        tensors.position_counts(torch.zeros(3, 2, 4), 9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and -m gpu")
@pytest.mark.parametrize("with_triton", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_gives_the_bytes_of_the_cpu(
    *, dtype: torch.dtype, with_triton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more byte rows than a grid's second axis takes programs."""
    if with_triton:
        pytest.importorskip("triton", reason=NO_TRITON)
    monkeypatch.setattr(tensors, "_find_triton", lambda: with_triton)
    values = make_values(7, (4400 * 121, 40), dtype)
    rows = packed(values, 121)
    on_gpu = values.cuda()
    assert torch.equal(packed(on_gpu, 121).cpu(), rows)
    fused = torch.full_like(rows, 255, device="cuda")
    tensors.relu_pack_rows_(on_gpu, 121, fused)
    assert torch.equal(fused.cpu(), rows)
    assert torch.equal(on_gpu.cpu(), torch.relu(values))
    assert torch.equal(tensors.neuron_major(fused).cpu(), tensors.neuron_major(rows))
    counts = tensors.position_counts(fused, 121)
    np.testing.assert_array_equal(counts, tensors.position_counts(rows, 121))
