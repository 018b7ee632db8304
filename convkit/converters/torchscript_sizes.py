"""Prepares an exported program for the tracer of TorchScript, which else fixes every size."""

from __future__ import annotations

from typing import Any

_GUARDS = "_guards_fn"
"""The submodule that checks inputs of an exported program. Source: torch.export of PyTorch 2.13."""


def keep_sizes_dynamic(network: Any) -> None:
    """Rewrites an exported program, in place, so that a trace follows its sizes.

    It asks for sizes, and uses them, through operators of the dispatcher, whose numbers the tracer
    records as constants. Methods of tensors and functions of `torch` do the same and are traced.
    """
    import torch

    if not isinstance(network, torch.fx.GraphModule):
        return
    # A body of control flow is given sizes, too.
    sizes = {n for n in network.graph.nodes if n.op == "placeholder" and _is_number(n)}
    for node in list(network.graph.nodes):
        if node.op == "call_module" and node.target == _GUARDS and not node.users:
            network.graph.erase_node(node)  # checks of sizes in Python, which a trace cannot hold
        if node.op != "call_function":
            continue
        takes_sizes = not sizes.isdisjoint(node.all_input_nodes)
        if node.target is torch.ops.aten.sym_size.int:
            node.op, node.target = "call_method", "size"
            sizes.add(node)
        elif takes_sizes and _arithmetic(node.target) is not None:
            node.target = _arithmetic(node.target)
            sizes.add(node)
        elif not isinstance(node.target, torch._ops.OpOverload):
            sizes |= {node} if takes_sizes else set()  # arithmetic of sizes
        elif takes_sizes:
            _call_by_name(node)
    network.graph.eliminate_dead_code()
    network.recompile()


def _is_number(node: Any) -> bool:
    import torch

    return isinstance(node.meta.get("val"), (int, float, torch.SymInt, torch.SymFloat))


def _arithmetic(function: Any) -> Any:
    """Arithmetic that takes sizes as the tracer has them, which are tensors; else None."""
    import math

    import torch

    return {
        torch.sym_min: _least,
        torch.sym_max: _greatest,
        torch.sym_not: _opposite,
        torch.sym_float: _real,
        math.floor: _floor,
        math.ceil: _ceil,
        math.trunc: _trunc,
    }.get(function)


def _least(a: Any, b: Any) -> Any:
    import torch

    return torch.minimum(torch.as_tensor(a), torch.as_tensor(b))


def _greatest(a: Any, b: Any) -> Any:
    import torch

    return torch.maximum(torch.as_tensor(a), torch.as_tensor(b))


def _opposite(a: Any) -> Any:
    import torch

    return torch.logical_not(torch.as_tensor(a))


def _real(a: Any) -> Any:
    import torch

    return torch.as_tensor(a).to(torch.float64)


def _floor(a: Any) -> Any:
    import torch

    return torch.floor(torch.as_tensor(a)).to(torch.int64)


def _ceil(a: Any) -> Any:
    import torch

    return torch.ceil(torch.as_tensor(a)).to(torch.int64)


def _trunc(a: Any) -> Any:
    import torch

    return torch.trunc(torch.as_tensor(a)).to(torch.int64)


def _call_by_name(node: Any) -> None:
    """Calls the same operator as Python code does."""
    import torch

    name = node.target._schema.name.partition("::")[2]
    if name == "slice":
        node.target = _sliced
    elif node.args and isinstance(node.args[0], torch.fx.Node) and hasattr(torch.Tensor, name):
        node.op, node.target = "call_method", name
    elif hasattr(torch, name) or hasattr(torch._C._nn, name):
        node.target = getattr(torch if hasattr(torch, name) else torch._C._nn, name)


def _sliced(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    return x[(slice(None),) * (dim % x.dim()) + (slice(start, end, step),)]
