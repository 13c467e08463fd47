"""Run with `pytest tests/test_bits.py`. Oracles are plain numpy, and never pack eight at a time."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from neuronstats import bits
from neuronstats.bits import kernels_numba, tensors

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NO_TRITON = "triton is not installed: it comes with torch's CUDA builds, elsewhere by pip"


def make_values(
    seed: int, shape: tuple[int, int], dtype: torch.dtype, padding: int = 0, device: str = "cpu"
) -> Tensor:
    """Draw [row, neuron] with zeros of both signs, subnormals and infinities; rows strided."""
    info = torch.finfo(dtype)
    least = torch.tensor([1], dtype=torch.int32 if dtype.itemsize == 4 else torch.int16).view(dtype)
    special = [0.0, -0.0, least.item(), -least.item(), info.tiny, -info.tiny, info.max, info.min]
    special += [float("inf"), float("-inf"), 1.0, -1.0]
    rng = np.random.default_rng(seed)
    wide = (shape[0], shape[1] + padding)
    drawn = np.where(rng.random(wide) < 0.5, rng.choice(special, wide), rng.normal(size=wide))
    return torch.from_numpy(drawn).to(dtype).to(device)[:, : shape[1]]


def expected_activations(values: Tensor, num_positions: int) -> NDArray[np.bool_]:
    """Give bool [sequence, position, neuron], compared in double precision."""
    exact = values.double().cpu().numpy()
    return (exact > 0).reshape(-1, num_positions, exact.shape[1])


def expected_rows(activations: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Set bit p % 8 of byte p // 8, position by position: [sequence, byte, neuron]."""
    num_sequences, num_positions, num_neurons = activations.shape
    rows = np.zeros((num_sequences, (num_positions + 7) // 8, num_neurons), np.uint8)
    for p in range(num_positions):
        rows[:, p // 8] += activations[:, p].astype(np.uint8) << (p % 8)
    return rows


def packed(values: Tensor, num_positions: int) -> Tensor:
    """Call pack_rows on an output that is full of ones."""
    num_sequences = values.shape[0] // num_positions
    shape = (num_sequences, bits.packed_bytes(num_positions), values.shape[1])
    rows = torch.full(shape, 255, dtype=torch.uint8, device=values.device)
    tensors.pack_rows(values, num_positions, rows)
    return rows


def random_rows(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def unpacked(rows: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Give bits 0 and 1 as [sequence, position, neuron] from [sequence, byte, neuron]."""
    by_bit = np.stack([rows.astype(np.int64) // 2**j % 2 for j in range(8)], axis=2)
    return by_bit.reshape(rows.shape[0], 8 * rows.shape[1], rows.shape[2])


def test_activated_is_above_zero() -> None:
    values = torch.tensor([-1.0, -0.0, 0.0, 1e-45, 1.0, float("inf"), float("-inf")])
    assert tensors.activated(values).tolist() == [False, False, False, True, True, True, False]


def test_bit_order_is_lowest_first() -> None:
    """The order by hand: positions 0 and 9 of ten give 1 and 2."""
    values = torch.zeros(10, 1)
    values[0] = values[9] = 1
    assert packed(values, 10).tolist() == [[[1], [2]]]
    assert bits.pack(values[:, 0].numpy() > 0).tolist() == [1, 2]
    assert np.flatnonzero(bits.unpack(np.array([1, 2], np.uint8), 10)).tolist() == [0, 9]


@pytest.mark.parametrize(("positions", "expected"), [(1, 1), (8, 1), (9, 2), (2048, 256)])
def test_packed_bytes(positions: int, expected: int) -> None:
    assert bits.packed_bytes(positions) == expected


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    leading=st.lists(st.integers(0, 4), max_size=2),
    num_positions=st.integers(1, 70),
)
def test_unpack_undoes_pack(seed: int, leading: list[int], num_positions: int) -> None:
    values = np.random.default_rng(seed).random((*leading, num_positions)) < 0.5
    data = bits.pack(values)
    assert data.shape == (*leading, bits.packed_bytes(num_positions))
    assert data.dtype == np.uint8
    restored = bits.unpack(data, num_positions)
    assert restored.dtype == np.bool_
    np.testing.assert_array_equal(restored, values)
    by_hand = expected_rows(values.reshape(-1, num_positions, 1))[..., 0]
    np.testing.assert_array_equal(data.reshape(by_hand.shape), by_hand)


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_sequences=st.integers(0, 4),
    num_positions=st.integers(1, 70),
    num_neurons=st.integers(1, 80),
    padding=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES),
)
def test_pack_rows(
    seed: int,
    num_sequences: int,
    num_positions: int,
    num_neurons: int,
    padding: int,
    dtype: torch.dtype,
) -> None:
    values = make_values(seed, (num_sequences * num_positions, num_neurons), dtype, padding)
    before = values.double()
    expected = expected_rows(expected_activations(values, num_positions))
    rows = packed(values, num_positions)
    np.testing.assert_array_equal(rows.numpy(), expected)
    np.testing.assert_array_equal(values.double(), before)  # the input stays as it was

    by_torch = torch.full_like(rows, 255)
    tensors._pack_rows_torch(values, num_positions, by_torch)
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
    leading=st.lists(st.integers(0, 4), max_size=2),
    num_sequences=st.integers(0, 5),
    num_bytes=st.integers(0, 20),
    split=st.integers(0, 5),
)
def test_count(
    seed: int, leading: list[int], num_sequences: int, num_bytes: int, split: int
) -> None:
    data = random_rows(seed, *leading, num_sequences, num_bytes).numpy()
    expected = sum((data.astype(np.int64) // 2**j % 2).sum((-2, -1)) for j in range(8))
    counts = bits.count(data)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected)
    parts = bits.count(data[..., :split, :]) + bits.count(data[..., split:, :])
    np.testing.assert_array_equal(parts, expected)


def test_count_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_rows(4, 5, 3, 21).numpy()
    expected = np.unpackbits(data, axis=-1).sum((-2, -1))
    for size in (1, 63, 64, 200):
        monkeypatch.setattr(bits, "_COUNT_BLOCK", size)
        np.testing.assert_array_equal(bits.count(data), expected)


def test_count_refuses() -> None:
    with pytest.raises(ValueError, match=r"uint8 .*not bool"):
        bits.count(np.zeros((2, 3), np.bool_))
    with pytest.raises(ValueError, match=r"uint8 .*\(3,\)"):
        bits.count(np.zeros(3, np.uint8))


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


def test_unpack_refuses() -> None:
    with pytest.raises(ValueError, match="9 positions take 2 bytes, not 1"):
        bits.unpack(np.zeros((3, 1), np.uint8), 9)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_sequences=st.integers(1, 5),
    num_positions=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
)
def test_the_whole_way(
    seed: int, num_sequences: int, num_positions: int, dtype: torch.dtype
) -> None:
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


def compare_triton(device: str) -> None:
    """Compare the Triton kernels with the oracles, on a GPU or in the interpreter."""
    from neuronstats.bits import kernels_triton

    for dtype in DTYPES:
        for num_sequences, num_positions, num_neurons in [(2, 1, 5), (3, 7, 1030), (2, 70, 64)]:
            shape = (num_sequences * num_positions, num_neurons)
            values = make_values(6, shape, dtype, padding=2, device=device)
            relu = torch.relu(values)
            expected = expected_rows(expected_activations(values, num_positions))
            rows = torch.full(expected.shape, 255, dtype=torch.uint8, device=device)
            kernels_triton.pack_rows(values, num_positions, rows, relu=False)
            np.testing.assert_array_equal(rows.cpu().numpy(), expected)
            rows.fill_(255)
            kernels_triton.pack_rows(values, num_positions, rows, relu=True)
            np.testing.assert_array_equal(rows.cpu().numpy(), expected)
            assert torch.equal(values, relu)
            counts = kernels_triton.position_counts(rows).cpu().numpy()
            np.testing.assert_array_equal(counts, unpacked(expected).sum(0))
        nan = torch.tensor([[float("nan"), 1.0, -1.0, -float("nan")]], dtype=dtype, device=device)
        kernels_triton.pack_rows(nan, 1, rows.new_empty(1, 1, 4), relu=True)
        assert nan.isnan().tolist() == [[True, False, False, True]]
        assert nan[0, 1:3].tolist() == [1, 0]
    rows = random_rows(9, 30, 9, 150).to(device)
    columns = rows.new_full((150, 30, 9), 7)
    kernels_triton.transpose(rows, columns)
    assert torch.equal(columns, rows.permute(2, 0, 1))


def test_triton_kernels_interpreted() -> None:
    """In a process of its own: triton reads TRITON_INTERPRET when it is imported."""
    pytest.importorskip("triton", reason=NO_TRITON)
    done = subprocess.run(
        [sys.executable, "-c", "import test_bits; test_bits.compare_triton('cpu')"],
        cwd=Path(__file__).parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", ["i16", "i32"])
@pytest.mark.parametrize("relu", [False, True])
def test_triton_packing_compiles_to_wide_loads(
    *, relu: bool, dtype: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Compiled for an H100, which takes no GPU: the interpreter accepts what the compiler may not.

    Each thread loads 16 bytes at once, and half types need no exchange between threads.
    """
    ptx = compile_triton(
        "pack_rows_kernel",
        {"values": f"*{dtype}", "rows": "*u8", "row_stride": "i32"},
        {"relu": relu, "minus_infinity": -128, "block": 1024},
        monkeypatch,
        tmp_path,
    )
    assert ptx.count("ld.global.v4.b32") == (16 if dtype == "i32" else 8)
    assert "bar.sync" not in ptx or dtype == "i32"
    assert ptx.count("st.global.v4.b32") == (ptx.count("ld.global.v4.b32") if relu else 0)


def test_triton_counting_compiles_without_barriers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ptx = compile_triton(
        "position_counts_kernel",
        {"rows": "*u8", "counts": "*i32"},
        {"block": 512},
        monkeypatch,
        tmp_path,
    )
    assert ptx.count("st.global.v4.b32") == 8
    assert "bar.sync" not in ptx


def test_triton_transposition_compiles_to_wide_accesses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both sides of the exchange move 16 bytes at once: 128 x 128 bytes by 128 threads."""
    signature = {"rows": "*u8", "columns": "*u8"}
    ptx = compile_triton("transpose_kernel", signature, {"block": 128}, monkeypatch, tmp_path)
    assert ptx.count("ld.global.v4.b32") == ptx.count("st.global.v4.b32") == 8


def compile_triton(
    name: str,
    signature: dict[str, str],
    constants: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> str:
    """Give a kernel's PTX for pointers and row lengths that are multiples of 16."""
    pytest.importorskip("triton", reason=NO_TRITON)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from neuronstats.bits import kernels_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(kernels_triton, name)
    signature |= {n: "i32" for n in kernel.arg_names if n.startswith("num_")}
    divisible = {(kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in signature}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=divisible)
    options = {"enable_fp_fusion": False}
    return compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


@pytest.mark.parametrize("missing", [None, "package triton", "C compiler", "Python's C headers"])
def test_what_triton_needs(
    missing: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    if missing != "Python's C headers":
        (tmp_path / "Python.h").touch()
    found = None if missing == "package triton" else "spec"
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: found)
        patch.setattr("shutil.which", lambda name: None if missing == "C compiler" else name)
        patch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
        usable = tensors._find_triton.__wrapped__()
    assert usable == (missing is None)
    assert (missing or "") in caplog.text
    assert bool(caplog.text) == (missing is not None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernels_on_cuda() -> None:
    pytest.importorskip("triton", reason=NO_TRITON)
    compare_triton("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
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
