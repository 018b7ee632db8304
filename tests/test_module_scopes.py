"""Tensors of a graph are matched with the modules whose outputs they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from convkit.artifact import Artifact, Precision
from convkit.exposing import ExposedGraph
from convkit.module_scopes import module_values

onnx = pytest.importorskip("onnx", reason="models are built with the onnx package")
helper = onnx.helper


def _graph(path: Path, nodes: list[tuple[str, list[str], str, dict[str, Any]]]) -> ExposedGraph:
    made = []
    for op_type, inputs, output, facts in nodes:
        node = helper.make_node(op_type, inputs, [output], name=facts.get("name", ""))
        for key, value in facts.get("metadata", {}).items():
            node.metadata_props.add(key=key, value=str(value))
        made.append(node)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(made, "g", [value("x", 1, [4])], [value(nodes[-1][2], 1, [4])])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return ExposedGraph(Artifact(path, "onnx", Precision.FP32))


def _exported(*scopes: str) -> dict[str, Any]:
    return {"metadata": {"pkg.torch.onnx.name_scopes": ["", *scopes, "op"]}}


def _scripted(*elements: str) -> dict[str, Any]:
    return {"metadata": {"pkg.onnxscript.name_scopes": ["", *elements]}}


def test_output_of_a_module_is_its_last_value_that_is_read_outside(tmp_path: Path) -> None:
    graph = _graph(
        tmp_path / "m.onnx",
        [
            ("Neg", ["x"], "a", _exported("block", "block.linear")),
            ("Abs", ["a"], "b", _exported("block", "block.linear")),
            ("Relu", ["b"], "c", _exported("block", "block.act")),
            ("Add", ["c", "x"], "d", _exported("block")),
            ("Exp", ["d"], "e", _exported("head")),
        ],
    )
    modules = ["block", "block.linear", "block.act", "head"]
    found = module_values(graph, modules)
    assert found == {"b": "block.linear", "c": "block.act", "d": "block", "e": "head"}


def test_node_names_of_the_older_exporter_tell_scopes(tmp_path: Path) -> None:
    graph = _graph(
        tmp_path / "m.onnx",
        [
            ("Neg", ["x"], "a", {"name": "/block.0/linear/Neg"}),
            ("Relu", ["a"], "b", {"name": "/block.0/Relu"}),
            ("Exp", ["b"], "c", {"name": "/Exp"}),
        ],
    )
    found = module_values(graph, ["block.0", "block.0.linear"])
    assert found == {"a": "block.0.linear", "b": "block.0"}


def test_scope_that_leaves_elements_out_belongs_to_the_one_module_that_fits(
    tmp_path: Path,
) -> None:
    graph = _graph(
        tmp_path / "m.onnx",
        [
            ("Neg", ["x"], "q", _scripted("layer.0", "attention", "query")),
            ("Abs", ["q"], "o", _scripted("layer.0", "attention", "dense")),
            ("Relu", ["o"], "i", _scripted("layer.0", "intermediate", "dense")),
            ("Exp", ["i"], "d", _scripted("layer.0", "dense")),
        ],
    )
    modules = [
        "layer.0.attention.self.query",
        "layer.0.attention.output.dense",
        "layer.0.intermediate.dense",
        "layer.0.output.dense",
    ]
    assert module_values(graph, modules) == dict(zip(["q", "o", "i", "d"], modules, strict=True))


def test_scope_that_fits_two_modules_is_left_out(tmp_path: Path) -> None:
    graph = _graph(
        tmp_path / "m.onnx",
        [("Neg", ["x"], "a", _scripted("block", "dense")), ("Exp", ["a"], "b", {})],
    )
    assert module_values(graph, ["block.up.dense", "block.down.dense"]) == {}


def test_node_that_lost_its_scope_is_placed_between_its_neighbours(tmp_path: Path) -> None:
    """A fused Add reads inside the module; the value it reads is not the module's output."""
    graph = _graph(
        tmp_path / "m.onnx",
        [
            ("Neg", ["x"], "v_emb.words.Neg_0", _scripted("emb", "words")),
            ("Abs", ["v_emb.words.Neg_0"], "v_emb.Abs_1", _scripted("emb")),
            ("Relu", ["v_emb.Abs_1"], "fused", {}),
            ("Exp", ["fused"], "v_emb.norm.Exp_2", {}),
            ("Sin", ["v_emb.norm.Exp_2"], "v_layer.Sin_3", _scripted("layer")),
        ],
    )
    found = module_values(graph, ["emb", "emb.words", "layer"])
    assert found["v_emb.norm.Exp_2"] == "emb"
    assert "v_emb.Abs_1" not in found
