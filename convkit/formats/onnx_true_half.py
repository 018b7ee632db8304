"""Runs an fp16 or bf16 ONNX model so that every half value is really rounded to half.

ONNX Runtime computes half precision on x86 in fp32 and rounds only where it must, so an overflow
that every GPU would show stays hidden; for bf16 it has no kernels at all. Here the graph is
rewritten: each operator computes in fp32, as tensor cores accumulate, and its result is cast to
half and back before anything reads it. What exceeds the largest half number becomes inf.

The rounding is a pair of casts that stands in the graph itself. ONNX Runtime drops pairs that it
inserted around its own fp32 kernels, which is how it hides overflow, but keeps these (1.31.1, at
every optimization level; the tests compare with numpy bit by bit).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact, TensorSpec
from convkit.errors import StepError, UnsupportedError
from convkit.formats.onnx_header import read_header
from convkit.formats.onnx_session import check_feeds, import_runtime
from convkit.formats.onnx_types import ELEMENT_NAMES
from convkit.onnx_structure import plain_session
from convkit.onnx_typing import graphs_of, load_typed
from convkit.step import Feeds, Outputs, Runner, Sizes

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_HALVES = (10, 16)
"""TensorProto.FLOAT16 and BFLOAT16."""
_FLOAT = 1
"""TensorProto.FLOAT."""

_EXACT = frozenset((
    "Abs", "Cast", "CastLike", "Clip", "Compress", "Concat", "ConstantOfShape", "DepthToSpace",
    "Dropout", "Expand", "EyeLike", "Flatten", "Gather", "GatherElements", "GatherND",
    "GlobalMaxPool", "Identity", "If", "Loop", "Max", "MaxPool", "Min", "Neg", "OneHot",
    "OptionalGetElement", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape", "ReverseSequence",
    "Scan", "SequenceAt", "ConcatFromSequence", "Sign", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Trilu", "Unique",
    "Unsqueeze", "Where",
))  # fmt: skip
"""Operators whose results are elements of their (already rounded) inputs, up to sign."""

_ROUNDING = frozenset({"Cast", "CastLike", "ConstantOfShape", "OneHot"})
"""Of those, the ones whose inputs may be anything."""

_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_datatype", "stash_type")


def open_true_half(artifact: Artifact) -> Runner:
    """A runner whose every fp16 and bf16 value is rounded as hardware rounds it.

    Feeds and outputs keep the model's own dtypes (bfloat16 is that of ml_dtypes).

    Raises:
        ModelError: the file is no complete ONNX model.
        UnsafeError: a weight lies outside the model's folder.
        UnsupportedError: ONNX Runtime does not know an operator.
    """
    return TrueHalfRunner(artifact)


class TrueHalfRunner(Runner):
    """An ONNX model in half precision on the CPU, rounded after every operator.

    Attributes:
        session: ONNX Runtime's own object; it takes and gives fp32 where the model has half.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._path = artifact.path
        header = read_header(artifact.path)
        model = load_typed(artifact.path)
        codes = {value.name: value.dtype for value in model.graph.outputs}
        self.inputs = header.inputs
        self.outputs = tuple(_typed(spec, codes.get(spec.name)) for spec in header.outputs)
        for graph in list(graphs_of(model.graph)):
            _simulate(graph)
        self.session = _open(model, artifact.path)

    def __call__(self, feeds: Feeds) -> Outputs:
        """Outputs by name, in the model's order.

        Raises:
            SamplesError: names, dtypes or shapes are not the model's.
            StepError: the runtime fails on these inputs.
        """
        import numpy as np

        check_feeds(self._path.name, self.inputs, feeds)
        halves = {spec.name for spec in self.inputs if spec.dtype in ("float16", "bfloat16")}
        wide = {k: v.astype(np.float32) if k in halves else v for k, v in feeds.items()}
        try:
            arrays = self.session.run([spec.name for spec in self.outputs], wide)
        except Exception as cause:  # the runtime's exceptions share no base class of their own
            raise StepError(
                f"{self._path.name} failed while it ran with true half rounding.",
                why=str(cause)[:400],
            ) from cause
        return {
            spec.name: _narrowed(array, spec.dtype)
            for spec, array in zip(self.outputs, arrays, strict=True)
        }

    def example(self, sizes: Sizes, seed: int) -> Feeds:
        """Seeded inputs: indices stay inside the tables they look up, masks are ones."""
        from convkit.formats.onnx_example import draw_example

        return draw_example(self._path, self.inputs, sizes, seed)

    def close(self) -> None:
        """Gives the session's memory back."""
        del self.session


