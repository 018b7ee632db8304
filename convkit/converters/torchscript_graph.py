"""Rewrites the graph of a ScriptModule so that exporters can read it.

A TorchScript `forward` may keep state in attributes, refuse bad inputs with `raise`, and return a
dictionary; ONNX has none of the three. `make_functional` turns the graph into one that computes
what a call from the reset state computes, in place, with PyTorch's own graph passes for everything
but the state itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convkit.errors import UnsupportedError
from convkit.torchscript_module import AttributePath, attribute_path, has_reset, nodes_of


@dataclass(frozen=True)
class Rewrite:
    """What `make_functional` changed.

    Attributes:
        state: attributes that no longer survive a call, dotted.
        refusals: number of checks that would have raised and are gone.
    """

    state: list[str]
    refusals: int


def make_functional(module: Any) -> Rewrite:
    """Rewrites `module.forward` in place, so that a call reads and writes no attribute.

    Call it on a module of your own that was not run yet: PyTorch caches what it compiled.

    Args:
        module: a loaded ScriptModule; its `reset_states()`, if it has one, is called first.
    """
    import torch

    if has_reset(module):
        module.reset_states()
    graph = module.forward.graph
    torch._C._jit_pass_inline(graph)
    state = _StateRemoval(graph, module).run()
    refusals = _drop_refusals(graph.block())
    _flatten_dictionary(graph)
    torch._C._jit_pass_constant_propagation(graph)
    torch._C._jit_pass_peephole(graph, False)
    torch._C._jit_pass_dce(graph)
    torch._C._jit_pass_lint(graph)
    return Rewrite(state, refusals)


def control_flow(module: Any) -> list[str]:
    """Kinds of the nodes that a traced graph never has: branches, loops, refusals, assignments."""
    kinds = ("prim::If", "prim::Loop", "prim::RaiseException", "prim::SetAttr")
    found = (node.kind() for node in nodes_of(module.inlined_graph) if node.kind() in kinds)
    return list(dict.fromkeys(found))


def state_attributes(module: Any) -> list[AttributePath]:
    """Paths of the attributes that `forward` assigns, or changes in place."""
    graph = module.inlined_graph
    root = next(graph.inputs()).debugName()
    paths = [attribute_path(node, root) for node in nodes_of(graph) if touches_state(node)]
    return list(dict.fromkeys(path for path in paths if path is not None))


def touches_state(node: Any) -> bool:
    """Whether a node assigns an attribute, or reads a tensor that is then changed in place."""
    if node.kind() == "prim::SetAttr":
        return True
    return node.kind() == "prim::GetAttr" and is_changed(node.output())


def is_changed(value: Any) -> bool:
    """Whether an operator changes a value in place (its name ends with an underscore)."""
    return any(
        use.user.kind().endswith("_") and next(use.user.inputs()).debugName() == value.debugName()
        for use in value.uses()
    )


class _StateRemoval:
    """Turns attributes that `forward` assigns or changes into values that flow through the graph.

    A branch that assigns gets an output more per attribute, a loop a carried value more: the usual
    construction of static single assignment form, on structured control flow.
    """

    def __init__(self, graph: Any, module: Any) -> None:
        self._graph = graph
        self._module = module
        self._root = next(graph.inputs()).debugName()
        self._types: dict[AttributePath, Any] = {}
        self._dead: list[Any] = []

    def run(self) -> list[str]:
        """Rewrites the graph; gives the attributes' dotted names."""
        for node in nodes_of(self._graph):
            if touches_state(node):
                held = node.output() if node.outputsSize() else list(node.inputs())[1]
                self._types.setdefault(self._path(node), held.type())
        for node in nodes_of(self._graph):  # the declared type is wider than that of one assignment
            if node.kind() == "prim::GetAttr" and self._path(node) in self._types:
                self._types[self._path(node)] = node.output().type()
        if not self._types:
            return []
        self._rewrite(self._graph.block(), self._initial_values())
        for node in reversed(self._dead):
            node.destroy()
        return [".".join(path) for path in self._types]

    def _path(self, node: Any) -> AttributePath:
        path = attribute_path(node, self._root)
        if path is None:  # of an object the code made, such as torch.no_grad()
            return ("", next(node.inputs()).debugName(), node.s("name"))
        return path

    def _initial_values(self) -> dict[AttributePath, Any]:
        import torch

        self._graph.setInsertPoint(next(self._graph.nodes()))
        values = {}
        for path in self._types:
            held = self._module
            for name in path:
                if not name:
                    raise UnsupportedError(f"forward changes '{path[-1]}' of an object it made.")
                held = getattr(held, name)
            if isinstance(held, torch.Tensor):
                held = held.detach().clone()
            values[path] = self._graph.insertConstant(held)
            if isinstance(held, torch.Tensor):  # a constant changed in place would keep the change
                values[path] = self._insert_clone(values[path])
        self._graph.setInsertPoint(self._graph.block())
        return values

    def _insert_clone(self, value: Any) -> Any:
        arguments = [value, self._graph.insertConstant(None)]
        clone = self._graph.insertNode(self._graph.create("aten::clone", arguments, 1))
        clone.output().setType(value.type())
        return clone.output()

    def _rewrite(self, block: Any, current: dict[AttributePath, Any]) -> None:
        for node in list(block.nodes()):
            kind = node.kind()
            if kind == "prim::GetAttr" and self._path(node) in self._types:
                node.output().replaceAllUsesWith(current[self._path(node)])
                self._dead.append(node)
            elif kind == "prim::SetAttr":
                current[self._path(node)] = list(node.inputs())[1]
                self._dead.append(node)
            elif kind == "prim::If":
                self._rewrite_branches(node, current)
            elif kind == "prim::Loop":
                self._rewrite_loop(node, current)

    def _rewrite_branches(self, node: Any, current: dict[AttributePath, Any]) -> None:
        blocks = list(node.blocks())
        assigned = [path for path in self._types if any(self._assigns(b, path) for b in blocks)]
        for block in blocks:
            inner = dict(current)
            self._rewrite(block, inner)
            for path in assigned:
                block.registerOutput(inner[path])
        for path in assigned:
            current[path] = node.addOutput()
            current[path].setType(self._types[path])

    def _rewrite_loop(self, node: Any, current: dict[AttributePath, Any]) -> None:
        block = next(node.blocks())
        assigned = [path for path in self._types if self._assigns(block, path)]
        inner = dict(current)
        for path in assigned:
            node.addInput(current[path])
            inner[path] = block.addInputToBlock()
            inner[path].setType(self._types[path])
        self._rewrite(block, inner)
        for path in assigned:
            block.registerOutput(inner[path])
            current[path] = node.addOutput()
            current[path].setType(self._types[path])

    def _assigns(self, block: Any, path: AttributePath) -> bool:
        return any(n.kind() == "prim::SetAttr" and self._path(n) == path for n in nodes_of(block))


