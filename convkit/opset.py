"""Brings the IR version and opset of a written ONNX file down to what its runtime loads.

Versions are lowered only where the model means the same afterwards: operators whose definition did
not change are restamped in place, a byte each, whatever the file's size; others go through the
adapters in convkit/opsets; what is left is refused by name. Weights in other files are never
touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.errors import ModelError, UnknownNameError, UnsupportedError
from convkit.opsets.meaning import means_the_same
from convkit.protobuf import encode_varint, mapped, varint

if TYPE_CHECKING:
    from convkit.formats.onnx_header import Header

WRITTEN_IR = 10
"""The IR version written where nothing asks for more; ONNX Runtime 1.18 and later load it."""

_NEW_IN_IR: Mapping[str, int] = {
    "float4_e2m1fn": 11, "float8_e8m0fnu": 12, "uint2": 13, "int2": 13,
    "float6_e2m3fn": 14, "float6_e3m2fn": 14,
}  # fmt: skip
"""Element types that came after WRITTEN_IR. Source: onnx/onnx.proto, enum Version."""

_SMALL_ELEMENTS = 1024
"""Constants up to this size stay in the graph while its opset is converted: adapters read them
(axes, sizes); larger ones are weights."""


@dataclass(frozen=True)
class Target:
    """The newest versions a runtime loads.

    Attributes:
        runtime: its name and version, for people.
    """

    runtime: str
    ir_version: int
    opset: int


TARGETS: Mapping[str, Target] = {
    "onnxruntime": Target("ONNX Runtime 1.31", ir_version=13, opset=26),
    "tensorrt": Target("TensorRT 11", ir_version=13, opset=25),
}
"""Source: onnxruntime 1.31.1 refuses above, with these numbers in its message; TensorRT 11's
operator guide for the ONNX parser."""


@dataclass(frozen=True)
class Fitted:
    """Versions before and after; `how` is one of unchanged, restamped, converted."""

    ir_version: tuple[int, int]
    opset: tuple[int, int]
    how: str

    def __str__(self) -> str:
        (ir, new_ir), (opset, new_opset) = self.ir_version, self.opset
        return f"IR {ir} -> {new_ir}, opset {opset} -> {new_opset} ({self.how})"


def fit(path: Path | str, *, target: str = "onnxruntime", opset: int | None = None) -> Fitted:
    """Lowers IR version and opset of the ONNX file at `path`, in place, as far as needed.

    Args:
        path: a file that the caller has written; data files beside it stay as they are.
        target: who is to load it, a key of TARGETS.
        opset: the highest opset wanted; None means what the target loads.

    Raises:
        ModelError: the file is no ONNX model.
        UnsupportedError: an operator or element type has no equal in the lower version.
    """
    from convkit.formats.onnx_header import read_header

    if target not in TARGETS:
        raise UnknownNameError("ONNX runtime", target, TARGETS)
    path, limits = Path(path), TARGETS[target]
    header = read_header(path)
    newest = min(limits.opset, opset or limits.opset)
    before = header.opsets.get("", 0)
    needed_ir = _needed_ir(header, limits)
    how = "unchanged" if header.ir_version <= needed_ir else "restamped"
    if before > newest:
        how = _lower_opset(header, before, newest)
        header = read_header(path)  # a converted file has its versions elsewhere
    if header.ir_version > needed_ir:
        _patch(path, {header.ir_version_at: needed_ir})
    after_ir = min(header.ir_version, needed_ir)
    return Fitted((header.ir_version, after_ir), (before, min(before, newest)), how)


def _needed_ir(header: Header, limits: Target) -> int:
    """The lowest IR version not below WRITTEN_IR that has every element type of the model."""
    dtypes = {tensor.dtype for tensor in header.initializers}
    dtypes |= {spec.dtype for spec in (*header.inputs, *header.outputs)}
    needed = {dtype: _NEW_IN_IR[dtype] for dtype in dtypes if dtype in _NEW_IN_IR}
    for dtype, version in needed.items():
        if version > limits.ir_version:
            raise UnsupportedError(
                f"{header.path.name} holds {dtype}, which {limits.runtime} cannot load.",
                why=f"It came with IR version {version}; the runtime ends at {limits.ir_version}.",
                dtype=dtype,
            )
    return max((WRITTEN_IR, *needed.values()))


def _patch(path: Path, numbers: Mapping[int, int]) -> None:
    """Writes varints over those at the given offsets, each padded to the bytes it replaces.

    Source: a varint may be longer than it must be; the continuation bit alone says where it ends.
    """
    with mapped(path) as data:
        widths = {at: varint(data, at, len(data))[1] - at for at in numbers}
    with path.open("r+b") as stream:
        for at, number in numbers.items():
            short = bytearray(encode_varint(number))
            while len(short) < widths[at]:
                short[-1] |= 0x80
                short.append(0)
            stream.seek(at)
            stream.write(short)


def _lower_opset(header: Header, before: int, after: int) -> str:
    import onnx

    path = header.path
    model = onnx.load(str(path), load_external_data=False)
    is_same = all(means_the_same(node, before, after) for _, node in _nodes(model))
    if is_same and _is_valid_at(model, after):
        _check_restamped(model, path, before, after)
        return _restamped(model, header, after)
    _save(_converted(model, path, before, after), path)
    return "converted"


def _restamped(model: Any, header: Header, opset: int) -> str:
    if not model.functions:
        _patch(header.path, {header.opset_at[""]: opset})
        return "restamped"
    for imports in (model.opset_import, *(body.opset_import for body in model.functions)):
        _restamp(imports, opset)
    _save(model, header.path)
    return "restamped"


def _check_restamped(model: Any, path: Path, before: int, after: int) -> None:
    """What `_check_result` raises for the model with its number changed alone."""
    weights = _take_weights(model)
    changed = type(model).FromString(model.SerializeToString())
    for imports in (changed.opset_import, *(body.opset_import for body in changed.functions)):
        _restamp(imports, after)
    _check_result(model, changed, path, before, after)
    _return_weights(model, weights)


def _restamp(imports: Any, version: int) -> None:
    for entry in imports:
        if entry.domain in ("", "ai.onnx"):
            entry.version = min(entry.version, version)


def _nodes(model: Any) -> Iterator[tuple[str, Any]]:
    """Every node with the body it is in; the main graph's place is empty."""
    waiting = [("", model.graph.node)]
    waiting += [(f"function {body.name}", body.node) for body in model.functions]
    while waiting:
        place, nodes = waiting.pop()
        for node in nodes:
            yield place, node
            for attribute in node.attribute:
                graphs = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
                waiting += [(f"{node.op_type} {node.name}".strip(), g.node) for g in graphs]


