"""Which dimensions of a model's outputs are those of its inputs: found out, not guessed.

A wrong name is worse than none: ONNX Runtime gives values whose dimensions have the same name the
same memory. Shapes are inferred twice with other numbers for the inputs' names; what then equals a
name's number both times is that dimension, what stays the same is fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convkit.tensorflow_graph import FrozenGraph, Port
from convkit.tensorflow_proto import ANY_RANK

Shape = list[int | str | None] | None

_SIZES = ((61, 36), (131, 50))
"""Size of the first name, and how much larger each further one is, at the two inferences. They are
odd, so that a size that was halved and doubled again shows."""

_LARGE_BYTES = 1 << 30


def output_shapes(model: Any, frozen: FrozenGraph) -> dict[str, Shape]:
    """Shapes of the outputs by name; None where the rank is unknown.

    Args:
        model: a ModelProto whose inputs have their final shapes.
        frozen: the graph it was made from; its known sizes and dimension names are kept.
    """
    names = list(dict.fromkeys(name for port in frozen.inputs for name in port.spec.dynamic))
    runs = [
        _inferred(model, {name: first + step * i for i, name in enumerate(names)})
        for first, step in _SIZES
    ]
    values = [[first + step * i for first, step in _SIZES] for i in range(len(names))]
    return {port.name: _shape(port, runs, names, values) for port in frozen.outputs}


def _shape(
    port: Port,
    runs: Sequence[dict[str, list[int | None]]],
    names: Sequence[str],
    values: Sequence[list[int]],
) -> Shape:
    seen = [run.get(port.name) for run in runs]
    if ANY_RANK in port.spec.shape:
        if seen[0] is None:
            return None
        spec: list[int | str] = [f"{port.name}_dim{axis}" for axis in range(len(seen[0]))]
    else:
        spec = list(port.spec.shape)
    shape: list[int | str | None] = []
    for axis, size in enumerate(spec):
        column = [s[axis] if s is not None and len(s) == len(spec) else None for s in seen]
        shape.append(_dimension(port.name, axis, size, column, names, values))
    return shape


def _dimension(
    port: str,
    axis: int,
    size: int | str,
    column: list[int | None],
    names: Sequence[str],
    values: Sequence[list[int]],
) -> int | str:
    if isinstance(size, int):
        return size
    if None not in column:
        same = [name for name, numbers in zip(names, values, strict=True) if numbers == column]
        if same:
            return size if size in same else same[0]
        if column[0] == column[1]:
            return int(column[0] or 0)
    return f"{port}_dim{axis}" if size in names else size


def _inferred(model: Any, sizes: dict[str, int]) -> dict[str, list[int | None]]:
    """Shapes of the outputs, with these numbers for the names of the inputs' dimensions."""
    import onnx

    if model.ByteSize() > _LARGE_BYTES:
        return {}
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return {}
    return {
        value.name: [
            dim.dim_value if dim.HasField("dim_value") else None
            for dim in value.type.tensor_type.shape.dim
        ]
        for value in inferred.graph.output
        if value.type.tensor_type.HasField("shape")
    }