def _typed(spec: TensorSpec, dtype: ir.DataType | None) -> TensorSpec:
    if spec.dtype != "unknown" or dtype is None:
        return spec
    return replace(spec, dtype=ELEMENT_NAMES[int(dtype)])


def _narrowed(array: Any, dtype: str) -> Any:
    """Back to the model's dtype; exact, the values are rounded already."""
    if dtype == "bfloat16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    return array.astype(dtype) if dtype == "float16" else array


def _is_half(value: ir.Value | None) -> bool:
    import onnx_ir as ir

    if value is None or not isinstance(value.type, ir.TensorType):
        return False
    return int(value.type.dtype) in _HALVES


def _simulate(graph: ir.Graph) -> None:
    """Makes every half value of one graph an fp32 value that was rounded to half."""
    nodes = list(graph)
    for value in graph.inputs:
        if _is_half(value):
            _widen(value)
    for value in list(graph.initializers.values()):
        if _is_half(value):
            _cast_constant(value, graph)
    for node in nodes:
        halves = [value for value in node.outputs if _is_half(value)]
        kinds = [int(value.dtype or 0) for value in halves]
        if node.op_type == "Constant":
            for value in halves:
                _cast_constant(value, graph)
            continue
        _widen_attributes(node)
        rounds = node.op_type not in _EXACT or node.op_type in _ROUNDING
        for value, kind in zip(halves, kinds, strict=True):
            _widen(value)
            if rounds or node.domain not in ("", "ai.onnx"):
                _round(value, kind)


def _widen(value: ir.Value) -> None:
    import onnx_ir as ir

    value.type = ir.TensorType(ir.DataType.FLOAT)


def _round(value: ir.Value, kind: int) -> None:
    """Puts a rounding between a value and everything that reads it; the name moves along."""
    node = value.producer()
    assert node is not None
    narrow = _chained("Cast", value, kind, {"to": kind})
    wide = _chained("Cast", narrow.outputs[0], _FLOAT, {"to": _FLOAT})
    value.replace_all_uses_with(wide.outputs[0], replace_graph_outputs=True)
    narrow.replace_input_with(0, value)
    name = value.name or ""
    value.name = f"{name}/unrounded"
    narrow.outputs[0].name = f"{name}/half"
    wide.outputs[0].name = name
    node.append([narrow, wide])


def _cast_constant(value: ir.Value, graph: ir.Graph) -> None:
    """A half constant stays as it is; its readers get it in fp32."""
    wide = _chained("Cast", value, _FLOAT, {"to": _FLOAT})
    value.replace_all_uses_with(wide.outputs[0], replace_graph_outputs=True)
    wide.replace_input_with(0, value)
    name = value.name or ""
    producer = value.producer()
    value.name = f"{name}/half"
    wide.outputs[0].name = name
    if producer is not None:
        producer.append(wide)
    elif len(graph):
        graph.insert_before(graph[0], wide)
    else:
        graph.append(wide)


def _chained(op_type: str, source: ir.Value, kind: int, attributes: dict[str, int]) -> ir.Node:
    import onnx_ir as ir

    node = ir.node(op_type, [source], attributes)
    node.outputs[0].type = ir.TensorType(ir.DataType(kind))
    return node


def _widen_attributes(node: ir.Node) -> None:
    """Attributes that say half say fp32 instead."""
    import onnx_ir as ir

    for name in _TYPE_ATTRIBUTES:
        attribute = node.attributes.get(name)
        is_int = attribute is not None and attribute.type == ir.AttributeType.INT
        if is_int and attribute is not None and attribute.as_int() in _HALVES:
            node.attributes[name] = ir.AttrInt64(name, _FLOAT)
    given = node.attributes.get("value")
    if node.op_type == "ConstantOfShape" and given is not None:
        tensor = given.as_tensor()
        if int(tensor.dtype) in _HALVES:
            import numpy as np

            wide = ir.tensor(tensor.numpy().astype(np.float32))
            node.attributes["value"] = ir.AttrTensor("value", wide)


def _open(model: ir.Model, path: Path) -> Any:
    """A session on the rewritten graph that maps larger weights where they lie."""
    import onnx_ir as ir

    import_runtime()
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    for graph in _graph_protos(proto.graph):
        del graph.value_info[:]
    try:
        return plain_session(proto, path.parent)
    except Exception as cause:  # the runtime's exceptions share no base class of their own
        raise UnsupportedError(
            f"{path.name} cannot be evaluated with true half rounding.",
            why=str(cause).splitlines()[0][:400],
        ) from cause


def _graph_protos(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
                yield from _graph_protos(attribute.g)
