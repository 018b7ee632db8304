"""Nodes that multiply with weights in blocks, and that look up their rows.

Each function gives the nodes that take the place of one; constants are made once per weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.quantization.blocks import Blocks, packed, packed_zeros
from convkit.quantization.graph_edits import constant, home_of

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
Constants = dict[tuple[Any, str], tuple[Any, ...]]
"""(weight, form) -> its constants."""

_MICROSOFT = "com.microsoft"


def operator_product(
    node: ir.Node, blocks: Blocks, accuracy_level: int, constants: Constants
) -> list[ir.Node]:
    """A product as MatMulNBits.

    Args:
        node: MatMul or Gemm.
        blocks: its weight.
        accuracy_level: 4 rounds what is multiplied to eight bits, as int8 kernels need.
        constants: made so far.

    Source: onnxruntime, docs/ContribOperators.md, MatMulNBits.
    """
    import onnx_ir as ir

    weight = node.inputs[1]
    levels, scales, zeros = _constants_of(node, weight, blocks, constants)
    made = ir.node(
        "MatMulNBits",
        [node.inputs[0], levels, scales, zeros],
        attributes={
            "K": blocks.length,
            "N": len(blocks.levels),
            "bits": blocks.bits,
            "block_size": blocks.block,
            "accuracy_level": accuracy_level,
        },
        domain=_MICROSOFT,
        name=node.name,
    )
    if blocks.offsets is None:
        return _with_bias(node, [made])
    return _with_bias(node, _with_offsets(node, made, blocks, constants))


def _with_offsets(
    node: ir.Node, product: ir.Node, blocks: Blocks, constants: Constants
) -> list[ir.Node]:
    """Adds the product of offsets with sums of blocks, which readers of a value share.

        sum_k x_k (scale (level_k - middle) + offset) =
            sum_k x_k scale (level_k - middle) + sum_blocks offset (sum_k x_k)

    Zero points of MatMulNBits that are floats say the same a hundred times slower, and whole ones
    are coarser (ONNX Runtime 1.31 on a processor).
    """
    import onnx_ir as ir

    assert blocks.offsets is not None
    data, weight = node.inputs[0], node.inputs[1]
    assert data is not None
    assert weight is not None
    key = (weight, "offsets")
    if key not in constants:
        turned = np.ascontiguousarray(blocks.offsets.T)
        constants[key] = (constant(home_of(weight, node), f"{weight.name}_offsets", turned),)
    made = []
    place = (data, f"sums of {blocks.block} in {id(node.graph)}")
    if place not in constants:
        rank = len(data.shape or ())
        shape = np.array([*[0] * (rank - 1), blocks.levels.shape[1], blocks.block], np.int64)
        axis = np.array([rank], np.int64)
        graph = home_of(weight, node)
        shaped = ir.node("Reshape", [data, constant(graph, f"{node.name}_blocks", shape)])
        summed = ir.node(
            "ReduceSum",
            [shaped.outputs[0], constant(graph, f"{node.name}_axis", axis)],
            attributes={"keepdims": 0},
        )
        for each in (shaped, summed):
            each.name = f"{node.name}_{each.op_type}"
        made = [shaped, summed]
        constants[place] = (summed.outputs[0],)
    name = node.name
    product.name = f"{name}_levels"
    rest = ir.node("MatMul", [constants[place][0], constants[key][0]], name=f"{name}_offsets")
    return [*made, product, rest, ir.node("Add", [product.outputs[0], rest.outputs[0]], name=name)]


def blocked_product(node: ir.Node, blocks: Blocks, constants: Constants) -> list[ir.Node]:
    """A product with a DequantizeLinear of blocks in front, as TensorRT reads it.

    Source: ONNX Operators.md, DequantizeLinear of opset 21, block_size.
    """
    import ml_dtypes
    import onnx_ir as ir

    weight = node.inputs[1]
    key = (weight, "blocked")
    if key not in constants:
        assert weight is not None
        graph, name = home_of(weight, node), weight.name or ""
        dtype = ml_dtypes.int4 if blocks.bits == 4 else np.int8
        levels = blocks.levels.reshape(len(blocks.levels), -1)[:, : blocks.length]
        centred = levels.astype(np.int16) - (1 << (blocks.bits - 1))
        turned = np.ascontiguousarray(centred.T).astype(np.int8).astype(dtype)
        constants[key] = (
            constant(graph, f"{name}_blocks", turned),
            constant(graph, f"{name}_scales", np.ascontiguousarray(blocks.scales.T)),
        )
    levels_value, scales_value = constants[key]
    unpacking = ir.node(
        "DequantizeLinear",
        [levels_value, scales_value],
        attributes={"axis": 0, "block_size": blocks.block},
        name=f"{node.name}_weight",
    )
    _type(unpacking, (blocks.length, len(blocks.levels)))
    product = ir.node("MatMul", [node.inputs[0], unpacking.outputs[0]], name=node.name)
    return _with_bias(node, [unpacking, product])


def product_of_codes(
    node: ir.Node, rows: Array, kind: str, block: int, constants: Constants
) -> list[ir.Node]:
    """A product as MatMulBnb4: codes of nf4 or fp4, the largest magnitude of each block.

    Source: onnxruntime, docs/ContribOperators.md, MatMulBnb4: the weight is flattened as
    (outputs, inputs); quant_type 0 is FP4, 1 is NF4.
    """
    import onnx_ir as ir

    from convkit.quantization.bitsandbytes_blocks import four_bits

    weight = node.inputs[1]
    key = (weight, kind)
    if key not in constants:
        assert weight is not None
        codes, largest = four_bits(rows.reshape(-1), kind, block)
        graph, name = home_of(weight, node), weight.name or ""
        constants[key] = (
            constant(graph, f"{name}_{kind}", codes),
            constant(graph, f"{name}_absmax", largest.astype(np.float32)),
        )
    made = ir.node(
        "MatMulBnb4",
        [node.inputs[0], *constants[key]],
        attributes={
            "K": rows.shape[1],
            "N": rows.shape[0],
            "block_size": block,
            "quant_type": int(kind == "nf4"),
            "training_mode": 0,
        },
        domain=_MICROSOFT,
        name=node.name,
    )
    return _with_bias(node, [made])


def rows_of_table(node: ir.Node, blocks: Blocks, constants: Constants) -> list[ir.Node]:
    """Rows of a table, looked up in blocks and unpacked.

    GatherBlockQuantized does the same thirty times slower (ONNX Runtime 1.31 on a processor).
    """
    import onnx_ir as ir

    table, ids = node.inputs
    levels, scales, zeros = _constants_of(node, table, blocks, constants)
    made: list[ir.Node] = []

    def add(op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        each = ir.node(op_type, list(inputs), attributes=attributes)
        each.name = f"{node.name}_{op_type}_{len(made)}"
        _type(each)
        made.append(each)
        return each.outputs[0]

    def number(name: str, array: Array) -> ir.Value:
        return constant(home_of(levels, node), f"{node.name}_{name}", array)

    rank = len(ids.shape) if ids is not None and ids.shape is not None else 0
    taken = add("Gather", levels, ids)
    values = add("Cast", taken, to=ir.DataType.FLOAT)
    made[0].outputs[0].type = ir.TensorType(ir.DataType.UINT8)
    if blocks.bits == 4:
        values = _both_halves(values, add, number)
    shape = [0] * rank if rank else []
    count = blocks.levels.shape[1]
    shaped = number("blocks", np.array([*shape, count, blocks.block], np.int64))
    values = add("Reshape", values, shaped)
    middle = number("middle", np.array(1 << (blocks.bits - 1), np.float32))
    if zeros is not None:
        raise AssertionError("tables have no zero points")
    values = add("Sub", values, middle)
    factors = add("Gather", scales, ids)
    wide = number("each", np.array([*shape, count, 1], np.int64))
    values = add("Mul", values, add("Reshape", factors, wide))
    whole = number("row", np.array([*shape, count * blocks.block], np.int64))
    add("Reshape", values, whole)
    if count * blocks.block != blocks.length:
        _cut(add, number, made[-1].outputs[0], blocks.length)
    made[0].name = node.name
    return made


def _both_halves(
    values: ir.Value, add: Callable[..., ir.Value], number: Callable[..., ir.Value]
) -> ir.Value:
    """Bytes as floats, (..., bytes), to the two levels in each: (..., bytes, 2)."""
    sixteen = number("sixteen", np.array(16, np.float32))
    upper = add("Floor", add("Div", values, sixteen))
    lower = add("Sub", values, add("Mul", upper, sixteen))
    last = number("last", np.array([-1], np.int64))
    return add("Concat", add("Unsqueeze", lower, last), add("Unsqueeze", upper, last), axis=-1)


def _cut(
    add: Callable[..., ir.Value], number: Callable[..., ir.Value], rows: ir.Value, length: int
) -> None:
    """Leaves what filled up the last block."""
    ends = [number(f"end_{place}", np.array([place], np.int64)) for place in (0, length)]
    add("Slice", rows, *ends, number("axis", np.array([-1], np.int64)))


def _constants_of(
    node: ir.Node, weight: ir.Value | None, blocks: Blocks, constants: Constants
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Levels, scales and zero points as initializers, made once for all that read them."""
    assert weight is not None
    key = (weight, "operator")
    if key not in constants:
        graph, name = home_of(weight, node), weight.name or ""
        zeros = None
        if blocks.zeros is not None:
            zeros = constant(graph, f"{name}_zeros", packed_zeros(blocks.zeros, blocks.bits))
        constants[key] = (
            constant(graph, f"{name}_q{blocks.bits}", packed(blocks.levels, blocks.bits)),
            constant(graph, f"{name}_scales", blocks.scales),
            zeros,
        )
    levels, scales, zeros = constants[key]
    return levels, scales, zeros


def _with_bias(node: ir.Node, made: list[ir.Node]) -> list[ir.Node]:
    """Adds what a Gemm adds, and says what is computed."""
    import onnx_ir as ir

    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        made[-1].name = f"{node.name}_product"
        made.append(ir.node("Add", [made[-1].outputs[0], bias], name=node.name))
    for each in made:
        if each.outputs[0].type is None:
            _type(each)
        each.outputs[0].name = f"{each.name}_output"
    return made


def _type(node: ir.Node, shape: tuple[int, ...] | None = None) -> None:
    import onnx_ir as ir

    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].name = f"{node.name}_output"
    if shape is not None:
        node.outputs[0].shape = ir.Shape(shape)
