"""A graph in the making: nodes, small constants, weights that are read when they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from convkit.converters.onnx_stream import Streamed

if TYPE_CHECKING:
    import onnx

T = TypeVar("T")

FLOAT, UINT8, INT32, INT64, BOOL, FLOAT16, BFLOAT16 = 1, 2, 6, 7, 9, 10, 16
"""Source: onnx.proto, TensorProto.DataType."""

MICROSOFT = "com.microsoft"
"""Operators that ONNX Runtime adds. Source: onnxruntime, docs/ContribOperators.md."""


@dataclass
class Graph:
    """Collects what a model consists of; values are known by their names.

    Attributes:
        opset: of the standard operators.
        float_type: of weights, caches and logits.
        accuracy_level: of products with block-quantized matrices.
        nodes: in order.
        constants: small initializers.
        weights: large ones, by name.
        sources: weight -> where it comes from in the checkpoint, and how.
        rounded: weights that lost digits when they were written.
        domains: of operators beyond the standard.
    """

    opset: int
    float_type: int
    accuracy_level: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    weights: dict[str, Streamed] = field(default_factory=dict)
    sources: dict[str, tuple[str, str]] = field(default_factory=dict)
    rounded: set[str] = field(default_factory=set)
    domains: set[str] = field(default_factory=set)
    _scope: str = ""
    _taken: set[str] = field(default_factory=set)
    _shared: dict[Any, Any] = field(default_factory=dict)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names given within begin with `name`."""
        outer, self._scope = self._scope, f"{self._scope}{name}/"
        try:
            yield
        finally:
            self._scope = outer

    def add(self, kind: str, *inputs: str, name: str, domain: str = "", **attributes: Any) -> str:
        """A node with one output, which is returned; both are called `name`."""
        return self.add_all(kind, *inputs, names=(name,), domain=domain, **attributes)[0]

    def add_all(
        self,
        kind: str,
        *inputs: str,
        names: Sequence[str] = (),
        outputs: Sequence[str] = (),
        domain: str = "",
        **attributes: Any,
    ) -> tuple[str, ...]:
        """A node with several outputs, which are returned.

        Args:
            kind: the operator.
            inputs: values; "" for one that is left out.
            names: of outputs, within the scope; "" for one that is left out.
            outputs: very names of further outputs, because they are the model's.
            domain: of the operator.
            attributes: of the node.
        """
        from onnx import helper

        given = *(name and self._fresh(f"{self._scope}{name}") for name in names), *outputs
        label = next(output for output in given if output)
        node = helper.make_node(kind, inputs, given, name=label, domain=domain, **attributes)
        self.nodes.append(node)
        if domain:
            self.domains.add(domain)
        return given

    def ints(self, *values: int) -> str:
        """A constant vector of int64."""
        return self._constant(np.array(values, np.int64), "_".join(map(str, values)))

    def whole(self, value: int) -> str:
        """A constant int64 without axes."""
        return self._constant(np.array(value, np.int64), f"scalar_{value}")

    def real(self, value: float, float_type: int = FLOAT) -> str:
        """A constant number without axes."""
        return self._constant(np.array(value, np.float32), f"{value:.6g}", float_type)

    def byte(self, value: int) -> str:
        """A constant uint8 without axes."""
        return self._constant(np.array(value, np.uint8), f"byte_{value}")

    def floats(self, values: Any, name: str) -> str:
        """A constant float32 array."""
        return self._constant(np.asarray(values, np.float32), name)

    def cast(self, value: str, float_type: int, *, of: int | None = None) -> str:
        """The value in another type; the value itself where `of`, its type, is that already.

        `of` is the model's own type where it is not given.
        """
        if (self.float_type if of is None else of) == float_type:
            return value
        return self.add("Cast", value, name="cast", to=float_type)

    def weight(self, streamed: Streamed, source: str, how: str = "") -> str:
        """An initializer out of the checkpoint; one that is there already is shared."""
        if streamed.name not in self.weights:
            self._taken.add(streamed.name)
            self.weights[streamed.name] = streamed
            self.sources[streamed.name] = (source, how)
        return streamed.name

    def shared(self, key: Any, make: Callable[[], T]) -> T:
        """What `make()` gave the first time it was asked for under `key`."""
        if key not in self._shared:
            self._shared[key] = make()
        made: T = self._shared[key]
        return made

    def _constant(self, array: Any, name: str, float_type: int = FLOAT) -> str:
        key = (array.dtype.str, float_type, array.shape, array.tobytes())
        return self.shared(key, lambda: self._stored(array, name, float_type))

    def _stored(self, array: Any, name: str, float_type: int) -> str:
        from onnx import helper, numpy_helper

        unique = self._fresh(f"constant/{name}")
        if float_type == FLOAT:
            self.constants.append(numpy_helper.from_array(array, unique))
        else:
            values = array.ravel().tolist()
            self.constants.append(helper.make_tensor(unique, float_type, array.shape, values))
        return unique

    def _fresh(self, name: str) -> str:
        unique, count = name, 1
        while unique in self._taken:
            count += 1
            unique = f"{name}_{count}"
        self._taken.add(unique)
        return unique
