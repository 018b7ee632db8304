from __future__ import annotations

import ctypes
import importlib.util
import math
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.errors import ModelError, SamplesError
from convkit.ggml.header import read_header
from convkit.ggml.importance import Importance, SquaredInputs
from convkit.ggml.importance_file import (
    read_importance,
    write_importance,
    write_legacy_importance,
)
from convkit.ggml.types import SCHEMES, TYPES
from tests.ggml import oracle, synthetic

gguf = pytest.importorskip("gguf", reason="gguf writes files for comparison")
GENERATOR = np.random.default_rng(0)


def _drawn(*shape: int) -> Any:
    return GENERATOR.random(shape, np.float32) + np.float32(0.01)


def _mixtral() -> Importance:
    return Importance(
        {
            "blk.0.attn_q.weight": SquaredInputs(_drawn(1, 8), [384]),
            "blk.0.ffn_down_exps.weight": SquaredInputs(_drawn(3, 16), [100, 0, 668]),
            "blk.1.attn_q.weight": SquaredInputs(_drawn(1, 8), [384]),
        },
        ("first.txt", "zweiter Text.txt"),
        3,
        128,
    )


def _legacy(*entries: tuple[str, int, Any], tail: bytes = b"") -> bytes:
    content = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        content += struct.pack("<i", len(name)) + name.encode()
        content += struct.pack("<ii", calls, len(values))
        content += struct.pack(f"<{len(values)}f", *values)
    return content + tail