def _drop_refusals(block: Any) -> int:
    """Replaces each branch of which one side raises by its other side; gives their number."""
    dropped = 0
    for node in list(block.nodes()):
        for inner in node.blocks():
            dropped += _drop_refusals(inner)
        if node.kind() != "prim::If":
            continue
        first, second = node.blocks()
        if _raises(first) == _raises(second):
            continue
        kept = second if _raises(first) else first
        for moved in list(kept.nodes()):
            moved.moveBefore(node)
        for output, value in zip(list(node.outputs()), list(kept.outputs()), strict=True):
            output.replaceAllUsesWith(value)
        node.destroy()
        dropped += 1
    return dropped


def _raises(block: Any) -> bool:
    return any(node.kind() == "prim::RaiseException" for node in block.nodes())


def _flatten_dictionary(graph: Any) -> None:
    """Makes a returned dictionary the tuple of its values, in order."""
    import torch

    returned = graph.return_node()
    value = next(returned.inputs())
    if value.node().kind() != "prim::DictConstruct":
        return
    values = list(value.node().inputs())[1::2]
    bundle = graph.create("prim::TupleConstruct", values, 1)
    bundle.insertBefore(returned)
    bundle.output().setType(torch._C.TupleType([v.type() for v in values]))
    returned.replaceInput(0, bundle.output())
