"""The official ONNX backend test suite as data: its cases, groups of them, its comparison.

The suite comes with the onnx package. A backend is a function that takes a model and gives a
function from arrays to arrays; whatever either raises counts as a failure.
"""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
"""Parts of the suite; a fifth, `real`, needs downloads in other releases of onnx."""

OPSET_GROUPS = ((0, 13), (14, 17), (18, 21), (22, 23), (24, 25), (26, 28))
"""First and last opset of the groups that tables use; each node test has its operator's newest."""

_EXOTIC = frozenset(
    (
        TensorProto.STRING, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
        TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2,
        TensorProto.FLOAT8E5M2FNUZ, TensorProto.FLOAT8E8M0, TensorProto.FLOAT4E2M1,
        TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2,
    )
)  # fmt: skip
"""Element types that few runtimes have; a test that touches one is not a core test."""

_APART = frozenset(
    (
        "ImageDecoder", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss", "Bernoulli",
        "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
        "OptionalGetElement", "OptionalHasElement",
    )
)  # fmt: skip
"""Operators beside inference on tensors: decoding files, losses, chance, optional values."""

_FLOATS = frozenset(
    (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
)

Run = Callable[[Sequence[Any]], Sequence[Any]]
"""Inputs in the model's order to outputs in the model's order: arrays, lists of them, None."""

Prepare = Callable[[onnx.ModelProto, Path, Sequence[Any]], Run]
"""A backend: the model, a folder of its own, and the first inputs it will see (for tracing)."""


@dataclass(frozen=True)
class Case:
    """One test of the suite."""

    name: str
    kind: str
    rtol: float
    atol: float
    test: Any

    @functools.cached_property
    def model(self) -> onnx.ModelProto:
        """Its model."""
        if self.test.model is not None:
            return self.test.model
        return onnx.load(str(Path(self.test.model_dir) / "model.onnx"))

    @functools.cached_property
    def data_sets(self) -> list[tuple[list[Any], list[Any]]]:
        """Pairs of inputs and expected outputs."""
        if self.test.data_sets is not None:
            return [
                ([_array(one) for one in inputs], [_array(one) for one in outputs])
                for inputs, outputs in self.test.data_sets
            ]
        folders = sorted(Path(self.test.model_dir).glob("test_data_set*"))
        graph = self.model.graph
        return [
            (_stored(folder, "input", graph.input), _stored(folder, "output", graph.output))
            for folder in folders
        ]

    @property
    def is_expanded(self) -> bool:
        """Whether it spells another test out with the function body of its operator."""
        return "_expanded" in self.name

    @functools.cached_property
    def opset(self) -> int:
        """Version of the standard operators; 0 where it uses none."""
        imports = self.model.opset_import
        return max(
            (entry.version for entry in imports if entry.domain in ("", "ai.onnx")), default=0
        )

    @functools.cached_property
    def operators(self) -> frozenset[str]:
        """Types of all operators, those in branches and bodies too."""
        return frozenset(node.op_type for graph in _graphs(self.model.graph) for node in graph.node)

    @functools.cached_property
    def is_core(self) -> bool:
        """Whether it is about inference on tensors of the usual types, not spelled out twice."""
        domains = {node.domain for graph in _graphs(self.model.graph) for node in graph.node}
        graph = self.model.graph
        kinds, elements = _types((*graph.input, *graph.output, *graph.value_info))
        return (
            self.kind == "node"
            and not self.is_expanded
            and "training" not in self.name
            and domains <= {"", "ai.onnx"}
            and kinds <= {"tensor_type"}
            and not elements & _EXOTIC
            and not self.operators & _APART
        )

    @functools.cached_property
    def takes_floats(self) -> bool:
        """Whether an input is a tensor of floating-point numbers."""
        return bool(_types(self.model.graph.input)[1] & _FLOATS)


@functools.cache
def cases(kinds: Sequence[str] = KINDS) -> tuple[Case, ...]:
    """All cases of these parts of the suite, ordered by kind and name; takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite computes with infinities on purpose
        from onnx.backend.test.loader import load_model_tests

        return tuple(
            Case(test.name, kind, test.rtol, test.atol, test)
            for kind in kinds
            for test in sorted(load_model_tests(kind=kind), key=lambda test: test.name)
        )


def failure(case: Case, prepare: Prepare) -> str:
    """Runs a case and compares officially; "" when it passes, else what went wrong in one line."""
    with tempfile.TemporaryDirectory(prefix="convkit-backend-") as folder:
        try:
            data_sets = case.data_sets
            run = prepare(case.model, Path(folder), data_sets[0][0])
            for inputs, expected in data_sets:
                compare(case, expected, list(run(inputs)))
        except Exception as error:  # whatever it is, the case failed
            return _one_line(error)
    return ""


def compare(case: Case, expected: Sequence[Any], outputs: Sequence[Any]) -> None:
    """The suite's own comparison: number, shapes, types and values of the outputs.

    Raises:
        AssertionError: they differ.
    """
    from onnx.backend.test.runner import Runner

    Runner.assert_similar_outputs(expected, outputs, rtol=case.rtol, atol=case.atol)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' | '.join(lines[:6])}"[:400]


def _array(value: Any) -> Any:
    if isinstance(value, np.generic):  # numpy computes scalars where the suite means tensors
        return np.asarray(value)
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _stored(folder: Path, side: str, values: Sequence[Any]) -> list[Any]:
    """What the files `input_0.pb` and so on hold, each of its declared type."""
    count = len(list(folder.glob(f"{side}_*.pb")))
    return [
        _decoded((folder / f"{side}_{index}.pb").read_bytes(), values[index].type)
        for index in range(count)
    ]


def _decoded(content: bytes, declared: Any) -> Any:
    if declared.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if declared.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(TensorProto.FromString(content))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            inner = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for one in inner:
                yield from _graphs(one)


def _types(values: Sequence[Any]) -> tuple[set[str], set[int]]:
    """Kinds of the values (`tensor_type` ...) and element types of the tensors."""
    kinds, elements = set(), set()
    for value in values:
        kind = value.type.WhichOneof("value")
        kinds.add(kind)
        if kind == "tensor_type":
            elements.add(value.type.tensor_type.elem_type)
    return kinds, elements


def is_plain(array: Any) -> bool:
    """Whether numpy itself knows the array's element type (ml_dtypes adds others)."""
    return isinstance(array, np.ndarray) and array.dtype.kind in "fiub"