def test_a_legacy_file_holds_means_times_calls(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    tail = struct.pack("<ii", 24, 9) + b"calib.txt"
    path.write_bytes(
        _legacy(("blk.0.ffn_up.weight", 4, [2, 4, 6]), ("output.weight", 1, [0.5]), tail=tail)
    )
    importance = read_importance(path)
    assert (importance.datasets, importance.chunk_count) == (("calib.txt",), 24)
    assert list(importance.entries) == ["blk.0.ffn_up.weight", "output.weight"]
    assert importance.entries["blk.0.ffn_up.weight"].means.tolist() == [[0.5, 1.0, 1.5]]
    assert importance.entries["output.weight"].means.tolist() == [[0.5]]


def test_a_legacy_file_may_end_after_its_entries(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(_legacy(("blk.0.ffn_up.weight", 2, [2, 4])))
    importance = read_importance(path)
    assert (importance.datasets, importance.chunk_count) == ((), 0)


def test_values_without_calls_are_means_already(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(_legacy(("blk.0.ffn_up.weight", 0, [2, 4])))
    assert read_importance(path).entries["blk.0.ffn_up.weight"].means.tolist() == [[2, 4]]


class _Writer(gguf.GGUFWriter):  # type: ignore[misc]
    def add_architecture(self) -> None:
        """llama-imatrix writes none."""


def _write_gguf(path: Path, tensors: dict[str, Any], kind: str = "imatrix") -> Path:
    writer = _Writer(path, "")
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["a.txt", "b.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_holds_sums_and_counts(tmp_path: Path) -> None:
    sums, counts = _drawn(3, 16), np.float32([[5], [0], [7]])
    tensors = {
        "blk.0.ffn_down_exps.weight.counts": counts,
        "blk.0.ffn_down_exps.weight.in_sum2": sums,
        "blk.0.ffn_down_exps.weight.in_sum": _drawn(3, 16),
    }
    importance = read_importance(_write_gguf(tmp_path / "imatrix.gguf", tensors))
    assert importance.datasets == ("a.txt", "b.txt")
    assert (importance.chunk_count, importance.chunk_size) == (7, 512)
    assert list(importance.entries) == ["blk.0.ffn_down_exps.weight"]
    means = importance.entries["blk.0.ffn_down_exps.weight"].means
    assert (means[0] == sums[0] / np.float32(5)).all()
    assert (means[1] == 1).all()
    assert (means[2] == sums[2] / np.float32(7)).all()


def test_a_written_file_is_what_llama_imatrix_writes(tmp_path: Path) -> None:
    importance = _mixtral()
    write_importance(importance, tmp_path / "imatrix.gguf")
    reader = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items() if "." in name}
    assert {name: value for name, value in fields.items() if not name.startswith("GGUF")} == {
        "general.type": "imatrix",
        "imatrix.datasets": ["first.txt", "zweiter Text.txt"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 128,
    }
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors["blk.0.ffn_down_exps.weight.in_sum2"].shape.tolist() == [16, 3]
    assert tensors["blk.0.ffn_down_exps.weight.counts"].shape.tolist() == [1, 3]
    for name, inputs in importance.entries.items():
        assert tensors[f"{name}.in_sum2"].data.tobytes() == inputs.sums.tobytes()
        assert tensors[f"{name}.counts"].data.tobytes() == inputs.counts.tobytes()


def test_a_gguf_file_comes_back_as_it_was(tmp_path: Path) -> None:
    importance = _mixtral()
    write_importance(importance, tmp_path / "imatrix.gguf")
    read = read_importance(tmp_path / "imatrix.gguf")
    assert (read.datasets, read.chunk_count, read.chunk_size) == (importance.datasets, 3, 128)
    assert read.entries.keys() == importance.entries.keys()
    for name, inputs in importance.entries.items():
        assert (read.entries[name].sums == inputs.sums).all()
        assert (read.entries[name].counts == inputs.counts).all()


def test_a_legacy_file_keeps_means_and_says_one_for_idle_experts(tmp_path: Path) -> None:
    importance = _mixtral()
    idle = SquaredInputs(np.zeros((2, 4)), [0, 0])
    importance = Importance({**importance.entries, "idle": idle}, ("a.txt", "b.txt"), 3, 128)
    path = tmp_path / "imatrix.dat"
    write_legacy_importance(importance, path)
    content = path.read_bytes()
    assert struct.unpack_from("<i", content) == (3,)
    assert content.endswith(struct.pack("<ii", 3, 5) + b"b.txt")
    name = b"blk.0.ffn_down_exps.weight"
    # 668 inputs are six chunks of 128, the last one not full.
    assert struct.pack("<i", 26) + name + struct.pack("<ii", 6, 48) in content
    read = read_importance(path)
    assert "idle" not in read
    for entry, inputs in read.entries.items():
        # Times calls and divided again: one rounding each.
        means = importance.entries[entry].means.reshape(1, -1)
        np.testing.assert_allclose(inputs.means, means, rtol=2**-22)


def test_experts_weigh_their_matrices_and_a_dense_stack_shares_its_count() -> None:
    sums = _drawn(2, 8)
    importance = Importance(
        {
            "blk.0.ffn_up_exps.weight": SquaredInputs(sums, [2, 4]),
            "blk.0.attn_k_b.weight": SquaredInputs(sums.reshape(1, 16), [4]),
        }
    )
    experts = importance.weights_of("blk.0.ffn_up_exps.weight", (2, 5, 8))
    dense = importance.weights_of("blk.0.attn_k_b.weight", (2, 5, 8))
    assert experts is not None
    assert dense is not None
    assert (experts == sums / np.float32([[2], [4]])).all()
    assert (dense == sums / np.float32(4)).all()
    assert importance.weights_of("blk.1.attn_k_b.weight", (2, 5, 8)) is None


def test_stacked_experts_keep_their_order() -> None:
    parts = [SquaredInputs(_drawn(1, 8), [count]) for count in (3, 0, 5)]
    stacked = SquaredInputs.stacked(parts)
    assert stacked.counts.tolist() == [3, 0, 5]
    assert (stacked.sums[2] == parts[2].sums[0]).all()


def test_data_of_another_model_do_not_fit() -> None:
    inputs = SquaredInputs(_drawn(1, 8), [2])
    importance = Importance({"blk.0.attn_q.weight": inputs, "token_embd.weight": inputs})
    with pytest.raises(SamplesError, match=r"blk\.0\.attn_q\.weight.*1 x 16 columns.*have 8"):
        importance.weights_of("blk.0.attn_q.weight", (4, 16))
    assert importance.weights_of("token_embd.weight", (4, 16)) is None


def test_llama_cpp_weighs_each_expert_with_its_own_data(tmp_path: Path) -> None:
    pytest.importorskip("cyllama", reason=oracle.IS_MISSING)
    spec = importlib.util.find_spec("libggml")
    if spec is None or spec.origin is None:
        pytest.skip("libggml-python quantizes for comparison")
    header = read_header(synthetic.write("llama-4-experts", tmp_path / "model.gguf", rows=16))
    shapes = {one.name: one.shape for one in header.tensors if one.name.startswith("blk.0.ffn")}
    importance = Importance(
        {name: SquaredInputs(_drawn(4, shape[-1]), [1, 0, 9, 2]) for name, shape in shapes.items()}
    )
    write_importance(importance, tmp_path / "imatrix.gguf")
    read = read_importance(tmp_path / "imatrix.gguf")
    flat = {name: inputs.means.ravel() for name, inputs in read.entries.items() if "exps" in name}
    job = oracle.Job(header.path, tmp_path / "out.gguf", SCHEMES["q4_0"].file_type, importance=flat)
    assert oracle.quantize([job]) == [""]
    library = ctypes.CDLL(str(Path(spec.origin).parent / "lib64" / "libggml-base.so"))
    sources, written = oracle.stored(header.path), oracle.stored(job.out)
    for name in flat:
        kind, content = written[name]
        weights = read.weights_of(name, shapes[name])
        values = np.frombuffer(sources[name][1], np.float32).reshape(shapes[name])
        assert content == b"".join(
            _quantized(library, kind, matrix, row)
            for matrix, row in zip(values, weights, strict=True)
        )


def _quantized(library: Any, kind: str, matrix: Any, weights: Any) -> bytes:
    rows, length = matrix.shape
    matrix, weights = np.ascontiguousarray(matrix), np.ascontiguousarray(weights)
    out = ctypes.create_string_buffer(rows * TYPES[kind].row_bytes(length))
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (matrix, weights)]
    sizes = [ctypes.c_int64(size) for size in (0, rows, length)]
    library.ggml_quantize_chunk(TYPES[kind].number, pointers[0], out, *sizes, pointers[1])
    return out.raw


@pytest.mark.parametrize("suffix", ["gguf", "dat"])
def test_a_file_cut_anywhere_is_refused_or_complete(suffix: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    write = write_importance if suffix == "gguf" else write_legacy_importance
    write(_mixtral(), whole)
    content = whole.read_bytes()
    # The oldest files end after their entries: a file cut there is one of them.
    tail = len(struct.pack("<ii", 0, 0)) + len("zweiter Text.txt")
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        if suffix == "dat" and length == len(content) - tail:
            assert read_importance(cut).entries
            continue
        if suffix == "gguf" and len(content) - length <= 32 - 4:
            continue  # padding behind the last tensor, a count of four bytes
        with pytest.raises(ModelError):
            read_importance(cut)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<i", 2**31 - 1),
        struct.pack("<i", -1) + bytes(64),
        struct.pack("<ii", 1, 2**31 - 1) + bytes(64),
        struct.pack("<ii3s", 1, 3, b"abc") + struct.pack("<ii", 1, 2**31 - 1) + bytes(64),
        struct.pack("<ii3s", 1, 3, b"abc") + struct.pack("<ii", 1, -1) + bytes(64),
    ],
)
def test_absurd_counts_allocate_nothing(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ModelError, match="holds no importance data, or is damaged"):
        read_importance(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2**20


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    model = synthetic.write("qwen2", tmp_path / "model.gguf")
    with pytest.raises(ModelError, match="of the kind 'qwen2'"):
        read_importance(model)
    text = tmp_path / "calibration.txt"
    text.write_text("This is the text, not what was made of it." * 9)
    with pytest.raises(ModelError, match="holds no importance data"):
        read_importance(text)
    with pytest.raises(ModelError, match="cannot be read"):
        read_importance(tmp_path / "missing.dat")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no importance data"),
        ({"a.in_sum2": np.ones((1, 4), np.float32)}, "'a' has sums but no counts"),
        ({"a.counts": np.ones((1, 1), np.float32)}, r"'a\.counts' has no sums"),
        (
            {"a.in_sum2": np.ones((2, 4), np.float32), "a.counts": np.ones((3, 1), np.float32)},
            "'a' has 2 sums, 3 counts",
        ),
        (
            {"a.in_sum2": np.ones((1, 4), np.float16), "a.counts": np.ones((1, 1), np.float32)},
            "is F16, not F32",
        ),
        (
            {
                "a.in_sum2": np.float32([[1, math.nan]]),
                "a.counts": np.ones((1, 1), np.float32),
            },
            "'a' are not finite",
        ),
    ],
)
def test_data_that_contradict_themselves_are_refused(
    tensors: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        read_importance(_write_gguf(tmp_path / "imatrix.gguf", tensors))


def test_a_gguf_file_of_another_type_is_named(tmp_path: Path) -> None:
    path = _write_gguf(tmp_path / "adapter.gguf", {"a": np.ones((1, 1), np.float32)}, "adapter")
    with pytest.raises(ModelError, match="of the kind 'adapter'"):
        read_importance(path)
