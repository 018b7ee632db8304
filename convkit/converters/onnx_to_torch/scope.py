"""One function of the generated module while it is written: what its variables are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_to_torch.dtypes import carrier_name
from convkit.converters.onnx_to_torch.host import Host, Number, constant, size
from convkit.converters.onnx_to_torch.names import Names
from convkit.converters.onnx_to_torch.weights import Table, Weight
from convkit.onnx_structure import array_of

if TYPE_CHECKING:
    import onnx_ir as ir

_HOST_COUNT = 64
"""Constants of up to so many numbers may be written into the source."""
_HOST_TYPES = ("INT64", "INT32", "FLOAT", "DOUBLE", "BOOL", "FLOAT16", "BFLOAT16")


@dataclass(frozen=True)
class Variable:
    """A value that is a Python variable: a tensor, a list of tensors, or None."""

    code: str


Bound = Variable | Host | Weight


@dataclass
class Context:
    """What all functions of one generated module share.

    Attributes:
        folder: where the ONNX file's data lie.
        table: the module's attributes.
        library: operator -> its function.
        used: library functions that are called, by name.
        methods: sources of finished methods.
        notes: sentences for the report.
    """

    folder: Path
    table: Table
    library: Mapping[tuple[str, str], Callable[..., Any]]
    used: dict[str, Callable[..., Any]] = field(default_factory=dict)
    methods: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def function(self, function: Callable[..., Any]) -> str:
        """How the module calls a library function."""
        self.used[function.__name__] = function
        return f"operators.{function.__name__}"


class Scope:
    """A function of the module being written.

    Attributes:
        context: what it shares with others.
        lines: its statements.
        captured: variables of the function around it that it reads.
        variables: variable -> the ONNX value it holds.
        made: line number in `lines` -> ONNX values made there.
        done: nodes that another node took with it.
        repeats: whether it runs several times, with tensors of different shapes.
    """

    def __init__(self, context: Context, names: Names, parent: Scope | None = None) -> None:
        self.context = context
        self.names = names
        self.lines: list[str] = []
        self.captured: dict[str, None] = {}
        self.variables: dict[str, str] = {}
        self.made: dict[int, tuple[str, ...]] = {}
        self.done: set[int] = set()
        self.repeats: bool = parent.repeats if parent else False
        self._parent = parent
        self._bound: dict[int, Bound] = {}
        self._kept: list[Any] = []  # ids are of objects that live
        self._hosts: dict[int, Host | None] = {}
        self._tensors: dict[int, str] = {}
        self._aliases: dict[int, ir.Value] = {}

    @property
    def is_inner(self) -> bool:
        """Whether it is the body of a branch or a loop."""
        return self._parent is not None

    def bind(self, value: ir.Value, bound: Bound) -> None:
        """Says what a value is."""
        self._bound[id(value)] = bound
        self._kept.append(value)

    def alias(self, value: ir.Value, outer: ir.Value) -> None:
        """Says that a value is one of the function around."""
        self._aliases[id(value)] = outer
        self._kept.append(value)

    def add_initializers(self, graph: ir.Graph) -> None:
        """Binds the constants of a graph."""
        for name, value in graph.initializers.items():
            self.bind(value, _weight(name, value, self.context.folder))

    def bound(self, value: ir.Value) -> Bound:
        """What a value is; one of a function around becomes captured."""
        value = self._aliases.get(id(value), value)
        if id(value) in self._bound:
            return self._bound[id(value)]
        if self._parent is None:
            raise KeyError(value.name)
        found = self._parent.bound(value)
        if isinstance(found, Variable):
            self.captured[found.code] = None
        elif isinstance(found, Host):
            self.captured.update(dict.fromkeys(sorted(found.reads)))
        return found

    def declare(self, value: ir.Value) -> str:
        """A new variable for a value."""
        name = self.names.claim(value.name or "value")
        self.variables[name] = value.name or ""
        self.bind(value, Variable(name))
        return name

    def tensor(self, value: ir.Value | None) -> str:
        """An expression for a value as a tensor."""
        if value is None:
            return "None"
        found = self.bound(value)
        if isinstance(found, Variable):
            return found.code
        if isinstance(found, Weight):
            return self.context.table.tensor(found)
        if id(value) not in self._tensors:
            self._tensors[id(value)] = self._materialised(value, found)
            self._kept.append(value)
        return self._tensors[id(value)]

    def _materialised(self, value: ir.Value, host: Host) -> str:
        dtype = carrier_name(host.dtype)
        if host.is_constant:
            return self.context.table.tensor(constant_weight(value.name or "constant", host))
        name = self.names.claim(f"{value.name}")
        self.lines.append(f"{name} = torch.tensor({host.code}, dtype=torch.{dtype})")
        self.variables[name] = value.name or ""
        return name

    def host(self, value: ir.Value | None) -> Host | None:
        """A value's numbers, where Python knows them."""
        if value is None:
            return None
        found = self.bound(value)
        if isinstance(found, Host):
            return found
        if not isinstance(found, Weight):
            return None
        if id(value) not in self._hosts:
            self._hosts[id(value)] = _as_host(found)
            self._kept.append(value)
        return self._hosts[id(value)]

    def weight(self, value: ir.Value | None) -> Weight | None:
        """A value as a constant tensor, if it is one."""
        if value is None:
            return None
        found = self.bound(value)
        if isinstance(found, Host) and found.is_constant:
            return constant_weight(value.name or "constant", found)
        return found if isinstance(found, Weight) else None

    def size(self, value: ir.Value, axis: int) -> Number:
        """A dimension of a tensor: a number where inference knows it."""
        known = None
        with contextlib.suppress(TypeError, IndexError):
            known = value.shape[axis] if value.shape is not None else None
        weight = self.weight(value)
        if weight is not None:
            return constant(weight.shape[axis])
        if isinstance(known, int) and known >= 0 and not self.repeats:
            return constant(known)
        return size(self.tensor(value), axis)

    def assign(
        self, node: ir.Node, code: str, count: int | None = None, is_tuple: bool = False
    ) -> None:
        """Writes the line that makes a node's outputs.

        Args:
            node: whose outputs.
            code: gives the first `count` of them, all where not given.
            count: how many; one comes bare.
            is_tuple: whether the code gives a tuple of perhaps more than the node has.
        """
        outputs = list(node.outputs)[: count or len(node.outputs)]
        names = [self.declare(value) if is_used(value) else "_" for value in outputs]
        if is_tuple:
            while names and names[-1] == "_":
                names.pop()
            names.append("*_")
        self.lines.append(f"{', '.join(names)} = {code}")
        made = tuple(value.name or "" for value in outputs if is_used(value))
        self.made[len(self.lines) - 1] = made

    def rename(self, value: ir.Value, name: str) -> None:
        """Says that a claimed variable holds a value."""
        self.variables[name] = value.name or ""
        self.bind(value, Variable(name))

    def note_made(self, node: ir.Node) -> None:
        """Says that the outputs of a node are there after the last statement."""
        made = tuple(value.name or "" for value in node.outputs if is_used(value))
        self.made[len(self.lines) - 1] = made

    def statement(self, code: str) -> None:
        """Writes a line of its own."""
        self.lines.append(code)


