"""Int8 of models that continue texts: blocks of eight bits, with ONNX Runtime as judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.artifact import Opening, Precision
from convkit.formats.onnx import onnx as onnx_format
from convkit.metrics import sqnr_db
from tests.onnx_files import FLOAT, INT64, make_value, onnx
from tests.quantization.quantized_graphs import (
    float_graph,
    node,
    normal,
    operators_of,
    outputs_of,
    quantized,
)

_WIDTH, _TOKENS = 96, 300
_FEEDS = {
    "x": np.arange(60).reshape(4, 15),
    "past_key_values.0.key": np.zeros((4, 1, 0, 8), np.float32),
}


def _language_model(alpha: float = 1.0) -> Any:
    """A table, a product, and the table again as head; keys of the past are handed on."""
    nodes = [
        node("Gather", "table x", "rows"),
        node("MatMul", "rows w", "mixed", name="mixing"),
        node("Reshape", "mixed flat", "tokens"),
        node("Gemm", "tokens table", "y", name="head", transB=1, alpha=alpha),
        node("Identity", "past_key_values.0.key", "present.0.key"),
    ]
    weights = {
        "table": normal(_TOKENS, _WIDTH),
        "w": normal(_WIDTH, _WIDTH, seed=1) / 10,
        "flat": np.array([-1, _WIDTH]),
    }
    model = float_graph(nodes, weights, ["batch", "length"])
    model.graph.input[0].type.tensor_type.elem_type = INT64
    shape = ["batch", 1, "past", 8]
    model.graph.input.append(make_value("past_key_values.0.key", FLOAT, shape))
    model.graph.output.append(make_value("present.0.key", FLOAT, shape))
    return model


def test_products_and_tables_are_of_blocks_and_what_both_read_is_stored_once(
    tmp_path: Path,
) -> None:
    notes: list[str] = []
    path = quantized(_language_model(), tmp_path, note=notes.append)
    left = operators_of(path)
    assert left["MatMulNBits"] == 2
    assert not left["Gemm"] + left["MatMul"] + left["MatMulInteger"]
    described = onnx_format.describe(path, Opening())
    assert described.precision is Precision.INT8
    sizes = [np.prod(each.dims) for each in onnx.load(path).graph.initializer]
    assert sum(size >= _TOKENS * _WIDTH for size in sizes) == 1
    assert any("blocks" in text for text in notes)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_results_keep_their_values(alpha: float, tmp_path: Path) -> None:
    path = quantized(_language_model(alpha), tmp_path)
    expected, found = outputs_of(tmp_path / "float.onnx", _FEEDS), outputs_of(path, _FEEDS)
    assert sqnr_db(expected[0], found[0]) > 34  # two products and a table in 8 bits: 36 dB


def test_a_loud_channel_spoils_its_block_only(tmp_path: Path) -> None:
    """The same graph without a cache has one scale for all that is multiplied."""
    left = {}
    for has_cache in (True, False):
        model = _language_model()
        for tensor in model.graph.initializer:
            if tensor.name in ("table", "w"):
                array = onnx.numpy_helper.to_array(tensor).copy()
                if tensor.name == "table":
                    array[:, 3] *= 60
                else:
                    array[3] /= 60
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        feeds = dict(_FEEDS)
        if not has_cache:
            del model.graph.input[1], model.graph.output[1], model.graph.node[-1]
            del feeds["past_key_values.0.key"]
        path = quantized(model, tmp_path)
        expected, found = outputs_of(tmp_path / "float.onnx", feeds), outputs_of(path, feeds)
        left[has_cache] = sqnr_db(expected[0], found[0])
    assert left[True] > left[False] + 6  # a third of what it spoiled, and weights in blocks too
