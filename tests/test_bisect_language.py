"""A planted error is found in language models, whose graphs also take a cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convkit import graph, library
from convkit.bisect import Divergence
from convkit.exposing import ExposedGraph
from tests.onnx_language_folders import changed_weight, huggingface_folder, onnx_folder

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return huggingface_folder("llama", tmp_path_factory.mktemp("source") / "llama")


@pytest.fixture(scope="module")
def faithful(source: Path) -> Path:
    return onnx_folder(source, source.with_name("llama-onnx"))


@pytest.fixture(scope="module")
def changed(faithful: Path) -> Path:
    return changed_weight(faithful, faithful.with_name("changed-onnx"), WEIGHT, 1.5)


def found(reference: Path, candidate: Path) -> Divergence:
    verdict = library.verify(reference, candidate, bisect=True)
    assert not verdict.passed
    assert verdict.divergence is not None
    return verdict.divergence


def test_the_changed_weight_is_found_between_folders(faithful: Path, changed: Path) -> None:
    where = found(faithful, changed)
    assert (where.tensor, where.op_type) == ("layer_1/feed_forward/up", "Gemm")
    assert where.last_agreeing == "layer_1/norm/normalized_2"


def test_the_changed_weight_is_found_in_half_precision(changed: Path, tmp_path: Path) -> None:
    half = library.convert(changed, to="onnx", precision="fp16", out=tmp_path / "half")
    where = found(changed.with_name("llama-onnx"), half.artifact.path)
    assert where.tensor == "layer_1/feed_forward/up"


def test_modules_of_pytorch_are_found_by_the_weights_they_hold(source: Path, changed: Path) -> None:
    where = found(source, changed)
    assert where.tensor == "layer_1/feed_forward/up"
    assert where.counterpart == "model.layers.1.mlp.up_proj"
    assert where.last_agreeing == "layer_1/norm/normalized_2"


@pytest.mark.slow  # exports a program
def test_the_changed_weight_is_found_in_what_was_made_of_a_folder(
    faithful: Path, changed: Path, tmp_path: Path
) -> None:
    library.convert(changed, to="torch", out=tmp_path / "changed.pt2")
    assert found(faithful, tmp_path / "changed.pt2").tensor == "layer_1/feed_forward/up"


def test_an_error_of_the_cache_alone_is_told_as_such(faithful: Path, tmp_path: Path) -> None:
    model = onnx.load(faithful / "model.onnx")
    turned = onnx.helper.make_node("Neg", ["past_key_values.1.key"], ["turned"])
    reader = next(node for node in model.graph.node if "past_key_values.1.key" in node.input)
    reader.input[list(reader.input).index("past_key_values.1.key")] = "turned"
    model.graph.node.insert(0, turned)
    out = tmp_path / "broken"
    out.mkdir()
    onnx.save(model, out / "model.onnx")
    (out / "config.json").write_bytes((faithful / "config.json").read_bytes())
    verdict = library.verify(faithful, out, bisect=True)
    assert not verdict.passed
    assert verdict.divergence is None
    assert any("the candidate's cache" in note for note in verdict.notes)


def test_the_graph_of_a_folder_is_asked_as_the_folder_is(faithful: Path) -> None:
    exposed = ExposedGraph(graph.detect(faithful))
    with library.load(faithful) as runner:
        feeds = runner.example({"batch_size": 2, "sequence_length": 5}, 0)
    shown = exposed.run(["layer_0/attention/key"], feeds)
    assert shown["layer_0/attention/key"].shape == (10, 16)  # tokens, heads x size
    assert shown["present.1.value"].shape == (2, 2, 5, 8)


@pytest.mark.slow  # traces the network
def test_scopes_are_found_inside_the_module_that_exports_a_cache(tmp_path: Path) -> None:
    source = huggingface_folder("gpt_neox", tmp_path / "neox")
    made = library.convert(source, to="onnx")
    path = made.artifact.path
    model = onnx.load(path / "model.onnx")
    scope = "layers.1.mlp.dense_h_to_4h"
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    node = next(n for n in products if any(scope in p.value for p in n.metadata_props))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name in node.input)
    array = onnx.numpy_helper.to_array(weight) * np.float32(1.5)
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(model, path / "model.onnx")
    where = found(source, path)
    assert where.counterpart == "gpt_neox.layers.1.mlp.dense_h_to_4h"
