"""Nodes with constant weights as layers of `torch.nn`: Conv, Linear, Embedding, norms, PReLU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_to_torch.dtypes import is_float
from convkit.converters.onnx_to_torch.names import module_name
from convkit.converters.onnx_to_torch.recurrent import emit_recurrent
from convkit.converters.onnx_to_torch.scope import Scope, is_used, rank_of
from convkit.converters.onnx_to_torch.weights import Weight

if TYPE_CHECKING:
    import onnx_ir as ir

Emit = Callable[[Scope, "ir.Node"], bool]


def emit_layer(scope: Scope, node: ir.Node) -> bool:
    """Writes a node as a call of a layer that holds its weights, if it can be."""
    write = _LAYERS.get(node.op_type) if node.domain == "" else None
    return write(scope, node) if write is not None else False


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's value."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def _weights(scope: Scope, values: Sequence[ir.Value | None]) -> list[Weight | None] | None:
    """The constants behind values; None where one is no constant."""
    found = [scope.weight(value) for value in values]
    pairs = zip(values, found, strict=True)
    return None if any(v is not None and w is None for v, w in pairs) else found


def _hint(weight: Weight, node: ir.Node) -> str:
    return module_name(weight.origin or weight.name, node.name or "")


def _tuple(numbers: Sequence[int]) -> str:
    """One number where all are the same."""
    if len(set(numbers)) == 1:
        return str(numbers[0])
    return f"({', '.join(map(str, numbers))})"


def _input(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if len(node.inputs) > place else None


def _conv(scope: Scope, node: ir.Node) -> bool:
    found = _weights(scope, [_input(node, 1), _input(node, 2)])
    if found is None or found[0] is None or not is_float(found[0].dtype):
        return False
    weight, bias = found[0], found[1]
    rank = len(weight.shape) - 2
    settings = _conv_settings(node, weight, rank)
    if settings is None or not 1 <= rank <= 3:
        return False
    (strides, dilations, groups), begin, end = settings
    kernel = weight.shape[2:]
    padding, before = _padding(scope.tensor(node.inputs[0]), begin, end)
    options = [
        f"stride={_tuple(strides)}" if set(strides) != {1} else "",
        f"padding={padding}" if padding != "0" else "",
        f"dilation={_tuple(dilations)}" if set(dilations) != {1} else "",
        f"groups={groups}" if groups != 1 else "",
        "bias=False" if bias is None else "",
    ]
    sizes = f"{weight.shape[1] * groups}, {weight.shape[0]}, {_tuple(kernel)}"
    constructor = f"Conv{rank}d({', '.join([sizes, *filter(None, options)])})"
    parameters = {"weight": weight} | ({"bias": bias} if bias is not None else {})
    layer = scope.context.table.layer(_hint(weight, node), constructor, parameters, weight.dtype)
    scope.assign(node, f"{layer}({before})")
    return True


def _conv_settings(
    node: ir.Node, weight: Weight, rank: int
) -> tuple[tuple[list[int], list[int], int], list[int], list[int]] | None:
    """Strides, dilations and groups; padding before and after each axis."""
    strides = list(attribute(node, "strides") or [1] * rank)
    dilations = list(attribute(node, "dilations") or [1] * rank)
    groups = attribute(node, "group", 1)
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = list(attribute(node, "pads") or [0] * 2 * rank)
    elif auto == "VALID":
        pads = [0] * 2 * rank
    elif set(strides) == {1}:
        whole = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
        less = [size // 2 for size in whole]
        more = [size - size // 2 for size in whole]
        pads = less + more if auto == "SAME_UPPER" else more + less
    else:
        sizes = node.inputs[0].shape if node.inputs[0] is not None else None
        known = (
            None if sizes is None else [n for n in list(sizes)[2:] if isinstance(n, int) and n > 0]
        )
        if known is None or len(known) != rank:
            return None
        pads = _same_pads(known, strides, dilations, weight.shape[2:], auto == "SAME_UPPER")
    return (strides, dilations, groups), pads[:rank], pads[rank:]


def _same_pads(
    sizes: list[int], strides: list[int], dilations: list[int], kernel: Sequence[int], upper: bool
) -> list[int]:
    """Padding for outputs of the input's size over the stride, rounded up.

    Source: `auto_pad` of Conv in docs/Operators.md of ONNX.
    """
    begin, end = [], []
    for size, stride, dilation, width in zip(sizes, strides, dilations, kernel, strict=True):
        count = -(-size // stride)
        whole = max((count - 1) * stride + dilation * (width - 1) + 1 - size, 0)
        less, more = whole // 2, whole - whole // 2
        begin.append(less if upper else more)
        end.append(more if upper else less)
    return begin + end


def _padding(data: str, begin: Sequence[int], end: Sequence[int]) -> tuple[str, str]:
    """What the layer pads, and its input, padded before where both sides differ."""
    if list(begin) == list(end) and min(begin) >= 0:
        return _tuple(list(begin)), data
    pairs = [n for pair in zip(begin[::-1], end[::-1], strict=True) for n in pair]
    return "0", f"nn.functional.pad({data}, {pairs})"


def _conv_transpose(scope: Scope, node: ir.Node) -> bool:
    found = _weights(scope, [_input(node, 1), _input(node, 2)])
    if found is None or found[0] is None or not is_float(found[0].dtype):
        return False
    weight, bias = found[0], found[1]
    rank = len(weight.shape) - 2
    pads = list(attribute(node, "pads") or [0] * 2 * rank)
    is_plain = attribute(node, "auto_pad", "NOTSET") == "NOTSET" and not node.attributes.get(
        "output_shape"
    )
    if not is_plain or not 1 <= rank <= 3 or pads[:rank] != pads[rank:]:
        return False
    strides = list(attribute(node, "strides") or [1] * rank)
    dilations = list(attribute(node, "dilations") or [1] * rank)
    more = list(attribute(node, "output_padding") or [0] * rank)
    limits = zip(more, strides, dilations, strict=True)
    if any(m >= max(s, d) for m, s, d in limits):
        return False
    groups = attribute(node, "group", 1)
    options = [
        f"stride={_tuple(strides)}" if set(strides) != {1} else "",
        f"padding={_tuple(pads[:rank])}" if any(pads) else "",
        f"output_padding={_tuple(more)}" if any(more) else "",
        f"groups={groups}" if groups != 1 else "",
        "bias=False" if bias is None else "",
        f"dilation={_tuple(dilations)}" if set(dilations) != {1} else "",
    ]
    sizes = f"{weight.shape[0]}, {weight.shape[1] * groups}, {_tuple(weight.shape[2:])}"
    constructor = f"ConvTranspose{rank}d({', '.join([sizes, *filter(None, options)])})"
    parameters = {"weight": weight} | ({"bias": bias} if bias is not None else {})
    layer = scope.context.table.layer(_hint(weight, node), constructor, parameters, weight.dtype)
    scope.assign(node, f"{layer}({scope.tensor(node.inputs[0])})")
    return True


def _linear(
    scope: Scope,
    made_by: ir.Node,
    named: ir.Node,
    data: ir.Value,
    weight: Weight,
    bias: Weight | None,
) -> bool:
    """A matrix product as a layer; `weight` has a row per output."""
    table = scope.context.table
    options = ", bias=False" if bias is None else ""
    constructor = f"Linear({weight.shape[1]}, {weight.shape[0]}{options})"
    parameters = {"weight": weight} | ({"bias": bias} if bias is not None else {})
    home = table.home_of(weight)
    if home is not None and table.layer_of(constructor, parameters) is None:
        tail = f", {table.tensor(bias)}" if bias is not None else ""
        scope.assign(named, f"nn.functional.linear({scope.tensor(data)}, {home}{tail})")
        return True
    layer = table.layer(_hint(weight, made_by), constructor, parameters, weight.dtype)
    scope.assign(named, f"{layer}({scope.tensor(data)})")
    return True


def _gemm(scope: Scope, node: ir.Node) -> bool:
    data, weight = node.inputs[0], scope.weight(_input(node, 1))
    addend = _input(node, 2)
    bias = scope.weight(addend)
    is_plain = (
        attribute(node, "alpha", 1.0) == 1.0
        and attribute(node, "beta", 1.0) == 1.0
        and not attribute(node, "transA", 0)
    )
    if data is None or weight is None or not is_plain or not is_float(weight.dtype):
        return False
    if scope.weight(data) is not None or len(weight.shape) != 2:
        return False
    weight = weight if attribute(node, "transB", 0) else weight.transposed
    if addend is not None:
        bias = _as_bias(bias, weight.shape[0])
        if bias is None:
            return False
    return _linear(scope, node, node, data, weight, bias)


def _as_bias(bias: Weight | None, count: int) -> Weight | None:
    """A constant as a vector with one number per output; None where it is none."""
    if bias is None or bias.element_count != count or bias.shape not in ((count,), (1, count)):
        return None
    return bias if bias.shape == (count,) else bias.reshaped(count)


def _matmul(scope: Scope, node: ir.Node) -> bool:
    data, weight = node.inputs[0], scope.weight(node.inputs[1])
    if data is None or weight is None or len(weight.shape) != 2 or not is_float(weight.dtype):
        return False
    if scope.weight(data) is not None:
        return False
    weight = weight.transposed
    adder, bias = _bias_after(scope, node, weight.shape[0])
    if adder is not None:
        scope.done.add(id(adder))
    return _linear(scope, node, adder or node, data, weight, bias)


def _bias_after(scope: Scope, node: ir.Node, count: int) -> tuple[ir.Node | None, Weight | None]:
    """The Add that alone reads a product and adds a constant vector, with that vector."""
    product = node.outputs[0]
    uses = list(product.uses())
    if len(uses) != 1 or product.is_graph_output() or not rank_of(product):
        return None, None
    adder = uses[0].node
    if adder.op_type != "Add" or adder.domain != "" or adder.graph is not node.graph:
        return None, None
    other = adder.inputs[1 - uses[0].idx]
    bias = scope.weight(other) if other is not None and other.is_initializer() else None
    if bias is None or bias.shape != (count,) or not is_used(adder.outputs[0]):
        return None, None
    return adder, bias


def _embedding(scope: Scope, node: ir.Node) -> bool:
    weight, indices = scope.weight(node.inputs[0]), node.inputs[1]
    if weight is None or len(weight.shape) != 2 or not is_float(weight.dtype):
        return False
    if attribute(node, "axis", 0) != 0 or indices is None or scope.weight(indices) is not None:
        return False
    if scope.host(indices) is not None:
        return False
    table = scope.context.table
    constructor, parameters = f"Embedding({weight.shape[0]}, {weight.shape[1]})", {"weight": weight}
    home = table.home_of(weight)
    if home is not None and table.layer_of(constructor, parameters) is None:
        code = f"nn.functional.embedding({scope.tensor(indices)}, {home})"
    else:
        layer = table.layer(_hint(weight, node), constructor, parameters, weight.dtype)
        code = f"{layer}({scope.tensor(indices)})"
    scope.assign(node, code)
    return True


def _batch_norm(scope: Scope, node: ir.Node) -> bool:
    found = _weights(scope, node.inputs[1:])
    rank = rank_of(node.inputs[0])
    if found is None or any(w is None for w in found) or rank is None or not 2 <= rank <= 5:
        return False
    scale, bias, mean, var = (w for w in found if w is not None)
    same = {str(w.dtype) for w in (scale, bias, mean, var)} | {str(node.inputs[0].dtype)}  # type: ignore[union-attr]
    if attribute(node, "training_mode", 0) or len(same) != 1:
        return False
    momentum = 1.0 - attribute(node, "momentum", 0.9)
    options = f"eps={_short(attribute(node, 'epsilon', 1e-5))}, momentum={_short(momentum)}"
    constructor = f"BatchNorm{max(rank - 2, 1)}d({scale.shape[0]}, {options})"
    parameters = {"weight": scale, "bias": bias, "running_mean": mean, "running_var": var}
    return _norm(scope, node, constructor, parameters, scale)


def _layer_norm(scope: Scope, node: ir.Node) -> bool:
    found = _weights(scope, [_input(node, 1), _input(node, 2)])
    rank, axis = rank_of(node.inputs[0]), attribute(node, "axis", -1)
    if found is None or found[0] is None or rank is None:
        return False
    scale, bias = found[0], found[1]
    first = axis if axis >= 0 else axis + rank
    if len(scale.shape) != rank - first or any(is_used(v) for v in node.outputs[1:]):
        return False
    if not _fits(node, scale, first) or (bias is not None and bias.shape != scale.shape):
        return False
    options = f"eps={_short(attribute(node, 'epsilon', 1e-5))}"
    options += "" if bias is not None else ", bias=False"
    shape = str(scale.shape[0]) if len(scale.shape) == 1 else str(scale.shape)
    parameters = {"weight": scale} | ({"bias": bias} if bias is not None else {})
    return _norm(scope, node, f"LayerNorm({shape}, {options})", parameters, scale)


def _fits(node: ir.Node, scale: Weight, first: int) -> bool:
    """Whether the scale has the very sizes that are normalised, and the data's dtype."""
    data = node.inputs[0]
    if data is None or data.shape is None or data.dtype != scale.dtype:
        return False
    return list(data.shape)[first:] == list(scale.shape)


