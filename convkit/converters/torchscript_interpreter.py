"""A ScriptModule as an ordinary `nn.Module`: its graph is walked in Python, operator by operator.

What TorchScript decides at run time from shapes, dtypes and settings (ranks, `training`, autocast,
fast paths, loops over a known range) is decided here in Python, so `torch.export` sees the operators
alone, with symbolic sizes. What depends on the values of tensors cannot be decided and is refused.
State kept in attributes lives for one call: every call starts from the state as loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from convkit.converters.torchscript_graph import attribute_path
from convkit.converters.torchscript_operators import UnknownOperatorError, call_operator
from convkit.errors import UnsupportedError


class Interpreted(nn.Module):  # type: ignore[misc,unused-ignore]
    """Computes what the ScriptModule's `forward` computes.

    Parameters and buffers keep their dotted names; tensors folded into the graph by freezing become
    buffers `constant_0`, `constant_1` ...

    Args:
        module: a loaded ScriptModule in evaluation mode; its `reset_states()` was called if it has
            one. The module is read, not changed.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.graph = _Opaque(module.inlined_graph)
        self._root = next(self.graph.held.inputs()).debugName()
        self._attributes: dict[tuple[str, ...], Any] = {}
        self._constants: dict[str, Any] = {}
        named = (*module.named_parameters(), *module.named_buffers())
        self._known = {_identity(t): tuple(n.split(".")) for n, t in reversed(named) if t.numel()}
        self._adopt(module, self.graph.held)

    def forward(self, *arguments: Any) -> Any:
        """Runs the graph."""
        frame = _Frame(self)
        values = list(self.graph.held.inputs())
        frame.values[values[0].debugName()] = _Object(())
        for index, value in enumerate(values[1:]):
            given = arguments[index] if index < len(arguments) else None
            frame.values[value.debugName()] = given
        frame.run(self.graph.held)
        results = [frame.values[value.debugName()] for value in self.graph.held.outputs()]
        return results[0] if len(results) == 1 else tuple(results)

    def attribute(self, path: tuple[str, ...]) -> Any:
        """The value of an attribute as loaded: a tensor, a plain value, or an object."""
        return self._restored(self._attributes.get(path, _Object(path)))

    def constant(self, node: Any) -> Any:
        """The value of a constant node; a whole number that a trace wrapped in a tensor is bare."""
        name = node.output().debugName()
        if name in self._constants:
            return getattr(self, self._constants[name])
        value = node.output().toIValue()
        return value.item() if isinstance(value, torch.Tensor) else value

    def _adopt(self, module: Any, block: Any) -> None:
        """Takes over every attribute and tensor constant that the graph reads."""
        for node in block.nodes():
            if node.kind() == "prim::GetAttr":
                path = attribute_path(node, self._root)
                if path is not None and path not in self._attributes:
                    self._adopt_attribute(module, path)
            elif node.kind() == "prim::Constant" and node.hasAttribute("value"):
                value = node.output().toIValue()
                if isinstance(value, torch.Tensor) and not _is_number(value):
                    name = f"constant_{len(self._constants)}"
                    self.register_buffer(name, value.detach())
                    self._constants[node.output().debugName()] = name
            for inner in node.blocks():
                self._adopt(module, inner)

    def _adopt_attribute(self, module: Any, path: tuple[str, ...]) -> None:
        held = module
        for name in path:
            held = getattr(held, name)
        if not isinstance(held, torch.jit.ScriptModule):
            self._attributes[path] = self._stored(held, path)

    def _stored(self, held: Any, path: tuple[str, ...]) -> Any:
        """A value with its tensors registered, each once, and replaced by where they are."""
        if isinstance(held, list | tuple):
            items = [self._stored(item, (*path, str(i))) for i, item in enumerate(held)]
            return tuple(items) if isinstance(held, tuple) else items
        if not isinstance(held, torch.Tensor):
            return held
        path = self._known.get(_identity(held), path)
        owner: Any = self
        for name in path[:-1]:
            if not hasattr(owner, name):
                owner.add_module(name, nn.Module())
            owner = getattr(owner, name)
        if not hasattr(owner, path[-1]):
            if isinstance(held, nn.Parameter):
                owner.register_parameter(path[-1], nn.Parameter(held.detach(), requires_grad=False))
            else:
                owner.register_buffer(path[-1], held.detach())
        return _Stored(path)

    def _restored(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            items = [self._restored(item) for item in value]
            return tuple(items) if isinstance(value, tuple) else items
        if isinstance(value, _Stored):
            held: Any = self
            for name in value.path:
                held = getattr(held, name)
            return held
        return value.copy() if isinstance(value, dict) else value


def _is_number(tensor: Any) -> bool:
    return tensor.dim() == 0 and tensor.dtype in (torch.int64, torch.int32, torch.bool)


def _identity(tensor: Any) -> tuple[Any, ...]:
    """Equal for two handles on one tensor; a TorchScript list holds its own handles."""
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


class _Opaque:
    """Keeps a graph out of PyTorch's sight: copying a module must not copy it."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __deepcopy__(self, _: Any) -> _Opaque:
        return self


class _Stored:
    """Says that an attribute is a registered tensor at `path`."""

    def __init__(self, path: tuple[str, ...]) -> None:
        self.path = path


class _Object:
    """A submodule (its path), or an object that the code made (path None)."""

    def __init__(self, path: tuple[str, ...] | None) -> None:
        self.path = path
        self.fields: dict[str, Any] = {}


class _Frame:
    """One call: values by name, and the attributes assigned so far."""

    def __init__(self, module: Interpreted) -> None:
        self.module = module
        self.values: dict[str, Any] = {}
        self._assigned: dict[tuple[str, ...], Any] = {}

    def run(self, block: Any) -> None:
        for node in block.nodes():
            handler = getattr(self, f"_{node.kind().replace('::', '_')}", None)
            if handler is not None:
                handler(node)
            else:
                self._operator(node)

    def _inputs(self, node: Any) -> list[Any]:
        return [self.values[value.debugName()] for value in node.inputs()]

    def _set(self, node: Any, results: Sequence[Any]) -> None:
        for value, result in zip(node.outputs(), results, strict=True):
            self.values[value.debugName()] = result

    def _operator(self, node: Any) -> None:
        try:
            result = call_operator(node, self._inputs(node))
        except UnknownOperatorError as cause:
            raise UnsupportedError(
                f"TorchScript's {node.kind()} cannot be interpreted.",
                why=node.sourceRange().strip()[:500],
                construct=node.kind(),
            ) from cause
        self._set(node, [result] if node.outputsSize() == 1 else result if result else ())

    def _prim_Constant(self, node: Any) -> None:  # noqa: N802 - named as the node kinds are
        self._set(node, [self.module.constant(node)])

    def _prim_GetAttr(self, node: Any) -> None:  # noqa: N802
        owner, name = self._inputs(node)[0], node.s("name")
        if owner.path is None:
            self._set(node, [owner.fields.get(name)])
            return
        path = (*owner.path, name)
        if path not in self._assigned:
            value = self.module.attribute(path)
            if isinstance(value, torch.Tensor) and _is_changed(node.output()):
                value = value.clone()  # a buffer changed in place would keep the change
            self._assigned[path] = value
        self._set(node, [self._assigned[path]])

    def _prim_SetAttr(self, node: Any) -> None:  # noqa: N802
        owner, value = self._inputs(node)
        if owner.path is None:
            owner.fields[node.s("name")] = value
        else:
            self._assigned[*owner.path, node.s("name")] = value

    def _prim_CreateObject(self, node: Any) -> None:  # noqa: N802
        self._set(node, [_Object(None)])

    def _prim_If(self, node: Any) -> None:  # noqa: N802
        condition = self._inputs(node)[0]
        first, second = node.blocks()
        block = first if self._decide(condition, node) else second
        self.run(block)
        self._set(node, [self.values[value.debugName()] for value in block.outputs()])

    def _prim_Loop(self, node: Any) -> None:  # noqa: N802
        limit, condition, *carried = self._inputs(node)
        if not isinstance(limit, int):
            raise _undecided(node, "a loop whose length depends on a dynamic size")
        block = next(node.blocks())
        names = [value.debugName() for value in block.inputs()]
        step = 0
        while step < limit and self._decide(condition, node):
            self.values |= dict(zip(names, [step, *carried], strict=True))
            self.run(block)
            condition, *carried = [self.values[value.debugName()] for value in block.outputs()]
            step += 1
        self._set(node, carried)

    def _prim_RaiseException(self, node: Any) -> None:  # noqa: N802
        raise ValueError(f"the module refuses its input: {self._inputs(node)[0]}")

    def _decide(self, condition: Any, node: Any) -> bool:
        if isinstance(condition, torch.Tensor):
            raise _undecided(node, "a branch that depends on the values of a tensor")
        return bool(condition)


def _is_changed(value: Any) -> bool:
    """Whether an operator changes a value in place (its name ends with an underscore)."""
    return any(
        use.user.kind().endswith("_") and next(use.user.inputs()).debugName() == value.debugName()
        for use in value.uses()
    )


def _undecided(node: Any, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"TorchScript's {node.kind()} here is {what}.",
        why=node.sourceRange().strip().splitlines()[:6],
        construct=node.kind(),
    )