def _is_valid_at(model: Any, opset: int) -> bool:
    """Whether every operator takes the element types that it is given, in that opset too."""
    from convkit.opsets.narrow_types import is_narrow

    return not is_narrow(model, opset)


def _converted(model: Any, path: Path, before: int, after: int) -> Any:
    """The model with adapters applied; its weights sit out as inputs meanwhile."""
    import onnx.inliner

    from convkit.opsets.lowering import NoOlderForm, lowered

    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    weights = _take_weights(model)
    original = type(model).FromString(model.SerializeToString())
    try:
        result = lowered(model, after)
        _check_nodes(result)
    except NoOlderForm as cause:
        raise _no_way_down(path, cause.nodes, before, after) from cause
    _check_result(original, result, path, before, after)
    _return_weights(result, weights)
    return result


def _check_nodes(model: Any) -> None:
    """Every plain node against its schema; the whole-model check asks for shapes of outputs too.

    Raises:
        onnx.checker.ValidationError: an adapter wrote what the older opset does not know.
    """
    import onnx

    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = {entry.domain: entry.version for entry in model.opset_import}
    for _, node in _nodes(model):
        if not any(attribute.HasField("g") for attribute in node.attribute):
            onnx.checker.check_node(node, context)


def _check_result(original: Any, result: Any, path: Path, before: int, after: int) -> None:
    """The whole model's types and shapes, where the original passes that.

    Raises:
        UnsupportedError: an operator of the older opset does not take what it is given.
    """
    import onnx.shape_inference

    def infer(model: Any) -> None:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)

    try:
        infer(result)
    except Exception as cause:  # onnx raises errors of several kinds
        try:
            infer(original)
        except Exception:  # the original's types do not hold either, so they tell nothing
            return
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        raise UnsupportedError(
            f"{path.name} cannot go from opset {before} to {after}: "
            f"opset {after} does not have all of its types.",
            why=lines[:3],
            hint=f"Export the model again at opset {after}:  --opset {after}",
        ) from cause


def _take_weights(model: Any) -> list[Any]:
    import onnx

    graph = model.graph
    declared = {value.name for value in graph.input}
    weights = [
        tensor
        for tensor in graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        or _count(tensor.dims) > _SMALL_ELEMENTS
    ]
    taken = {tensor.name for tensor in weights}
    small = [tensor for tensor in graph.initializer if tensor.name not in taken]
    weights = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in weights]
    del graph.initializer[:]
    graph.initializer.extend(small)
    for tensor in weights:
        if tensor.name not in declared:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return [(tensor, tensor.name in declared) for tensor in weights]


def _return_weights(model: Any, weights: Sequence[Any]) -> None:
    borrowed = {tensor.name for tensor, was_declared in weights if not was_declared}
    kept = [value for value in model.graph.input if value.name not in borrowed]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(tensor for tensor, _ in weights)


def _count(dims: Sequence[int]) -> int:
    count = 1
    for size in dims:
        count *= size
    return count


def _save(model: Any, path: Path) -> None:
    """Writes beside the file and renames into it, so that the old one is whole until the end."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(model.SerializeToString())
    except ValueError as cause:  # protobuf cannot hold 2 GB
        raise ModelError(
            f"{path.name} is too large to convert its opset.",
            hint="Save it with its weights in a data file beside it.",
        ) from cause
    os.replace(partial, path)


def _no_way_down(
    path: Path, refused: Sequence[tuple[str, Any, str]], before: int, after: int
) -> UnsupportedError:
    named = [
        f"{node.op_type}  node {node.name or '(no name)'}{f' in {place}' if place else ''}: {why}"
        for place, node, why in refused
    ]
    more = [f"... and {len(named) - 5} more"] if len(named) > 5 else []
    return UnsupportedError(
        f"{path.name} cannot go from opset {before} to {after}: "
        f"{refused[0][1].op_type} has no equal there.",
        why=[*named[:5], *more],
        hint=f"Export the model again at opset {after}:  --opset {after}",
        operators=sorted({node.op_type for _, node, _ in refused}),
    )
