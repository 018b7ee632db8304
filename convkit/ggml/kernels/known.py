"""Numbers and what ggml quantizes them to, to test code that claims to do the same.

The checksums are of the bytes that libggml 0.20.2 and llama.cpp's own build make of `numbers()`, on
x86-64; a test compares with the installed library.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from convkit.checkpoint.rows import Array

Quantize = Callable[[Array, Array | None], Array]
"""(rows, importance of a row's elements) -> stored rows."""


def numbers() -> Array:
    """Two rows of 512: near normal, with a small, a flat, and a one-sided stretch."""
    index = np.arange(1024, dtype=np.int64)
    uniform = (index * 7919 % 4001 - 2000).astype(np.float32) / np.float32(2048)
    rows: Array = (uniform * uniform * uniform).reshape(2, 512)
    rows[0, 32:64] *= np.float32(2.0**-40)
    rows[0, 256:288] = np.float32(0.75)
    rows[1, 64:128] += np.float32(1.5)
    rows[1, 256:320] -= np.float32(1.5)
    return rows


def importance() -> Array:
    """Of the elements of a row: positive, some 0."""
    index = np.arange(512, dtype=np.int64)
    weights: Array = (index * 193 % 257).astype(np.float32) / np.float32(64)
    return weights


_CHECKSUMS = {
    "Q4_0": (0x0FED6C84, 0x9D8F915E),
    "Q4_1": (0xD918C06C, 0x94DED19F),
    "Q5_0": (0x895B5FAE, 0x1F97A07B),
    "Q5_1": (0x307B0D6A, 0xC9F07339),
    "Q8_0": (0x3D10CF0A, 0x3D10CF0A),
    "Q2_K": (0x18F3ECB7, 0xFF40DC6E),
    "Q3_K": (0x8427416D, 0x72056723),
    "Q4_K": (0x78228051, 0xB725D0B6),
    "Q5_K": (0x713818B8, 0x34685099),
    "Q6_K": (0x4B541ED1, 0xB8D7B559),
    "IQ4_NL": (0x71E507C1, 0xE2848EF0),
    "IQ4_XS": (0x35D6880F, 0x094863CF),
    "F16": (0x8C7E9041, 0x8C7E9041),
    "BF16": (0xE267C1AC, 0xE267C1AC),
}
"""Type -> CRC-32 of what is stored, without and with an importance."""


def has_known_answer(quantize: Quantize, name: str, is_important: bool) -> bool:
    """Whether `quantize` makes the known bytes of the known numbers, of the type `name`."""
    stored = quantize(numbers(), importance() if is_important else None)
    return zlib.crc32(stored.tobytes()) == _CHECKSUMS[name][is_important]
