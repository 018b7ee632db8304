"""A planted error is found between ONNX and what other frameworks made of it, by kept names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit import graph
from convkit.artifact import Artifact
from convkit.bisect import Divergence, first_divergence
from convkit.errors import UsageError
from convkit.step import Work

onnx = pytest.importorskip("onnx", reason="models are built with the onnx package")
pytest.importorskip("onnxruntime", reason="models are run with ONNX Runtime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

DEPTH, CHANNELS = 5, 4


def _conv_chain(path: Path, perturbed: int | None = None) -> Artifact:
    """DEPTH convolutions with Relu, then a mean; one weight may be another."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for i in range(DEPTH):
        weight = rng.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / 4
        weight[0, 0, 1, 1] += 0.7 * (i == perturbed)
        weights.append(numpy_helper.from_array(weight, f"weight{i}"))
        nodes += [
            helper.make_node(
                "Conv", [value, f"weight{i}"], [f"conv{i}"], f"node_conv{i}", pads=[1, 1, 1, 1]
            ),
            helper.make_node("Relu", [f"conv{i}"], [f"relu{i}"], f"node_relu{i}"),
        ]
        value = f"relu{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["y"], "node_mean"))
    floats = onnx.TensorProto.FLOAT
    made = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", floats, ["batch", CHANNELS, 8, 9])],
        [helper.make_tensor_value_info("y", floats, ["batch", CHANNELS, 1, 1])],
        weights,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return graph.detect(path)


def _samples() -> list[dict[str, np.ndarray[Any, Any]]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((n, CHANNELS, 8, 9)).astype(np.float32)} for n in (1, 3, 2)]


def _converted(source: Artifact, step: str, out: Path) -> Artifact:
    """The result of one converter, as the pipeline would open it."""
    rung = graph.discover().step(step).rungs[0]
    rung.run(source, out, Work(_samples(), _load, lambda note: None, lambda *progress: None))
    return graph.detect(out)


def _load(artifact: Artifact) -> Any:
    load = graph.discover().format(artifact.format).load
    assert load is not None
    return load(artifact)


def _found(reference: Artifact, candidate: Artifact) -> Divergence | None:
    return first_divergence(reference, candidate, _samples(), load=_load, limit_db=80.0)


@pytest.mark.parametrize("layer", [0, 2, DEPTH - 1])
def test_the_changed_weight_is_found_in_a_pytorch_program(tmp_path: Path, layer: int) -> None:
    pytest.importorskip("torch", reason="runs the program")
    reference = _conv_chain(tmp_path / "a.onnx")
    changed = _conv_chain(tmp_path / "b.onnx", layer)
    found = _found(reference, _converted(changed, "onnx-to-torch", tmp_path / "b.pt2"))
    assert found is not None
    assert (found.tensor, found.node) == (f"conv{layer}", f"node_conv{layer}")
    assert found.last_agreeing == (None if layer == 0 else f"relu{layer - 1}")


def test_the_changed_weight_is_found_in_a_folder_of_pytorch_source(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="runs the network")
    reference = _conv_chain(tmp_path / "a.onnx")
    changed = _converted(_conv_chain(tmp_path / "b.onnx", 2), "onnx-to-torch", tmp_path / "b")
    trusted = replace(changed, opening=replace(changed.opening, trust=True))
    found = _found(reference, trusted)
    assert found is not None
    assert (found.tensor, found.node, found.last_agreeing) == ("conv2", "node_conv2", "relu1")
    faithful = _converted(reference, "onnx-to-torch", tmp_path / "a")
    assert _found(reference, replace(faithful, opening=trusted.opening)) is None


def test_a_faithful_pytorch_program_does_not_part(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="runs the program")
    reference = _conv_chain(tmp_path / "a.onnx")
    assert _found(reference, _converted(reference, "onnx-to-torch", tmp_path / "a.pt2")) is None


def test_the_changed_weight_is_found_in_a_savedmodel_whose_channels_stand_last(
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorflow", reason="runs the SavedModel")
    reference = _conv_chain(tmp_path / "a.onnx")
    changed = _conv_chain(tmp_path / "b.onnx", 2)
    found = _found(reference, _converted(changed, "onnx-to-savedmodel", tmp_path / "b"))
    assert found is not None
    assert (found.tensor, found.node) == ("conv2", "node_conv2")
    assert found.last_agreeing == "relu1"
    faithful = _converted(reference, "onnx-to-savedmodel", tmp_path / "a")
    assert _found(reference, faithful) is None


@pytest.mark.slow  # Keras, TensorFlow and tf2onnx are imported
@pytest.mark.parametrize("kind", ["keras", "savedmodel"])
def test_the_changed_weight_is_found_in_onnx_made_from_tensorflow(
    tmp_path: Path, kind: str
) -> None:
    pytest.importorskip("tf2onnx", reason="converts the Keras model")
    from tests import tf_models

    make = tf_models.save_keras if kind == "keras" else tf_models.save_keras_as_savedmodel
    source = graph.detect(make("fnn", tmp_path))
    rng = np.random.default_rng(2)
    feeds = [
        {spec.name: rng.standard_normal((n, 20)).astype(np.float32) for spec in source.inputs}
        for n in (1, 3)
    ]
    out = tmp_path / "m.onnx"
    rung = graph.discover().step(f"{kind}-to-onnx").rungs[0]
    rung.run(source, out, Work(feeds, _load, lambda note: None, lambda *progress: None))
    assert first_divergence(source, graph.detect(out), feeds, load=_load) is None
    model = onnx.load(out)
    weights = [t for t in model.graph.initializer if list(t.dims) == [64, 32]]
    assert len(weights) == 1
    array = numpy_helper.to_array(weights[0]).copy()
    array[3, 5] += 2
    weights[0].CopyFrom(numpy_helper.from_array(array, weights[0].name))
    onnx.save(model, out)
    found = first_divergence(source, graph.detect(out), feeds, load=_load)
    assert found is not None
    maker = next(node for node in model.graph.node if found.tensor in node.output)
    touched = {weights[0].name}  # the product itself, or the addition it was fused with
    assert touched & {name for name in maker.input} or maker.op_type in ("Add", "Gemm")
    assert "dense_1" in found.tensor


def test_models_without_common_names_are_refused(tmp_path: Path) -> None:
    onnx_file = _conv_chain(tmp_path / "a.onnx")
    other = Artifact(tmp_path / "m.gguf", "gguf", onnx_file.precision)
    with pytest.raises(UsageError, match="onnx and gguf cannot be matched"):
        _found(onnx_file, other)
