"""libggml: found in two packages, tested before use, refused with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from convkit.errors import MissingRequirementError
from convkit.ggml import library
from convkit.ggml.kernels import known
from convkit.ggml.types import TYPES, GgmlType

pytest.importorskip("libggml", reason="libggml-python is not installed")


@pytest.fixture
def _anew() -> Iterator[None]:
    library._search.cache_clear()
    yield
    library._search.cache_clear()


def test_the_version_is_ggmls() -> None:
    from packaging.version import Version

    assert Version(library.library().version) >= Version("0.20")


@pytest.mark.usefixtures("_anew")
def test_xllamacpp_serves_where_libggml_python_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    given = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    expected = library.library().quantize_chunk(given, TYPES["Q4_K"])
    library._search.cache_clear()
    monkeypatch.delitem(library._PLACES, "libggml")
    second = library.library()
    assert second.path.name.startswith("xllamacpp")
    assert np.array_equal(second.quantize_chunk(given, TYPES["Q4_K"]), expected)
    assert np.array_equal(
        second.to_float(expected, TYPES["Q4_K"]),
        library.Library(next(library._candidates())).to_float(expected, TYPES["Q4_K"]),
    )


@pytest.mark.usefixtures("_anew")
def test_a_missing_library_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_PLACES", {"no_such_package": ("*.so",)})
    assert library.find() is None
    with pytest.raises(MissingRequirementError, match="libggml is not installed") as caught:
        library.library()
    assert caught.value.exit_code == 4
    assert caught.value.hint == 'pip install "convkit-ml[gguf]"'


@pytest.mark.usefixtures("_anew")
def test_a_file_that_is_no_library_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "libggml-base.so"
    broken.write_bytes(b"\x7fELF")
    monkeypatch.setattr(library, "_candidates", lambda: iter([broken]))
    with pytest.raises(MissingRequirementError, match="libggml cannot be used") as caught:
        library.library()
    assert str(broken) in caught.value.why[0]


@pytest.mark.usefixtures("_anew")
def test_a_library_with_other_sizes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = GgmlType("Q4_0", 2, 32, 20)
    monkeypatch.setattr(library, "TYPES", {**TYPES, "Q4_0": other})
    with pytest.raises(MissingRequirementError, match="cannot be used") as caught:
        library.library()
    assert "sizes of types are not those known" in caught.value.why[0]


@pytest.mark.usefixtures("_anew")
def test_a_library_that_quantizes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known._CHECKSUMS, "Q6_K", (1, 1))
    with pytest.raises(MissingRequirementError) as caught:
        library.library()
    assert "Q6_K is quantized to other bytes than known" in caught.value.why[0]


@pytest.mark.parametrize("name", known._CHECKSUMS)
def test_known_answers_are_those_of_the_installed_library(name: str) -> None:
    loaded = library.library()
    for is_important in (False, True):
        assert known.has_known_answer(
            lambda rows, importance: loaded.quantize_chunk(rows, TYPES[name], importance),
            name,
            is_important,
        )
