"""GGUF headers: read like the reference reader does, and without trusting a byte of them."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.checkpoint.rows import Held
from convkit.errors import ModelError, UnsupportedError
from convkit.ggml.header import read_header
from convkit.ggml.magic import is_gguf
from convkit.ggml.model import GgufModel, Output, write
from convkit.ggml.types import BY_NUMBER, TYPES
from convkit.ggml.values import ARRAY, INT8, UINT64, Value, typed
from tests.material import smollm2_file

HEAD = struct.Struct("<4sIQQ")


def text(content: str) -> bytes:
    return struct.pack("<Q", len(content)) + content.encode()


def small(path: Path, **metadata: Any) -> Path:
    """A file with two tensors."""
    values = {"general.architecture": typed("llama"), **{k: typed(v) for k, v in metadata.items()}}
    tensors = (
        Output("a", Held(np.arange(12, dtype=np.float32).reshape(3, 4)), TYPES["F32"]),
        Output("b", Held(np.ones(5, np.float32)), TYPES["F16"]),
    )
    write(GgufModel(values, tensors), path)
    return path


def test_the_reference_reader_reads_what_is_written(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="PyPI gguf is not installed")
    values = {
        "general.architecture": "llama", "a.whole": 7, "a.negative": -7, "a.fraction": 0.5,
        "a.flag": True, "a.text": "grüße\u2581", "a.texts": ["x", "", "雪"], "a.numbers": [1, -2],
        "a.fractions": [0.25, 1.5], "a.wide": Value(UINT64, 1 << 40),
        "a.bytes": Value(ARRAY, np.array([1, 2], np.int8), INT8),
    }  # fmt: skip
    weights = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    outputs = (
        Output("w", Held(weights), TYPES["F32"]),
        Output("v", Held(weights[0]), TYPES["F16"]),
    )
    path = tmp_path / "m.gguf"
    write(GgufModel({k: typed(v) for k, v in values.items()}, outputs), path)
    reader = gguf.GGUFReader(path)
    for key, value in values.items():
        plain = value.content if isinstance(value, Value) else value
        found = reader.get_field(key).contents()
        assert found == (plain.tolist() if isinstance(plain, np.ndarray) else plain), key
    w, v = reader.tensors
    assert (w.name, w.tensor_type.name) == ("w", "F32")
    np.testing.assert_array_equal(w.data, weights)
    np.testing.assert_array_equal(v.data, weights[0].astype(np.float16))


@pytest.mark.slow
def test_it_says_what_the_reference_reader_says_of_a_real_file() -> None:
    gguf = pytest.importorskip("gguf", reason="PyPI gguf is not installed")
    path = smollm2_file()
    header = read_header(path)
    reader = gguf.GGUFReader(path)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert list(header.metadata) == list(fields)
    for name in fields:
        if name not in ("tokenizer.ggml.merges", "tokenizer.ggml.token_type"):  # slow in the other
            assert header.get(name) == fields[name].contents(), name
    assert [t.name for t in header.tensors] == [t.name for t in reader.tensors]
    for ours, theirs in zip(header.tensors, reader.tensors, strict=True):
        assert ours.kind is BY_NUMBER[theirs.tensor_type]
        assert ours.shape == tuple(int(size) for size in reversed(theirs.shape))
        assert (ours.begin, ours.byte_count) == (theirs.data_offset, theirs.n_bytes)


def test_types_are_those_of_the_reference() -> None:
    gguf = pytest.importorskip("gguf", reason="PyPI gguf is not installed")
    for kind in TYPES.values():
        if kind.name == "Q8_1":  # its sum is half a float in ggml.h and a whole one in gguf
            continue
        reference = gguf.GGMLQuantizationType(kind.number)
        assert reference.name == kind.name
        assert gguf.GGML_QUANT_SIZES[reference] == (kind.block_length, kind.block_bytes)


@pytest.mark.parametrize("count", [1 << 62, 1 << 40, 10**9])
@pytest.mark.parametrize("field", ["tensors", "values", "key", "string", "array", "strings"])
def test_an_absurd_count_is_refused_and_nothing_is_allocated(
    tmp_path: Path, field: str, count: int
) -> None:
    tensors, values = (count if field == "tensors" else 1), (count if field == "values" else 1)
    body = {
        "key": struct.pack("<Q", count) + b"k" * 40,
        "string": text("k") + struct.pack("<IQ", 8, count),
        "array": text("k") + struct.pack("<IIQ", 9, 4, count),
        "strings": text("k") + struct.pack("<IIQ", 9, 8, count),
    }.get(field, text("k") + struct.pack("<IQ", 10, 5))
    path = tmp_path / "m.gguf"
    path.write_bytes(HEAD.pack(b"GGUF", 3, tensors, values) + body + bytes(200))
    tracemalloc.start()
    with pytest.raises(ModelError, match=r"m\.gguf is truncated or damaged"):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = small(tmp_path / "whole.gguf", **{"k.texts": ["a", "bc"], "k.n": 3}).read_bytes()
    path = tmp_path / "cut.gguf"
    for length in range(len(whole) - 32):  # what follows the last tensor is padding
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read_header(path)


def test_every_changed_byte_of_a_header_ends_in_an_answer_or_a_model_error(tmp_path: Path) -> None:
    whole = small(tmp_path / "whole.gguf", **{"k.texts": ["a", "bc"]}).read_bytes()
    path = tmp_path / "changed.gguf"
    for place in range(read_header(tmp_path / "whole.gguf").tensors[0].begin):
        for value in (0xFF, whole[place] ^ 0x10):
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                read_header(path)
            except ModelError:
                continue


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (b"", ModelError, "is empty"),
        (b"GGML" + bytes(40), ModelError, "does not begin with 'GGUF'"),
        (HEAD.pack(b"GGUF", 1, 0, 0), UnsupportedError, "GGUF version 1"),
        (HEAD.pack(b"GGUF", 3 << 24, 0, 0), UnsupportedError, "big-endian"),
        (
            HEAD.pack(b"GGUF", 3, 0, 2) + 2 * (text("k") + struct.pack("<IB", 0, 1)),
            ModelError,
            "the key 'k' twice",
        ),
        (
            HEAD.pack(b"GGUF", 3, 1, 0) + text("t") + struct.pack("<IQIQ", 1, 32, 99, 0) + bytes(9),
            UnsupportedError,
            "ggml type 99",
        ),
        (
            HEAD.pack(b"GGUF", 3, 1, 0) + text("t") + struct.pack("<IQIQ", 1, 33, 2, 0) + bytes(99),
            ModelError,
            r"no blocks of Q4_0",
        ),
        (
            HEAD.pack(b"GGUF", 3, 1, 0) + text("t") + struct.pack("<IQIQ", 1, 4, 0, 8) + bytes(99),
            ModelError,
            "no multiple of 32",
        ),
        (
            HEAD.pack(b"GGUF", 3, 0, 1) + text("general.alignment") + struct.pack("<II", 4, 7),
            ModelError,
            "alignment is 7",
        ),
        (
            HEAD.pack(b"GGUF", 3, 0, 1)
            + text("k")
            + struct.pack("<I", 9)
            + 8 * struct.pack("<IQ", 9, 1),
            ModelError,
            "nests",
        ),
    ],
    ids=["empty", "magic", "old", "big-endian", "key", "type", "blocks", "offset", "align", "nest"],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, content: bytes, error: type[ModelError], says: str
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(error, match=says):
        read_header(path)


def test_a_split_model_is_read_as_one(tmp_path: Path) -> None:
    for number in (0, 1):
        path = tmp_path / f"m-{number + 1:05}-of-00002.gguf"
        metadata = {"split.no": typed(number), "split.count": typed(2)}
        weights = Held(np.full((2, 4), number, np.float32))
        write(GgufModel(metadata, (Output(f"t{number}", weights, TYPES["F32"]),)), path)
    header = read_header(tmp_path / "m-00001-of-00002.gguf")
    assert [(t.name, t.path.name) for t in header.tensors] == [
        ("t0", "m-00001-of-00002.gguf"),
        ("t1", "m-00002-of-00002.gguf"),
    ]
    with pytest.raises(ModelError, match=r"part 2 of a model") as caught:
        read_header(tmp_path / "m-00002-of-00002.gguf")
    assert "m-00001-of-00002.gguf" in caught.value.hint
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelError, match=r"m-00002-of-00002\.gguf is missing"):
        read_header(tmp_path / "m-00001-of-00002.gguf")


def test_other_files_are_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"GG")
    assert not is_gguf(tmp_path / "x")
    assert not is_gguf(tmp_path)
