"""Quantizing gives ggml's bits: of libggml, and in the floating-point types."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from convkit.errors import MissingRequirementError
from convkit.ggml import kernels, library
from convkit.ggml.kernels import known
from convkit.ggml.quantize import NotFiniteError, implementation, quantize
from convkit.ggml.types import TYPES, GgmlType
from tests.ggml.quantized_rows import SCHEME_TYPES, float32, importances, rows

Array = np.ndarray[Any, Any]

pytest.importorskip("libggml", reason="libggml-python is not installed: nothing to compare with")


def differing(kind: GgmlType, length: int, count: int, seed: int) -> list[str]:
    """The cases in which our bytes are not libggml's."""
    wrong = []
    for weight, importance in importances(length, seed):
        for name, values in rows(length, count, seed):
            given = float32(values, length)
            ours = quantize(given, kind, importance)
            if not np.array_equal(ours, library.library().quantize_chunk(given, kind, importance)):
                wrong.append(f"{name}, importance {weight}, length {length}")
    return wrong


@pytest.mark.parametrize("name", SCHEME_TYPES)
def test_rows_become_the_bytes_of_libggml(name: str) -> None:
    pytest.importorskip("llvmlite", reason="llvmlite is not installed: libggml itself would serve")
    kind = TYPES[name]
    for is_important in (False, True):
        assert implementation(kind, is_important=is_important) == "vectors"
    assert not differing(kind, 3 * kind.block_length, 2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEME_TYPES)
def test_rows_of_any_length_become_the_bytes_of_libggml(name: str) -> None:
    kind = TYPES[name]
    wrong = differing(kind, kind.block_length, 17, seed=2)
    wrong += differing(kind, 2048, 3, seed=3)
    assert not wrong


