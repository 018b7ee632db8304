"""The constants of an ONNX graph as parameters, buffers and layers of a PyTorch module.

A weight is read when the file is written or the module filled, never while code is generated, so
that one tensor at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_to_torch.dtypes import carrier_name, is_float
from convkit.converters.onnx_to_torch.names import Names

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant tensor.

    Attributes:
        name: the ONNX value.
        shape: its dimensions.
        dtype: ONNX's data type.
        make: gives the elements.
        origin: the initializer that it is, where it is one or one transposed.
        is_transposed: whether it is that initializer's transpose.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    make: Callable[[], Array]
    origin: str = ""
    is_transposed: bool = False

    @property
    def transposed(self) -> Weight:
        """The matrix with its axes swapped."""
        make = self.make
        return replace(
            self,
            shape=self.shape[::-1],
            make=lambda: make().T,
            is_transposed=not self.is_transposed,
        )

    def reshaped(self, *shape: int) -> Weight:
        """The same elements in another shape."""
        make = self.make
        return replace(self, shape=shape, make=lambda: make().reshape(shape), origin="")

    def mapped(self, change: Callable[[Array], Array], shape: tuple[int, ...]) -> Weight:
        """Other elements, computed from these when they are needed."""
        make = self.make
        return replace(self, shape=shape, make=lambda: change(make()), origin="")

    @property
    def key(self) -> tuple[str, bool]:
        """The same for weights with the same elements."""
        return (self.origin or self.name), self.is_transposed

    @property
    def element_count(self) -> int:
        """How many numbers it has."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass
class Table:
    """What the generated module holds.

    Attributes:
        names: attribute names of the module.
        lines: statements for `__init__`.
        stored: state-dict key -> weight.
        onnx_names: state-dict key -> name of the ONNX initializer.
    """

    names: Names
    lines: list[str] = field(default_factory=list)
    stored: dict[str, Weight] = field(default_factory=dict)
    onnx_names: dict[str, str] = field(default_factory=dict)
    _layers: dict[Any, str] = field(default_factory=dict)
    _homes: dict[str, tuple[str, bool]] = field(default_factory=dict)

    def layer(
        self,
        hint: str,
        constructor: str,
        parameters: Mapping[str, Weight],
        dtype: Any,
        note: str = "",
    ) -> str:
        """`self.name` of a layer with these parameters; equal layers are one."""
        key = _key(constructor, parameters)
        if key in self._layers:
            return self._layers[key]
        name = self.names.claim(hint)
        if carrier_name(dtype) != "float32":
            constructor = f"{constructor[:-1]}, dtype=torch.{carrier_name(dtype)})"
        first = next(iter(parameters.values()))
        remark = note or first.name
        self.lines.append(f"self.{name} = nn.{constructor}" + _comment(remark, name))
        for parameter, weight in parameters.items():
            self._store(f"{name}.{parameter}", weight)
        self._layers[key] = f"self.{name}"
        return f"self.{name}"

    def home_of(self, weight: Weight) -> str | None:
        """Where the module has a weight already, as an expression."""
        if not weight.origin or weight.origin not in self._homes:
            return None
        path, is_transposed = self._homes[weight.origin]
        return f"self.{path}" + ("" if is_transposed == weight.is_transposed else ".t()")

    def layer_of(self, constructor: str, parameters: Mapping[str, Weight]) -> str | None:
        """An equal layer that was made before."""
        return self._layers.get(_key(constructor, parameters))

    def tensor(self, weight: Weight) -> str:
        """An expression for a weight that belongs to no layer: a parameter, or a buffer."""
        home = self.home_of(weight)
        if home is not None:
            return home
        key = ("tensor", weight.key)
        if key in self._layers:
            return self._layers[key]
        name = self.names.claim(weight.name)
        dtype = carrier_name(weight.dtype)
        typed = "" if dtype == "float32" else f", dtype=torch.{dtype}"
        shape = ", ".join(map(str, weight.shape)) if weight.shape else "()"
        empty = f"torch.empty({shape}{typed})"
        if is_float(weight.dtype) and weight.element_count > 1:
            line = f"self.{name} = nn.Parameter({empty})"
        else:
            line = f'self.register_buffer("{name}", {empty})'
        self.lines.append(line + _comment(weight.name, name))
        self._store(name, weight)
        self._layers[key] = f"self.{name}"
        return f"self.{name}"

    def _store(self, path: str, weight: Weight) -> None:
        self.stored[path] = weight
        self.onnx_names[path] = weight.name
        if weight.origin:
            self._homes.setdefault(weight.origin, (path, weight.is_transposed))


def _key(constructor: str, parameters: Mapping[str, Weight]) -> Any:
    return constructor, tuple((name, weight.key) for name, weight in parameters.items())


def _comment(onnx_name: str, name: str) -> str:
    text = "".join(c if c.isprintable() else "?" for c in onnx_name)
    return "" if text == name else f"  # {text}"
