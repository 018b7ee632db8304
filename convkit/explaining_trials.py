"""What a layer would take in another form: graphs of one layer, timed here on the same runtime.

A prediction is a ratio: the layer as it runs now against the other form, both alone with random
numbers of the shapes that the model has. The ratio is applied to the layer's time in the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.explaining_profile import Node, Profile, Shape, profile_bytes

if TYPE_CHECKING:
    import onnx

    from convkit.step import Feeds

_OPSET = 17
_IR_VERSION = 8
_SCALE = 0.02
_CONV_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")

FLOAT_LAYERS = ("Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm")
STATIC_LAYERS = ("QLinearConv", "QLinearMatMul", "QGemm")
DYNAMIC_LAYERS = (
    "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
)  # fmt: skip
BLOCK_LAYERS = ("MatMulNBits",)
_WEIGHT_AT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}


@dataclass(frozen=True)
class Layer:
    """The arithmetic of a convolution or a matrix product, in whatever form it runs.

    Attributes:
        left: shape of the activations; of a convolution channels first.
        right: shape of the weights; of a matrix product (inputs, outputs).
        attributes: of a convolution, or of MatMulNBits.
    """

    is_convolution: bool
    left: Shape
    right: Shape
    attributes: tuple[tuple[str, Any], ...] = ()

    @property
    def words(self) -> str:
        """`[1, 64] x [64, 1000]`."""
        return f"{list(self.left)} x {list(self.right)}"

    @property
    def multiplication_count(self) -> int:
        """Of a call."""
        if not self.is_convolution:
            return math.prod(self.left) * self.right[-1]
        strides: Shape = dict(self.attributes).get("strides", ())
        places = self.left[0] * math.prod(self.left[2:]) // math.prod(strides)
        return places * math.prod(self.right)


def layer_of(node: Node, profile: Profile) -> Layer | None:
    """The layer that a node computes; None for others, or where its weights are no constant."""
    if not node.input_types:
        return None
    left = node.input_types[0][1]
    if node.op_type in BLOCK_LAYERS:
        right = (node.attributes["K"], node.attributes["N"])
        return Layer(False, left, right, _frozen(node.attributes, tuple(node.attributes)))
    if node.op_type not in (*FLOAT_LAYERS, *STATIC_LAYERS, *DYNAMIC_LAYERS):
        return None
    weight = weight_of(node, profile)
    if weight is None or len(weight) < 2 or len(left) < 2:
        return None
    if "Conv" in node.op_type:
        if node.attributes.get("channels_last"):
            left = (left[0], left[-1], *left[1:-1])
        return Layer(True, left, weight, _frozen(node.attributes, _CONV_ATTRIBUTES))
    if node.attributes.get("transB"):
        weight = weight[::-1]
    if node.attributes.get("transA"):
        left = (*left[:-2], left[-1], left[-2])
    return Layer(False, left, weight) if len(weight) == 2 else None


def _frozen(attributes: Mapping[str, Any], names: tuple[str, ...]) -> tuple[tuple[str, Any], ...]:
    found = {name: attributes[name] for name in names if name in attributes}
    return tuple(
        (name, tuple(value) if isinstance(value, list) else value) for name, value in found.items()
    )


def weight_of(node: Node, profile: Profile) -> Shape | None:
    """Shape of a layer's constant weights, dequantized in the graph or not."""
    name = weight_name(node)
    if name in profile.weights:
        return profile.weights[name][1]
    producer = profile.producer(name)
    if producer is not None and producer.op_type == "DequantizeLinear":
        kind = profile.weights.get(producer.inputs[0])
        return kind and kind[1]
    return None


def weight_name(node: Node) -> str:
    """The value that a layer takes as its weights."""
    at = _WEIGHT_AT.get(node.op_type, 1)
    return node.inputs[at] if at < len(node.inputs) else ""


@dataclass(frozen=True)
class Trial:
    """Times of a layer of one form, alone.

    Attributes:
        layer_ms: the layer itself.
        before_ms: what turns a plain float input into what it takes: integers, blocks of channels.
        after_ms: what turns its result back.
    """

    layer_ms: float
    before_ms: float = 0.0
    after_ms: float = 0.0


