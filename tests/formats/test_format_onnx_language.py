from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit import graph, library
from convkit.artifact import Opening, Precision
from convkit.errors import ModelError, SamplesError, StepError, UnsafeError, UnsupportedError
from convkit.formats.onnx import onnx as onnx_format
from convkit.formats.onnx_language import OnnxLanguageRunner
from convkit.formats.torch import matches as is_torch
from convkit.onnx_folder import graph_file, text_folder
from convkit.step import Runner
from tests.language_models import SPECIAL, VOCABULARY_SIZE, write_tokenizer

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

SIZE = 4
CONFIG = {"architectures": ["TinyForCausalLM"], "model_type": "tiny", "n_positions": 32}
TEXT = ("batch_size", "sequence_length")
PAST: Sequence[int | str] = ("batch_size", 1, "past_sequence_length", SIZE)
TABLE = np.random.default_rng(0).standard_normal((VOCABULARY_SIZE, SIZE)).astype(np.float32)
HEAD = np.random.default_rng(1).standard_normal((SIZE, VOCABULARY_SIZE)).astype(np.float32)


def expected(ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What `write_graph` computes, in numpy: the sum of all embeddings so far, through a head."""
    positions = np.arange(ids.shape[1])[None, :, None]
    return np.cumsum((TABLE[ids] + positions) * mask[..., None], axis=1) @ HEAD


def write_graph(
    path: Path,
    *,
    has_cache: bool = True,
    extra: Sequence[tuple[str, int, Sequence[int | str]]] = (),
    past: Sequence[int | str] = PAST,
    dtype: int = 1,
    location: str = "",
) -> Path:
    """A language model of one layer: keys are masked embeddings plus positions, values alike.

    Logits are the running sum of the keys in the cache and of the new ones, through a head.
    """
    helper, types = onnx.helper, onnx.TensorProto
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    total = ("batch_size", "past_sequence_length + sequence_length")
    inputs = [("input_ids", types.INT64, TEXT), ("attention_mask", types.INT64, total)]
    inputs += [("position_ids", types.INT64, TEXT), *extra]
    outputs = [("logits", dtype, (*TEXT, VOCABULARY_SIZE))]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Unsqueeze", ["position_ids", "last"], ["places"]),
        helper.make_node("Cast", ["places"], ["positions"], to=dtype),
        helper.make_node("Add", ["embedded", "positions"], ["placed"]),
        helper.make_node("Shape", ["input_ids"], ["length"], start=1),
        helper.make_node("Neg", ["length"], ["back"]),
        helper.make_node("Slice", ["attention_mask", "back", "end", "one"], ["own_mask"]),
        helper.make_node("Unsqueeze", ["own_mask", "last"], ["mask_column"]),
        helper.make_node("Cast", ["mask_column"], ["kept"], to=dtype),
        helper.make_node("Mul", ["placed", "kept"], ["masked"]),
        helper.make_node("Unsqueeze", ["masked", "one"], ["new"]),
        helper.make_node("CumSum", ["new", "two"], ["running"]),
    ]
    if has_cache:
        for part in ("key", "value"):
            inputs.append((f"past_key_values.0.{part}", dtype, past))
            outputs.append((f"present.0.{part}", dtype, (*total[:1], 1, total[1], SIZE)))
            names = [f"past_key_values.0.{part}", "new"]
            nodes.append(helper.make_node("Concat", names, [f"present.0.{part}"], axis=2))
        nodes += [
            helper.make_node("ReduceSum", ["past_key_values.0.key", "two"], ["before"]),
            helper.make_node("Add", ["running", "before"], ["sums"]),
        ]
    nodes += [
        helper.make_node("Squeeze", ["sums" if has_cache else "running", "one"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "head"], ["logits"]),
    ]
    constants: Mapping[str, Any] = {
        "table": TABLE.astype(kind),
        "head": HEAD.astype(kind),
        "last": np.array([-1]),
        "one": np.array([1]),
        "two": np.array([2]),
        "end": np.array([2**31]),
    }
    made = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(*spec) for spec in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    if location:
        onnx.external_data_helper.convert_model_to_external_data(model, location=location)
    onnx.save(model, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = write_tokenizer(tmp_path / "model")
    (path / "config.json").write_text(json.dumps(CONFIG))
    write_graph(path / "model.onnx")
    return path


def opened(path: Path) -> OnnxLanguageRunner:
    runner: Runner = library.load(path)
    assert isinstance(runner, OnnxLanguageRunner)
    return runner


def test_a_folder_is_described_by_what_it_takes_and_gives_from_outside(folder: Path) -> None:
    artifact, described = library.inspect(folder)
    assert (artifact.format, artifact.precision) == ("onnx", Precision.FP32)
    assert [str(spec) for spec in described.inputs] == [
        "input_ids: int64[batch_size, sequence_length]",
        "attention_mask: int64[batch_size, sequence_length]",
    ]
    assert [str(spec) for spec in described.outputs] == [
        f"logits: float32[batch_size, sequence_length, {VOCABULARY_SIZE}]"
    ]
    told = {
        name: described.details[name] for name in ("architecture", "context_length", "tokenizer")
    }
    assert told == {
        "architecture": "TinyForCausalLM",
        "context_length": 32,
        "tokenizer": "with a chat template",
    }
    assert described.details["kv_cache"] == (
        "2 tensors of float32[batch_size, 1, past_sequence_length, 4]"
    )
    assert artifact.size_bytes() == sum(file.stat().st_size for file in folder.iterdir())
    with opened(folder) as runner:
        assert (runner.inputs, runner.outputs) == (described.inputs, described.outputs)


def test_a_batch_is_computed_with_the_cache_as_without(folder: Path) -> None:
    with opened(folder) as runner:
        for batch, length in ((1, 1), (1, 2), (3, 9)):
            feeds = runner.example({"batch_size": batch, "sequence_length": length}, 0)
            assert feeds["input_ids"].shape == (batch, length)
            got = runner(feeds)["logits"]
            want = expected(feeds["input_ids"], feeds["attention_mask"])
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_what_the_cache_loses_shows_in_a_call(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    for node in model.graph.node:
        if node.output[0] == "present.0.key":
            node.input[0] = "new"  # instead of what came before
    onnx.save(model, folder / "model.onnx")
    with opened(folder) as runner:
        feeds = runner.example({"batch_size": 1, "sequence_length": 6}, 0)
        got = runner(feeds)["logits"]
        wrong = np.abs(got - expected(feeds["input_ids"], feeds["attention_mask"])).max(axis=-1)
        assert wrong[0, :3].max() < 1e-3
        assert wrong[0, -1] > 0.1


def test_a_session_feeds_text_piece_by_piece(folder: Path) -> None:
    ids = np.array([0, 5, 9, 7, 300, 2])
    want = expected(ids[None], np.ones((1, 6)))[0]
    with opened(folder) as runner:
        session = runner.session()
        got = [session.feed(piece) for piece in ([0, 5, 9], [7], [300, 2])]
        assert [piece.shape[0] for piece in got] == [3, 1, 2]
        np.testing.assert_allclose(np.concatenate(got), want, rtol=1e-4, atol=1e-4)
        with pytest.raises(StepError, match="holds 32 tokens, 33 are wanted"):
            session.feed([1] * 27)


def test_examples_are_rows_of_text_where_there_is_a_tokenizer(folder: Path) -> None:
    sizes = {"batch_size": 2, "sequence_length": 9}
    with opened(folder) as runner:
        feeds = runner.example(sizes, 0)
        assert (feeds["input_ids"][:, 0] == SPECIAL.index("<s>")).all()
        assert feeds["attention_mask"].tolist() == [[1] * 9, [1] * 6 + [0] * 3]
    (folder / "tokenizer.json").unlink()
    with opened(folder) as runner:
        feeds = runner.example(sizes, 0)
        assert 0 <= feeds["input_ids"].min() <= feeds["input_ids"].max() < VOCABULARY_SIZE
        with pytest.raises(ModelError, match="There is no tokenizer in"):
            runner.encode("text")


def test_a_single_file_is_a_language_model_as_well(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "alone.onnx")
    assert graph.detect(path).inputs[0].shape == TEXT
    with opened(path) as runner:
        ids = [3, 1, 4, 1, 5]
        want = expected(np.array([ids]), np.ones((1, 5)))[0]
        np.testing.assert_allclose(runner.session().feed(ids), want, rtol=1e-4, atol=1e-4)
        assert runner.context_length is None


def test_the_tokenizer_may_lie_one_folder_higher(folder: Path) -> None:
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "model.onnx")
    assert graph_file(folder) == folder / "onnx" / "model.onnx"
    assert text_folder(folder / "onnx" / "model.onnx") == folder
    for path in (folder, folder / "onnx" / "model.onnx"):
        with opened(path) as runner:
            assert runner.decode(runner.encode("The ferry")) == "The ferry"


def test_a_graph_without_cache_is_one_where_the_configuration_says_so(folder: Path) -> None:
    write_graph(folder / "model.onnx", has_cache=False)
    ids = [3, 1, 4, 1, 5]
    want = expected(np.array([ids]), np.ones((1, 5)))[0]
    with opened(folder) as runner:
        assert not runner.has_cache
        session = runner.session()
        got = [session.feed(ids[:2]), session.feed(ids[2:])]
        np.testing.assert_allclose(np.concatenate(got), want, rtol=1e-4, atol=1e-4)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"architectures": ["BertModel"]}))
    with library.load(folder) as plain:
        assert not isinstance(plain, OnnxLanguageRunner)
        assert [spec.name for spec in plain.inputs][-1] == "position_ids"


def test_weights_beside_the_graph_are_read_from_its_folder_only(folder: Path) -> None:
    write_graph(folder / "model.onnx", location="model.onnx.data")
    assert graph.detect(folder).data_files == (folder / "model.onnx.data",)
    with opened(folder) as runner:
        assert runner.session().feed([1, 2]).shape == (2, VOCABULARY_SIZE)
    outside = folder.parent / "secret.data"
    shutil.move(folder / "model.onnx.data", outside)
    (folder / "model.onnx.data").symlink_to(outside)
    with pytest.raises(UnsafeError, match="outside its folder"):
        graph.detect(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "saved_model.pb"])
def test_a_folder_with_weights_of_another_format_is_left_to_it(folder: Path, name: str) -> None:
    assert onnx_format.matches(folder, Opening())
    assert not is_torch(folder, Opening())
    (folder / name).write_bytes(b"")
    assert not onnx_format.matches(folder, Opening())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"extra": [("use_cache_branch", 9, (1,))]}, "two graphs in one"),
        ({"past": ("batch_size", 1, 16, SIZE)}, "no lengths that vary"),
        ({"past": ("batch_size", "heads", "past", SIZE)}, "2 lengths that vary"),
    ],
)
def test_caches_that_cannot_be_fed_are_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = write_graph(tmp_path / "model.onnx", **changes)
    library.inspect(path)
    with pytest.raises(UnsupportedError, match=words):
        library.load(path)


def test_a_graph_with_other_inputs_is_no_language_model(tmp_path: Path) -> None:
    extra = [("encoder_hidden_states", 1, ("batch_size", 3, 4))]
    path = write_graph(tmp_path / "decoder.onnx", extra=extra)
    assert len(graph.detect(path).inputs) == 6


def test_feeds_that_do_not_fit_are_told_as_seen_from_outside(folder: Path) -> None:
    with opened(folder) as runner, pytest.raises(SamplesError) as caught:
        runner({"input_ids": np.ones((1, 3), np.int64)})
    assert "missing  attention_mask" in caught.value.why


@pytest.mark.parametrize(("code", "dtype"), [(10, "float16"), (16, "bfloat16")])
def test_true_half_rounding_goes_through_the_cache(tmp_path: Path, code: int, dtype: str) -> None:
    path = write_graph(tmp_path / "half.onnx", dtype=code)
    artifact = graph.detect(path)
    assert str(artifact.precision) == {"float16": "fp16", "bfloat16": "bf16"}[dtype]
    assert onnx_format.open_exact is not None
    with onnx_format.open_exact(artifact) as runner:
        assert isinstance(runner, OnnxLanguageRunner)
        feeds = runner.example({"batch_size": 2, "sequence_length": 7}, 0)
        got = runner(feeds)["logits"]
        assert got.dtype.name == dtype
        want = expected(feeds["input_ids"], feeds["attention_mask"])
        # Eleven or eight bits in each of a few roundings.
        scale = np.abs(want).max()
        error = np.abs(got.astype(np.float32) - want).max() / scale
        assert 0 < error < (4e-3 if dtype == "float16" else 3e-2)
        assert runner.session().feed([1, 2]).dtype == np.float32


def test_fp16_with_its_cache_runs_on_the_usual_runtime(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "half.onnx", dtype=10)
    with opened(path) as runner:
        feeds = runner.example({"batch_size": 2, "sequence_length": 7}, 0)
        got = runner(feeds)["logits"]
        want = expected(feeds["input_ids"], feeds["attention_mask"])
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, want, rtol=0, atol=4e-3 * np.abs(want).max())


def test_manifest_and_data_follow_a_folder(folder: Path) -> None:
    artifact = graph.detect(folder)
    assert replace(artifact).manifest_path == folder.with_name("model.convkit.json")
    assert folder / "tokenizer.json" in artifact.files()
