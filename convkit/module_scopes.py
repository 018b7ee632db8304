"""Which tensor of an ONNX graph is the output of which module of the PyTorch network behind it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convkit.exposing import ExposedGraph
    from convkit.formats.onnx_header import NodeHeader

Scope = tuple[str, ...]
"""A module's path, element by element; empty for the network itself."""

_SCOPE_KEYS = (("pkg.torch.onnx.name_scopes", True), ("pkg.onnxscript.name_scopes", False))
_SCRIPT_VALUE = re.compile(r"v_(.+)\.\w+_\d+")
"""Names onnxscript gives values: `v_encoder.layer.0.MatMul_13`."""


def module_values(graph: ExposedGraph, modules: Iterable[str]) -> dict[str, str]:
    """Value name -> path of the PyTorch module whose output it should be.

    A module's output is the last value made in its scope that is read outside of it. Scopes stand
    in node metadata (torch.onnx with torch.export, onnxscript) or in node names (the older
    exporter). A scope that leaves path elements out, as a rewritten network does, belongs to the
    one module that has them in this order.
    """
    scopes = _inferred(graph.nodes, [_scope(node) for node in graph.nodes])
    readers: dict[str, list[Scope]] = {}
    for node, scope in zip(graph.nodes, scopes, strict=True):
        for name in node.reads:
            readers.setdefault(name, []).append(scope)
    made: dict[Scope, str] = {}
    for node, scope in zip(graph.nodes, scopes, strict=True):
        for name in reversed(node.outputs):  # the first is an operator's main result
            leaves = readers.get(name, [])
            for depth in range(1, len(scope) + 1):
                outer = scope[:depth]
                is_read_outside = any(reader[:depth] != outer for reader in leaves)
                if is_read_outside or name in graph.outputs:
                    made[outer] = name
    paths = list(modules)
    own = _unwrapped(made, paths)
    return {own[scope]: path for scope, path in _match_scopes(own, paths).items()}


def _unwrapped(made: Mapping[Scope, str], modules: Sequence[str]) -> Mapping[Scope, str]:
    """Scopes as the network itself has them, where it was exported inside a module of its own."""
    (wrapper, _), *_ = Counter(scope[0] for scope in made).most_common(1) or [("", 0)]
    inner = {s[1:]: value for s, value in made.items() if s[0] == wrapper and len(s) > 1}
    known = {tuple(path.split(".")) for path in modules}
    return inner if len(known & set(inner)) > len(known & set(made)) else made


def _inferred(nodes: Sequence[NodeHeader], scopes: Sequence[Scope | None]) -> list[Scope]:
    """Scopes of all nodes; one that lost its own gets what its neighbours have in common.

    A rewritten node stands where its sources and its readers are both at home.
    """
    makers = {name: i for i, node in enumerate(nodes) for name in node.outputs if name}
    sources = [[makers[name] for name in node.reads if name in makers] for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for index, found in enumerate(sources):
        for source in found:
            readers[source].append(index)
    order = range(len(nodes))
    above = _spread(scopes, sources, order)
    below = _spread(scopes, readers, reversed(order))
    return [
        own if own is not None else _shared([s for s in (above[i], below[i]) if s is not None])
        for i, own in enumerate(scopes)
    ]


def _spread(
    scopes: Sequence[Scope | None], neighbours: Sequence[Sequence[int]], order: Iterable[int]
) -> list[Scope | None]:
    """Each node's own scope, else what its neighbours' share; None where none is known."""
    found = list(scopes)
    for index in order:
        near = [scope for n in neighbours[index] if (scope := found[n]) is not None]
        if found[index] is None and near:
            found[index] = _shared(near)
    return found


def _shared(scopes: Sequence[Scope]) -> Scope:
    """The longest path that all begin with."""
    if not scopes:
        return ()
    first, last = min(scopes), max(scopes)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return first[: len(first) if length is None else length]


def _match_scopes(scopes: Iterable[Scope], modules: Iterable[str]) -> dict[Scope, str]:
    free = {tuple(path.split(".")): path for path in modules}
    open_scopes = sorted(set(scopes), key=lambda scope: (-len(scope), scope))
    found = {scope: free.pop(scope) for scope in open_scopes if scope in free}
    remaining = [scope for scope in open_scopes if scope not in found]
    progress = True
    while progress:
        progress = False
        for scope in list(remaining):
            fitting = [path for path in free if _is_within(scope, path)]
            if len(fitting) == 1:
                found[scope] = free.pop(fitting[0])
                remaining.remove(scope)
                progress = True
    return found


def _is_within(scope: Scope, path: Scope) -> bool:
    """Whether a scope's elements occur in a path in order, ending in the same one."""
    rest = iter(path)
    return scope[-1] == path[-1] and all(part in rest for part in scope)


def _scope(node: NodeHeader) -> Scope | None:
    """The module path of a node, or None where nothing tells it.

    Source: torch/onnx/_internal/exporter (`pkg.torch.onnx.name_scopes`: a list of full paths that
    ends in the operation), onnxscript (`pkg.onnxscript.name_scopes`: a list of path elements),
    torch/onnx/utils.py (the older exporter's node names `/encoder/layer.0/MatMul`).
    """
    for key, is_full in _SCOPE_KEYS:
        names = _listed(node.metadata.get(key, ""))
        if names:
            path = (names[-2] if len(names) > 1 else "") if is_full else ".".join(names)
            return tuple(part for part in path.split(".") if part)
    if node.name.startswith("/"):
        return tuple(part for step in node.name.split("/")[1:-1] for part in step.split("."))
    named = _SCRIPT_VALUE.fullmatch(node.outputs[0]) if node.outputs else None
    return tuple(named[1].split(".")) if named else None


def _listed(written: str) -> list[str]:
    """The names in the text of a Python list; empty where it is none."""
    try:
        found = ast.literal_eval(written)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return [str(name) for name in found] if isinstance(found, list) else []