@pytest.mark.parametrize("name", ["Q4_K", "IQ4_NL", pytest.param("Q3_K", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("processor", "features"), [("haswell", "+avx2,+fma"), ("x86-64", "+sse2")]
)
def test_narrower_vectors_compute_the_same(
    name: str, processor: str, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the narrower vectors are those of x86-64")
    binding = pytest.importorskip("llvmlite.binding")
    host = binding.get_host_cpu_features()
    if not all(host.get(feature[1:]) for feature in features.split(",")):
        pytest.skip(f"this processor lacks {features}")
    monkeypatch.setattr(binding, "get_host_cpu_name", lambda: processor)
    monkeypatch.setattr(
        binding, "get_host_cpu_features", lambda: type("", (), {"flatten": lambda self: features})()
    )
    monkeypatch.setattr(kernels, "_found", {})
    kind = TYPES[name]
    length = 2 * kind.block_length
    _, importance = list(importances(length, 4))[1]
    for weights in (None, importance):
        for case, values in rows(length, 2, 4):
            given = float32(values, length)
            expected = library.library().quantize_chunk(given, kind, weights)
            assert np.array_equal(quantize(given, kind, weights), expected), case


@pytest.mark.parametrize("name", ["F16", "BF16"])
@pytest.mark.parametrize(("length", "way"), [(1024, "vectors"), (1001, "numpy")])
def test_floating_point_types_round_as_libggml_does(name: str, length: int, way: str) -> None:
    assert way == "numpy" or implementation(TYPES[name], is_important=False) == way
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, (64, length), dtype=np.uint32)
    bits[0, :8] = (
        0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7F800001, 0x477FEFFF, 0x477FF000, 1,
    )  # fmt: skip
    given = bits.view(np.float32)
    expected = library.library().quantize_chunk(given, TYPES[name])
    assert np.array_equal(quantize(given, TYPES[name]), expected)


def test_float32_stays_as_it_is() -> None:
    given = np.arange(12, dtype=np.float32).reshape(3, 4)
    given[1] = (np.nan, np.inf, -0.0, 1e-45)
    assert quantize(given, TYPES["F32"]).tobytes() == given.tobytes()


def test_types_without_a_kernel_are_quantized_by_libggml() -> None:
    given = np.random.default_rng(0).standard_normal((2, 512)).astype(np.float32)
    assert implementation(TYPES["IQ3_S"], is_important=False) == "libggml"
    assert quantize(given, TYPES["IQ3_S"]).shape == (2, 220)
    assert quantize(given, TYPES["IQ2_XXS"], np.ones(512, np.float32)).shape == (2, 132)


def test_arrays_of_any_layout_are_quantized() -> None:
    given = np.random.default_rng(0).standard_normal((512, 6)).astype(np.float64).T
    expected = quantize(np.ascontiguousarray(given, np.float32), TYPES["Q4_K"])
    assert np.array_equal(quantize(given, TYPES["Q4_K"]), expected)
    frozen = np.frombuffer(np.ascontiguousarray(given, np.float32).tobytes(), np.float32)
    assert np.array_equal(quantize(frozen.reshape(6, 512), TYPES["Q4_K"]), expected)
    for name in ("Q4_K", "IQ3_S", "F16"):
        kind = TYPES[name]
        assert quantize(np.empty((0, 512), np.float32), kind).shape == (0, kind.row_bytes(512))
        assert quantize(np.empty((3, 0), np.float32), kind).shape == (3, 0)


def test_threads_quantize_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_found", {})  # so that they ask for the kernel at the same time
    given = np.random.default_rng(0).standard_normal((64, 2048)).astype(np.float32)
    expected = library.library().quantize_chunk(given, TYPES["Q6_K"])
    parts: dict[int, Array] = {}

    def work(number: int) -> None:
        parts[number] = quantize(given[number * 16 : (number + 1) * 16], TYPES["Q6_K"])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(np.concatenate([parts[number] for number in range(4)]), expected)


def test_importing_loads_no_compiler() -> None:
    code = "import sys, convkit.ggml.dequantize, convkit.ggml.quantize as q; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"llvmlite", "numba", "libggml"} & set(loaded)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_quantizing_in_two_threads_takes_little_memory() -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from convkit.ggml.quantize import quantize
from convkit.ggml.types import TYPES
from convkit.resources import peak_rss_bytes
rows = np.ones((128, 4096), np.float32)
with ThreadPoolExecutor(2) as pool:
    list(pool.map(lambda name: quantize(rows, TYPES[name]), ["Q4_K", "Q6_K"] * 4))
print(peak_rss_bytes())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak_mib = int(done.stdout) / 2**20
    # 135 when measured: 30 of numpy and convkit, 40 of LLVM as loaded, 60 of LLVM as it compiles.
    assert peak_mib < 200


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(number: float) -> None:
    given = np.ones((3, 256), np.float32)
    given[2, 7] = number
    with pytest.raises(NotFiniteError, match=f"Element 7 of row 2 is {number}: Q4_K"):
        quantize(given, TYPES["Q4_K"])


def test_rows_that_do_not_divide_into_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="Rows of 300 elements do not divide into blocks of 256"):
        quantize(np.ones((2, 300), np.float32), TYPES["Q4_K"])


def test_an_importance_that_does_not_fit_is_refused() -> None:
    given = np.ones((2, 256), np.float32)
    with pytest.raises(ValueError, match="does not fit rows of 256"):
        quantize(given, TYPES["Q4_K"], np.ones(255, np.float32))
    with pytest.raises(ValueError, match="finite and not negative"):
        quantize(given, TYPES["Q4_K"], np.full(256, -1, np.float32))
    with pytest.raises(ValueError, match="IQ2_XXS needs an importance"):
        quantize(given, TYPES["IQ2_XXS"])
    with pytest.raises(ValueError, match="Nothing is quantized to Q8_K"):
        quantize(given, TYPES["Q8_K"])


def hide_llvmlite(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("convkit.ggml.kernels.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    monkeypatch.setattr(kernels, "_found", {})


def test_without_llvmlite_libggml_quantizes(monkeypatch: pytest.MonkeyPatch) -> None:
    given = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
    expected = {name: quantize(given, TYPES[name]) for name in SCHEME_TYPES}
    hide_llvmlite(monkeypatch)
    for name, stored in expected.items():
        assert implementation(TYPES[name], is_important=False) == "libggml"
        assert np.array_equal(quantize(given, TYPES[name]), stored)


def test_without_libggml_kernels_quantize(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llvmlite")
    given = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
    expected = {name: library.library().quantize_chunk(given, TYPES[name]) for name in SCHEME_TYPES}
    monkeypatch.setattr(library, "_search", lambda: (None, ()))
    for name, stored in expected.items():
        assert np.array_equal(quantize(given, TYPES[name]), stored)
    assert implementation(TYPES["IQ3_S"], is_important=False) == "nothing"
    with pytest.raises(MissingRequirementError, match="libggml is not installed") as caught:
        quantize(given, TYPES["IQ3_S"])
    assert caught.value.hint == 'pip install "convkit-ml[gguf]"'


def test_a_kernel_that_computes_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_found", {})
    monkeypatch.setitem(known._CHECKSUMS, "Q4_K", (0, 0))
    assert kernels.find(TYPES["Q4_K"], is_important=False) is None
    assert implementation(TYPES["Q4_K"], is_important=False) == "libggml"
