"""ONNX graphs for benchmarks and their explanations, quantized well and badly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_GENERATOR = np.random.default_rng(0)
SCALES = {"s": np.float32(0.02), "z": np.uint8(128)}


def save(
    path: Path,
    nodes: Sequence[Any],
    constants: Mapping[str, Any],
    shape: Sequence[int | str],
    dtype: int = TensorProto.FLOAT,
) -> Path:
    """Writes a graph from `x` of this shape to `y`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, [None] * len(shape))],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save(model, path)
    return path


def pair(value: str, tag: str) -> tuple[list[Any], str]:
    """QuantizeLinear and DequantizeLinear behind a value, and the value after them."""
    nodes = [
        helper.make_node("QuantizeLinear", [value, "s", "z"], [f"{tag}_q"], name=f"{tag}_Q"),
        helper.make_node("DequantizeLinear", [f"{tag}_q", "s", "z"], [f"{tag}_d"], name=f"{tag}_D"),
    ]
    return nodes, f"{tag}_d"


def elu_chain(path: Path, *, is_quantized: bool) -> Path:
    """Four Elu, for which there is no int8 kernel; between them Q and DQ, if it is quantized."""
    nodes, value = [], "x"
    for number in range(4):
        nodes.append(helper.make_node("Elu", [value], [f"e{number}"], name=f"elu{number}"))
        value = f"e{number}"
        if is_quantized and number < 3:
            between, value = pair(value, f"elu{number}")
            nodes += between
    nodes.append(helper.make_node("Identity", [value], ["y"], name="end"))
    return save(path, nodes, SCALES if is_quantized else {}, ["n", 1024])


def mixed_types(path: Path, size: int = 512) -> Path:
    """A MatMul from uint8 to int8 whose product is used twice."""
    constants = {
        **SCALES,
        "rz": np.int8(0),
        "w": _GENERATOR.integers(-127, 127, (size, size)).astype(np.int8),
        "ws": np.float32(0.001),
    }
    before, value = pair("x", "in")
    nodes = [
        *before,
        helper.make_node("DequantizeLinear", ["w", "ws", "rz"], ["wd"], name="weights"),
        helper.make_node("MatMul", [value, "wd"], ["m"], name="matmul"),
        helper.make_node("QuantizeLinear", ["m", "s", "rz"], ["q"], name="out_Q"),
        helper.make_node("DequantizeLinear", ["q", "s", "rz"], ["left"], name="left_D"),
        helper.make_node("DequantizeLinear", ["q", "s", "rz"], ["right"], name="right_D"),
        helper.make_node("Elu", ["left"], ["e"], name="elu"),
        helper.make_node("Erf", ["right"], ["f"], name="erf"),
        helper.make_node("Add", ["e", "f"], ["y"], name="add"),
    ]
    return save(path, nodes, constants, ["n", size])


def matrix_chain(path: Path, *, rounds_products: bool, size: int = 1024, count: int = 3) -> Path:
    """MatMul and Relu in turn, with Q and DQ on inputs and weights.

    Args:
        path: where it goes.
        rounds_products: whether they stand on the products too; the runtime fuses only then.
        size: of the square matrices.
        count: of them.
    """
    constants: dict[str, Any] = dict(SCALES)
    nodes: list[Any] = []
    value = "x"
    for n in range(count):
        constants[f"w{n}"] = _GENERATOR.integers(-127, 127, (size, size)).astype(np.int8)
        constants |= {f"ws{n}": np.float32(0.001), f"wz{n}": np.int8(0)}
        before, value = pair(value, f"in{n}")
        weights = [f"w{n}", f"ws{n}", f"wz{n}"]
        nodes += [
            *before,
            helper.make_node("DequantizeLinear", weights, [f"wd{n}"], name=f"weights{n}"),
            helper.make_node("MatMul", [value, f"wd{n}"], [f"m{n}"], name=f"matmul{n}"),
        ]
        value = f"m{n}"
        if rounds_products:
            after, value = pair(value, f"out{n}")
            nodes += after
        nodes.append(helper.make_node("Relu", [value], [f"r{n}"], name=f"relu{n}"))
        value = f"r{n}"
    nodes.append(helper.make_node("Identity", [value], ["y"], name="end"))
    return save(path, nodes, constants, ["n", size])


def block_chain(path: Path, accuracy_level: int | None, size: int = 1024) -> Path:
    """Two MatMulNBits of 4 bits."""
    constants: dict[str, Any] = {}
    nodes = []
    attributes = {"K": size, "N": size, "bits": 4, "block_size": 32}
    if accuracy_level is not None:
        attributes["accuracy_level"] = accuracy_level
    for number, value, result in ((0, "x", "m"), (1, "m", "y")):
        blocks = (size, size // 32, 16)
        constants[f"w{number}"] = _GENERATOR.integers(0, 255, blocks).astype(np.uint8)
        constants[f"s{number}"] = np.full(size * size // 32, 0.01, np.float32)
        nodes.append(
            helper.make_node(
                "MatMulNBits",
                [value, f"w{number}", f"s{number}"],
                [result],
                name=f"blocks{number}",
                domain="com.microsoft",
                **attributes,
            )
        )
    return save(path, nodes, constants, ["n", size])


def half_precision(path: Path) -> Path:
    """MatMul, Erf, MatMul in float16."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Erf", ["a"], ["b"], name="between"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="last"),
    ]
    weights = _GENERATOR.standard_normal((256, 256)).astype(np.float16)
    return save(path, nodes, {"w": weights}, ["n", 256], TensorProto.FLOAT16)


def convolutions(path: Path, batch: int | str = "batch") -> Path:
    """Two convolutions with Relu, Elu and pooling: (batch, 3, 32, 32) to (batch, 16, 1, 1)."""
    weights = {
        "w1": _GENERATOR.standard_normal((16, 3, 3, 3), np.float32),
        "w2": _GENERATOR.standard_normal((16, 16, 3, 3), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Elu", ["c"], ["d"], name="elu"),
        helper.make_node("GlobalAveragePool", ["d"], ["y"], name="pool"),
    ]
    return save(path, nodes, weights, [batch, 3, 32, 32])


def padded_convolution(path: Path) -> Path:
    """A quantized convolution whose padding is an operator of its own."""
    constants = {
        **SCALES,
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "w": _GENERATOR.integers(-127, 127, (16, 16, 3, 3)).astype(np.int8),
        "ws": np.float32(0.001),
        "wz": np.int8(0),
    }
    first, value = pair("x", "in")
    nodes = [*first, helper.make_node("Pad", [value, "pads"], ["p"], name="pad")]
    between, value = pair("p", "padded")
    behind, result = pair("c", "out")
    nodes += [
        *between,
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="weights"),
        helper.make_node("Conv", [value, "wd"], ["c"], name="conv"),
        *behind,
        helper.make_node("Identity", [result], ["y"], name="end"),
    ]
    return save(path, nodes, constants, ["n", 16, 64, 64])