def is_used(value: ir.Value) -> bool:
    """Whether anything reads a value."""
    return bool(value.name) and (bool(value.uses()) or value.is_graph_output())


def rank_of(value: ir.Value | None) -> int | None:
    """The rank that inference found."""
    return None if value is None or value.shape is None else len(value.shape)


def _weight(name: str, value: ir.Value, folder: Path) -> Weight:
    tensor = value.const_value
    assert tensor is not None
    shape = tuple(int(n) for n in tensor.shape.numpy())
    return Weight(name, shape, tensor.dtype, lambda: array_of(tensor, folder), origin=name)


def constant_weight(name: str, host: Host) -> Weight:
    """Known numbers as a tensor."""
    import numpy as np

    values: Any = host.values if host.is_list else host.values[0]
    dtype = host.dtype.numpy()
    shape = (len(host.numbers),) if host.is_list else ()
    return Weight(name, shape, host.dtype, lambda: np.asarray(values, dtype))


def _as_host(weight: Weight) -> Host | None:
    if len(weight.shape) > 1 or weight.element_count > _HOST_COUNT:
        return None
    if weight.dtype.name not in _HOST_TYPES:
        return None
    single = weight.dtype.name == "FLOAT"
    numbers = weight.make().reshape(-1)
    if weight.dtype.name == "BFLOAT16":
        numbers = numbers.astype("float32")
    values = numbers.tolist()
    return Host(tuple(constant(v, single) for v in values), len(weight.shape) == 1, weight.dtype)
