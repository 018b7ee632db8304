"""Writes a PyTorch module for an ONNX graph: one line per node, named as in ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_reading.calls import library
from convkit.converters.onnx_reading.reading import read_graph
from convkit.converters.onnx_to_torch.control_flow import emit_control
from convkit.converters.onnx_to_torch.dtypes import dtype_name
from convkit.converters.onnx_to_torch.folding import emit_folded
from convkit.converters.onnx_to_torch.host_operators import emit_host
from convkit.converters.onnx_to_torch.layers import emit_layer
from convkit.converters.onnx_to_torch.library_calls import emit_call
from convkit.converters.onnx_to_torch.names import Names
from convkit.converters.onnx_to_torch.natural import emit_natural
from convkit.converters.onnx_to_torch.program import Port, Program
from convkit.converters.onnx_to_torch.releasing import with_releases
from convkit.converters.onnx_to_torch.scope import Context, Scope, is_used
from convkit.converters.onnx_to_torch.sources import operators_source
from convkit.converters.onnx_to_torch.weights import Table
from convkit.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx_ir as ir

_RESERVED = ("torch", "nn", "math", "self", "operators", "Path", "load", "Model", "_")


def program_of(path: Path) -> Program:
    """The ONNX file at `path` as source and weights.

    Raises:
        ModelError: it is no complete ONNX model.
        UnsupportedError: an operator has no translation, or a value is text.
        UnsafeError: a weight lies outside the model's folder.
    """
    import torch

    from convkit.converters.onnx_to_torch import operators

    functions = library(operators)
    lost: list[str] = []
    model = read_graph(path, functions.keys(), lost.append)
    reserved = (*_RESERVED, *dir(torch.nn.Module), *torch.nn.Module().__dict__)
    context = Context(path.parent, Table(Names(reserved)), functions)
    scope = Scope(context, Names(_RESERVED))
    graph = model.graph
    inputs = tuple(_port(value, scope.declare(value)) for value in graph.inputs)
    scope.add_initializers(graph)
    emit_nodes(scope, graph)
    results = [scope.tensor(value) for value in graph.outputs]
    outputs = tuple(_port(v, code) for v, code in zip(graph.outputs, results, strict=True))
    scope.statement(f"return {', '.join(results) if results else '()'}")
    scope.lines = with_releases(scope.lines, scope.variables.keys() - {p.variable for p in inputs})
    title = path.name.replace("\\", "/").replace('"', "'")
    source, first = _source(title, context, scope, inputs, outputs)
    return Program(
        title=title,
        inputs=inputs,
        outputs=outputs,
        source=source,
        operators=operators_source(context.used.values()),
        stored=context.table.stored,
        onnx_names=context.table.onnx_names,
        values=scope.variables,
        lines={first + number: names for number, names in scope.made.items()},
        notes=[*lost, *context.notes],
    )


def emit_nodes(scope: Scope, graph: ir.Graph) -> None:
    """Writes the nodes of a graph that are not part of others, in order."""
    for node in graph:
        if id(node) not in scope.done and any(is_used(value) for value in node.outputs):
            _emit(scope, node)


def _emit(scope: Scope, node: ir.Node) -> None:
    if _is_alias(node):
        source = node.inputs[0]
        assert source is not None
        scope.bind(node.outputs[0], scope.bound(source))
        return
    if emit_folded(scope, node) or emit_host(scope, node):
        return
    if emit_control(scope, node, emit_nodes) or emit_layer(scope, node):
        return
    if not emit_natural(scope, node):
        emit_call(scope, node)


def _is_alias(node: ir.Node) -> bool:
    """Whether the output is the input."""
    if node.domain != "" or any(is_used(value) for value in node.outputs[1:]):
        return False
    is_dropout = node.op_type == "Dropout" and len(node.inputs) < 3
    return is_dropout or node.op_type == "Identity"


def _port(value: ir.Value, code: str) -> Port:
    import onnx_ir as ir

    if value.dtype is ir.DataType.STRING:
        raise UnsupportedError(
            f"'{value.name}' holds text, for which PyTorch has no tensors.",
            hint="Cut the graph behind its text operators and prepare the numbers before it.",
        )
    is_tensor = value.type is None or isinstance(value.type, ir.TensorType)
    dtype = dtype_name(value.dtype) if is_tensor and value.dtype is not None else ""
    shape = None
    if value.shape is not None and is_tensor:
        shape = tuple(_size(size, f"{code}_dim{axis}") for axis, size in enumerate(value.shape))
    return Port(value.name or code, code, dtype, shape)


def _size(size: Any, name: str) -> int | str:
    """A fixed size, or the name of a dynamic one; some exporters write -1 or "?" for those."""
    if isinstance(size, int):
        return size if size >= 0 else name
    return str(size.value) if size.value and size.value != "?" else name


def _source(
    title: str,
    context: Context,
    scope: Scope,
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
) -> tuple[str, int]:
    """`model.py`, and the line at which the statements of `forward` begin."""
    lines = [
        f'"""{title} as a PyTorch module, written by convkit. Edit it as you like."""',
        "",
        "from __future__ import annotations",
        "",
        *(["import math"] if _mentions(context, scope, "math.") else []),
        "from pathlib import Path",
        "",
        "import torch",
        "from torch import nn",
        "",
    ]
    if context.used:
        lines += [
            "try:",
            "    from . import operators",
            "except ImportError:  # imported by its bare name, from inside the folder",
            "    import operators",
            "",
        ]
    lines += [
        "",
        "class Model(nn.Module):",
        f'    """{_ports(inputs)} -> {_ports(outputs)}."""',
        "",
        "    def __init__(self):",
        "        super().__init__()",
        *(f"        {line}" for line in context.table.lines),
        "",
    ]
    parameters = ", ".join(["self", *(port.variable for port in inputs)])
    lines += [f"    def forward({parameters}):"]
    first = len(lines) + 1
    lines += [f"        {line}" for line in scope.lines]
    for method in context.methods:
        lines += ["", *(f"    {line}" for line in method)]
    lines += _LOAD
    return "\n".join(lines) + "\n", first


_LOAD = '''

def load(weights=None):
    """The network with its weights, ready to run; `train()` it to go on training."""
    from safetensors.torch import load_file

    with torch.device("meta"):
        model = Model()
    file = weights or Path(__file__).with_name("model.safetensors")
    model.load_state_dict(load_file(file), assign=True)
    return model.eval()'''.splitlines()


def _mentions(context: Context, scope: Scope, word: str) -> bool:
    methods = (line for method in context.methods for line in method)
    return any(word in line for line in (*scope.lines, *methods))


def _ports(ports: tuple[Port, ...]) -> str:
    def words(port: Port) -> str:
        name = "".join(c if c.isprintable() and c not in '"\\' else "?" for c in port.name)
        if port.shape is None:
            return name
        sizes = ", ".join(
            "".join(c for c in str(s) if c.isalnum() or c in "_+-*/ ") for s in port.shape
        )
        return f"{name} {port.dtype}[{sizes}]"

    return "; ".join(words(port) for port in ports) or "nothing"
