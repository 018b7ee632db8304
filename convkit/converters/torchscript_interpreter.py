"""A ScriptModule as an ordinary `nn.Module`: its graph is walked in Python, operator by operator.

What TorchScript decides at run time from shapes, dtypes and settings (ranks, `training`, autocast,
fast paths, loops over a known range) is decided here in Python, so `torch.export` sees operators
only, with symbolic sizes. What depends on the values of tensors cannot be decided and is refused.
State kept in attributes lives for one call: every call starts from the state as loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convkit.converters.torchscript_graph import is_changed
from convkit.converters.torchscript_operators import UnknownOperatorError, call_operator
from convkit.errors import UnsupportedError
from convkit.torchscript_module import AttributePath, attribute_path


def interpreted(module: Any) -> Any:
    """An `nn.Module` that computes what the ScriptModule's `forward` computes.

    Parameters and buffers keep their dotted names; tensors folded into the graph by freezing become
    buffers `constant_0`, `constant_1` ...

    Args:
        module: a loaded ScriptModule in evaluation mode; its `reset_states()` was called if it has
            one. The module is read, not changed.
    """
    from torch import nn

    class Interpreted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.program = _Program(module, self)

        def forward(self, *arguments: Any) -> Any:
            return self.program.call(self, arguments)

    return Interpreted()


class _Program:
    """A graph, and where the tensors it reads are registered in the module around it.

    Args:
        module: the ScriptModule.
        owner: the module that takes over its tensors.
    """

    def __init__(self, module: Any, owner: Any) -> None:
        self._graph = module.inlined_graph
        self._root = next(self._graph.inputs()).debugName()
        self._attributes: dict[AttributePath, Any] = {}
        self._constants: dict[str, str] = {}
        named = (*module.named_parameters(), *module.named_buffers())
        self._known = {_identity(t): tuple(n.split(".")) for n, t in reversed(named) if t.numel()}
        self._adopt(module, owner, self._graph)

    def __deepcopy__(self, _: Any) -> _Program:
        return self  # graphs cannot be copied, and nothing here changes

    def call(self, owner: Any, arguments: Sequence[Any]) -> Any:
        """Runs the graph with the tensors registered in `owner`."""
        frame = _Frame(self, owner)
        first, *others = self._graph.inputs()
        frame.values[first.debugName()] = _Object(())
        for index, value in enumerate(others):
            given = arguments[index] if index < len(arguments) else None
            frame.values[value.debugName()] = given
        frame.run(self._graph)
        results = [frame.values[value.debugName()] for value in self._graph.outputs()]
        return results[0] if len(results) == 1 else tuple(results)

    def attribute(self, owner: Any, path: AttributePath) -> Any:
        """The value of an attribute as loaded: a tensor, a plain value, or an object."""
        return _restored(owner, self._attributes.get(path, _Object(path)))

    def constant(self, owner: Any, node: Any) -> Any:
        """The value of a constant node; a whole number that a trace wrapped in a tensor is bare."""
        name = node.output().debugName()
        if name in self._constants:
            return getattr(owner, self._constants[name])
        value = node.output().toIValue()
        return value.item() if hasattr(value, "dim") else value

    def _adopt(self, module: Any, owner: Any, block: Any) -> None:
        """Takes over every attribute and tensor constant that the graph reads."""
        for node in block.nodes():
            if node.kind() == "prim::GetAttr":
                path = attribute_path(node, self._root)
                if path is not None and path not in self._attributes:
                    self._adopt_attribute(module, owner, path)
            elif node.kind() == "prim::Constant" and node.hasAttribute("value"):
                value = node.output().toIValue()
                if hasattr(value, "dim") and not _is_number(value):
                    name = f"constant_{len(self._constants)}"
                    owner.register_buffer(name, value.detach())
                    self._constants[node.output().debugName()] = name
            for inner in node.blocks():
                self._adopt(module, owner, inner)

    def _adopt_attribute(self, module: Any, owner: Any, path: AttributePath) -> None:
        import torch

        held = module
        for name in path:
            held = getattr(held, name)
        if not isinstance(held, torch.jit.ScriptModule):
            self._attributes[path] = self._stored(held, owner, path)

    def _stored(self, held: Any, owner: Any, path: AttributePath) -> Any:
        """A value with its tensors registered, each once, and replaced by where they are."""
        from torch import Tensor, nn

        if isinstance(held, list | tuple):
            items = [self._stored(item, owner, (*path, str(i))) for i, item in enumerate(held)]
            return tuple(items) if isinstance(held, tuple) else items
        if not isinstance(held, Tensor):
            return held
        path = self._known.get(_identity(held), path)
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


def _restored(owner: Any, value: Any) -> Any:
    """The opposite of `_stored`; containers are fresh, since the code may change them."""
    if isinstance(value, list | tuple):
        items = [_restored(owner, item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, _Stored):
        for name in value.path:
            owner = getattr(owner, name)
        return owner
    return value.copy() if isinstance(value, dict) else value


def _is_number(tensor: Any) -> bool:
    import torch

    return tensor.dim() == 0 and tensor.dtype in (torch.int64, torch.int32, torch.bool)


def _identity(tensor: Any) -> tuple[Any, ...]:
    """Equal for two handles on one tensor; a TorchScript list holds its own handles."""
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


class _Stored:
    """Says that an attribute is a registered tensor at `path`."""

    def __init__(self, path: AttributePath) -> None:
        self.path = path


class _Object:
    """A submodule (its path), or an object that the code made (path None)."""

    def __init__(self, path: AttributePath | None) -> None:
        self.path = path
        self.fields: dict[str, Any] = {}


class _Frame:
    """One call: values by name, and the attributes assigned so far."""

    def __init__(self, program: _Program, owner: Any) -> None:
        self._program = program
        self._owner = owner
        self.values: dict[str, Any] = {}
        self._assigned: dict[AttributePath, Any] = {}

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

    def _prim_Constant(self, node: Any) -> None:
        self._set(node, [self._program.constant(self._owner, node)])

    def _prim_GetAttr(self, node: Any) -> None:
        owner, name = self._inputs(node)[0], node.s("name")
        if owner.path is None:
            self._set(node, [owner.fields.get(name)])
            return
        path = (*owner.path, name)
        if path not in self._assigned:
            value = self._program.attribute(self._owner, path)
            if hasattr(value, "dim") and is_changed(node.output()):
                value = value.clone()  # a buffer changed in place would keep the change
            self._assigned[path] = value
        self._set(node, [self._assigned[path]])

    def _prim_SetAttr(self, node: Any) -> None:
        owner, value = self._inputs(node)
        if owner.path is None:
            owner.fields[node.s("name")] = value
        else:
            path = (*owner.path, node.s("name"))
            self._assigned[path] = value

    def _prim_CreateObject(self, node: Any) -> None:
        self._set(node, [_Object(None)])

    def _prim_If(self, node: Any) -> None:
        condition = self._inputs(node)[0]
        first, second = node.blocks()
        block = first if self._decide(condition, node) else second
        self.run(block)
        self._set(node, [self.values[value.debugName()] for value in block.outputs()])

    def _prim_Loop(self, node: Any) -> None:
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

    def _prim_RaiseException(self, node: Any) -> None:
        raise ValueError(f"the module refuses its input: {self._inputs(node)[0]}")

    def _decide(self, condition: Any, node: Any) -> bool:
        if hasattr(condition, "dim"):
            raise _undecided(node, "a branch that depends on the values of a tensor")
        return bool(condition)


def _undecided(node: Any, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"TorchScript's {node.kind()} here is {what}.",
        why=node.sourceRange().strip().splitlines()[:6],
        construct=node.kind(),
    )