class Trials:
    """Times layers in other forms, each shape and form once, for so long."""

    def __init__(self, time_s: float) -> None:
        self._time_s = time_s
        self._known: dict[tuple[str, Layer, int], Trial | None] = {}

    def float32(self, layer: Layer) -> Trial | None:
        """As a float layer."""
        return self._timed("float", layer, 0, _float_model)

    def static(self, layer: Layer) -> Trial | None:
        """In int8 between a QuantizeLinear and a DequantizeLinear."""
        return self._timed("static", layer, 0, _static_model)

    def dynamic(self, layer: Layer) -> Trial | None:
        """In int8 with a scale for each call."""
        return self._timed("dynamic", layer, 0, _dynamic_model)

    def blocks(self, layer: Layer, accuracy_level: int) -> Trial | None:
        """As MatMulNBits that computes at this level."""
        return self._timed("blocks", layer, accuracy_level, _block_model)

    def _timed(
        self, form: str, layer: Layer, level: int, build: Callable[[Layer, int], onnx.ModelProto]
    ) -> Trial | None:
        """The times; None where the runtime cannot do it in this form."""
        key = form, layer, level
        if key not in self._known:
            try:
                model = build(layer, level)
                feeds: Feeds = {"x": _random(layer.left)}
                found = profile_bytes(model.SerializeToString(), feeds, self._time_s)
            except Exception:  # the runtime's exceptions share no base class of their own
                self._known[key] = None
            else:
                self._known[key] = _trial(found)
        return self._known[key]


def _trial(found: Profile) -> Trial | None:
    names = (*FLOAT_LAYERS, *STATIC_LAYERS, *DYNAMIC_LAYERS, *BLOCK_LAYERS)
    layer_ms = sum(node.ms for node in found.nodes if node.op_type in names)
    if not layer_ms:
        return None
    kinds = {
        kind: sum(node.ms for node in found.nodes if node.op_type in types)
        for kind, types in (
            ("before", ("QuantizeLinear", "DynamicQuantizeLinear", "ReorderInput")),
            ("after", ("DequantizeLinear", "Cast", "Mul", "ReorderOutput")),
        )
    }
    return Trial(layer_ms, kinds["before"], kinds["after"])


def _random(shape: Shape) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _model(nodes: list[Any], layer: Layer, constants: Mapping[str, Any]) -> onnx.ModelProto:
    from onnx import TensorProto, helper, numpy_helper

    for number, node in enumerate(nodes):
        node.name = f"{node.op_type}#{number}"
    rank = len(layer.left)
    graph = helper.make_graph(
        nodes,
        "trial",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, layer.left)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def _operator(layer: Layer, inputs: list[str], output: str) -> Any:
    from onnx import helper

    if not layer.is_convolution:
        return helper.make_node("MatMul", inputs, [output])
    return helper.make_node("Conv", inputs, [output], **_plain(layer))


def _plain(layer: Layer) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in layer.attributes}


def _float_model(layer: Layer, _: int) -> onnx.ModelProto:
    return _model([_operator(layer, ["x", "w"], "y")], layer, {"w": _random(layer.right)})


def _static_model(layer: Layer, _: int) -> onnx.ModelProto:
    """Activations in uint8, weights in int8, a scale for each output channel."""
    from onnx import helper

    axis = 0 if layer.is_convolution else 1
    constants = {
        "scale": np.float32(_SCALE),
        "zero": np.uint8(128),
        "w": _integers(layer.right, np.int8),
        "w_scale": np.full(layer.right[axis], _SCALE, np.float32),
        "w_zero": np.zeros(layer.right[axis], np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=axis),
        _operator(layer, ["xd", "wd"], "r"),
        helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["rq"]),
        helper.make_node("DequantizeLinear", ["rq", "scale", "zero"], ["y"]),
    ]
    return _model(nodes, layer, {name: np.asarray(value) for name, value in constants.items()})


def _dynamic_model(layer: Layer, _: int) -> onnx.ModelProto:
    from onnx import TensorProto, helper

    constants = {
        "w": _integers(layer.right, np.uint8 if layer.is_convolution else np.int8),
        "w_scale": np.asarray(_SCALE, np.float32),
        "w_zero": np.asarray(0, np.uint8 if layer.is_convolution else np.int8),
    }
    if not layer.is_convolution:
        inputs = ["x", "w", "w_scale", "w_zero"]
        node = helper.make_node("DynamicQuantizeMatMul", inputs, ["y"], domain="com.microsoft")
        return _model([node], layer, constants)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "x_scale", "x_zero"]),
        helper.make_node("ConvInteger", ["xq", "w", "x_zero", "w_zero"], ["i"], **_plain(layer)),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x_scale", "w_scale"], ["s"]),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    return _model(nodes, layer, constants)


def _block_model(layer: Layer, level: int) -> onnx.ModelProto:
    """Source: onnxruntime, docs/ContribOperators.md, MatMulNBits."""
    from onnx import helper

    attributes = {**_plain(layer), "accuracy_level": level}
    inner, outer = layer.right
    bits, size = attributes.get("bits", 4), attributes["block_size"]
    blocks = -(-inner // size)
    constants = {
        "w": _integers((outer, blocks, size * bits // 8), np.uint8),
        "w_scale": np.full(outer * blocks, _SCALE, np.float32),
    }
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "w_scale"], ["y"], domain="com.microsoft", **attributes
    )
    return _model([node], layer, constants)


def _integers(shape: Shape, dtype: Any) -> np.ndarray[Any, Any]:
    limits = np.iinfo(dtype)
    return np.random.default_rng(0).integers(limits.min, limits.max, shape, dtype)
