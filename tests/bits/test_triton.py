"""The Triton kernels: interpreted, compiled for a GPU that is not here, and on one that is."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.packed import (
    DTYPES,
    THRESHOLDS,
    expected_activations,
    expected_rows,
    make_values,
    random_rows,
    unpacked,
)

from neuronstats.bits import tensors

NO_TRITON = "triton is not installed: it comes with torch's CUDA builds, elsewhere by pip"


def compare_triton(device: str) -> None:
    """Compare the Triton kernels with the oracles, on a GPU or in the interpreter."""
    from neuronstats.bits import kernels_triton

    for dtype in DTYPES:
        for num_sequences, num_positions, num_neurons in [(2, 1, 5), (3, 7, 1030), (2, 70, 64)]:
            shape = (num_sequences * num_positions, num_neurons)
            values = make_values(6, shape, dtype, padding=2, device=device)
            relu = torch.relu(values)
            for threshold in THRESHOLDS:
                limit = tensors._limit(threshold, dtype)
                rows = torch.full((num_sequences, -(-num_positions // 8), num_neurons), 255).byte()
                rows = rows.to(device)
                kernels_triton.pack_rows(values, num_positions, rows, relu=False, limit=limit)
                expected = expected_rows(expected_activations(values, num_positions, threshold))
                np.testing.assert_array_equal(rows.cpu().numpy(), expected)
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
        [sys.executable, "-c", "import test_triton; test_triton.compare_triton('cpu')"],
        cwd=Path(__file__).parent,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", ["i16", "i32"])
@pytest.mark.parametrize(
    ("relu", "limit"), [(False, (0, 0)), (True, (0, 0)), (False, (0, 99)), (False, (32767, -40))]
)
def test_triton_packing_compiles_to_wide_loads(
    *,
    relu: bool,
    limit: tuple[int, int],
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Compiled for an H100, which takes no GPU: the interpreter accepts what the compiler may not.

    Each thread loads 16 bytes at once, and half types need no exchange between threads.
    """
    ptx = compile_triton(
        "pack_rows_kernel",
        {"values": f"*{dtype}", "rows": "*u8", "row_stride": "i32"},
        {
            **{"relu": relu, "minus_infinity": -128, "block": 1024},
            **{"changed": limit[0], "limit": limit[1]},
        },
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
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and -m gpu")
def test_triton_kernels_on_cuda() -> None:
    pytest.importorskip("triton", reason=NO_TRITON)
    compare_triton("cuda")


def test_kernels_are_started_without_fusion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.9 warns at the first start else, and a warning is an error in tests."""
    pytest.importorskip("triton", reason=NO_TRITON)
    from neuronstats.bits import kernels_triton

    started: list[dict[str, Any]] = []

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *args, **kwargs: started.append(kwargs)

    for name in ("pack_rows_kernel", "transpose_kernel", "position_counts_kernel"):
        monkeypatch.setattr(kernels_triton, name, Kernel())
    rows = torch.zeros((1, 1, 8), dtype=torch.uint8)
    kernels_triton.pack_rows(torch.zeros(8, 8), 8, rows, relu=False)
    kernels_triton.transpose(rows, rows.view(8, 1, 1))
    kernels_triton.position_counts(rows)
    assert [kwargs["enable_fp_fusion"] for kwargs in started] == [False] * 3