def _group_norm(scope: Scope, node: ir.Node) -> bool:
    found = _weights(scope, node.inputs[1:3])
    if found is None or found[0] is None or found[1] is None:
        return False
    scale, bias = found[0], found[1]
    if len(scale.shape) != 1 or node.inputs[0] is None or node.inputs[0].dtype != scale.dtype:
        return False
    groups = attribute(node, "num_groups")
    options = f"{groups}, {scale.shape[0]}, eps={_short(attribute(node, 'epsilon', 1e-5))}"
    parameters = {"weight": scale, "bias": bias}
    return _norm(scope, node, f"GroupNorm({options})", parameters, scale)


def _instance_norm(scope: Scope, node: ir.Node) -> bool:
    found = _weights(scope, node.inputs[1:3])
    rank = rank_of(node.inputs[0])
    if found is None or found[0] is None or found[1] is None or rank not in (3, 4, 5):
        return False
    scale, bias = found[0], found[1]
    options = f"{scale.shape[0]}, eps={_short(attribute(node, 'epsilon', 1e-5))}, affine=True"
    parameters = {"weight": scale, "bias": bias}
    return _norm(scope, node, f"InstanceNorm{rank - 2}d({options})", parameters, scale)


def _norm(
    scope: Scope, node: ir.Node, constructor: str, parameters: dict[str, Weight], scale: Weight
) -> bool:
    hint = _hint(scale, node)
    layer = scope.context.table.layer(hint, constructor, parameters, scale.dtype)
    scope.assign(node, f"{layer}({scope.tensor(node.inputs[0])})", 1)
    return True


def _prelu(scope: Scope, node: ir.Node) -> bool:
    slope, data = scope.weight(node.inputs[1]), node.inputs[0]
    rank = rank_of(data)
    if slope is None or data is None or rank is None or not is_float(slope.dtype):
        return False
    channels = slope.shape[0] if slope.shape else 1
    is_vector = slope.element_count == channels and len(slope.shape) == rank - 1
    if not (slope.element_count == 1 or (is_vector and rank >= 2)):
        return False
    channels = 1 if slope.element_count == 1 else channels
    layer = scope.context.table.layer(
        _hint(slope, node), f"PReLU({channels})", {"weight": slope.reshaped(channels)}, slope.dtype
    )
    scope.assign(node, f"{layer}({scope.tensor(data)})")
    return True


def _short(value: float) -> str:
    """The shortest decimal for a single-precision attribute."""
    import numpy as np

    return repr(float(str(np.float32(value))))


_LAYERS: dict[str, Emit] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Gather": _embedding,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "PRelu": _prelu,
    "LSTM": emit_recurrent,
    "GRU": emit_recurrent,
    "RNN": emit_recurrent,
}
