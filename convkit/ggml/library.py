"""libggml, called through ctypes, which releases Python's lock: threads quantize at the same time.

The package `libggml-python` brings the library; the extension module of `xllamacpp` exports the
same functions and serves where the other is absent. Either is tested before use: the sizes of all
types, and what a few known numbers become.

Source: ggml, `include/ggml.h` (`ggml_quantize_chunk`, `ggml_get_type_traits`, `ggml_blck_size`,
`ggml_type_size`, `ggml_quantize_requires_imatrix`, `ggml_version`).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from convkit.checkpoint.rows import Array
from convkit.errors import MissingRequirementError
from convkit.ggml.kernels.known import has_known_answer
from convkit.ggml.types import NO_WEIGHTS, TYPES, GgmlType

_PLACES = {
    "libggml": ("lib*/libggml-base.so", "lib/libggml-base.dylib", "bin/ggml-base.dll"),
    "xllamacpp": ("xllamacpp*.so", "xllamacpp*.pyd"),
}
"""Package -> where the library may lie in it."""

_TESTED = ("Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_NL")

_HINT = 'pip install "convkit-ml[gguf]"'


class _Traits(ctypes.Structure):
    """`struct ggml_type_traits`."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_length", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float", ctypes.c_void_p),
    )


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_version": (ctypes.c_char_p, ()),
    "ggml_blck_size": (ctypes.c_int64, (ctypes.c_int,)),
    "ggml_type_size": (ctypes.c_size_t, (ctypes.c_int,)),
    "ggml_get_type_traits": (ctypes.POINTER(_Traits), (ctypes.c_int,)),
    "ggml_quantize_requires_imatrix": (ctypes.c_bool, (ctypes.c_int,)),
    "ggml_quantize_chunk": (
        ctypes.c_size_t,
        (
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            *[ctypes.c_int64] * 3,
            ctypes.c_void_p,
        ),
    ),
}
"""Function -> result, arguments."""


class Library:
    """The library. Threads may call it at the same time.

    Attributes:
        path: the file it was loaded from.
        version: ggml's, `0.20.2`.
    """

    def __init__(self, path: Path) -> None:
        """Loads a library.

        Raises:
            OSError: it cannot be loaded.
            AttributeError: it lacks a function.
        """
        self.path = path
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
        self._loaded = loaded
        self.version = str(loaded.ggml_version().decode())

    def can_quantize_to(self, kind: GgmlType) -> bool:
        """Whether ggml knows how to quantize to a type; over others it would end the process."""
        return kind.name not in NO_WEIGHTS

    def requires_importance(self, kind: GgmlType) -> bool:
        """Whether a type is quantized with an importance only."""
        return bool(self._loaded.ggml_quantize_requires_imatrix(kind.number))

    def quantize_chunk(self, rows: Array, kind: GgmlType, importance: Array | None = None) -> Array:
        """Quantizes rows: uint8 (rows, bytes of a row).

        Args:
            rows: float32 (rows, length), contiguous; the length is a multiple of the block's.
            kind: the type.
            importance: float32 (length,), contiguous.

        Raises:
            ValueError: the type needs an importance, or nothing quantizes to it.
        """
        if not self.can_quantize_to(kind):
            raise ValueError(f"Nothing is quantized to {kind}.")
        if importance is None and self.requires_importance(kind):  # ggml would end the process
            raise ValueError(f"{kind} needs an importance of its elements.")
        count, length = rows.shape
        out = np.empty((count, kind.row_bytes(length)), np.uint8)
        self._loaded.ggml_quantize_chunk(
            kind.number,
            rows.ctypes.data,
            out.ctypes.data,
            0,
            count,
            length,
            None if importance is None else importance.ctypes.data,
        )
        return out

    def to_float(self, stored: Array, kind: GgmlType) -> Array:
        """Dequantizes rows: float32 (rows, length).

        Args:
            stored: uint8 (rows, bytes of a row), contiguous.
            kind: the type.

        Raises:
            ValueError: ggml does not turn the type into float32.
        """
        count, size = stored.shape
        out = np.empty((count, size // kind.block_bytes * kind.block_length), np.float32)
        convert = self._loaded.ggml_get_type_traits(kind.number).contents.to_float
        if not convert:
            raise ValueError(f"ggml does not dequantize {kind}.")
        convert(stored.ctypes.data, out.ctypes.data, out.size)
        return out

    def sizes_agree(self) -> bool:
        """Whether all types have the sizes that `types` says."""
        return all(
            self._loaded.ggml_blck_size(kind.number) == kind.block_length
            and self._loaded.ggml_type_size(kind.number) == kind.block_bytes
            for kind in TYPES.values()
        )


def library() -> Library:
    """The library, loaded and tested at the first call.

    Raises:
        MissingRequirementError: no package brings it, or it is not as expected.
    """
    found, complaints = _search()
    if found is None:
        raise MissingRequirementError(
            "libggml is not installed." if not complaints else "libggml cannot be used.",
            why=complaints or "The packages libggml-python and xllamacpp bring it.",
            hint=_HINT,
        )
    return found


def find() -> Library | None:
    """The library, or None where it is absent or not as expected."""
    return _search()[0]


@cache
def _search() -> tuple[Library | None, tuple[str, ...]]:
    """The first library that passes the test, else what is wrong with those found."""
    complaints = []
    for path in _candidates():
        try:
            loaded = Library(path)
        except (OSError, AttributeError) as cause:
            complaints.append(f"{path}: {cause}")
            continue
        complaint = _complaint(loaded)
        if not complaint:
            return loaded, ()
        complaints.append(f"{path} (ggml {loaded.version}): {complaint}")
    return None, tuple(complaints)


def _candidates() -> Iterator[Path]:
    for package, patterns in _PLACES.items():
        try:
            found = importlib.util.find_spec(package)
        except ValueError:  # it is in sys.modules without a spec
            continue
        for folder in (found.submodule_search_locations or ()) if found else ():
            for pattern in patterns:
                paths = sorted(Path(folder).glob(pattern))
                if paths and sys.platform == "win32":
                    os.add_dll_directory(str(paths[0].parent))
                yield from paths[:1]


def _complaint(loaded: Library) -> str:
    """What is not as expected; empty for a good library."""
    if not loaded.sizes_agree():
        return "sizes of types are not those known"
    for name in _TESTED:
        for is_important in (False, True):

            def quantize(rows: Array, importance: Array | None, name: str = name) -> Array:
                return loaded.quantize_chunk(rows, TYPES[name], importance)

            if not has_known_answer(quantize, name, is_important):
                return f"{name} is quantized to other bytes than known"
    return ""
