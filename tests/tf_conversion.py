"""Takes a converter's step on a TensorFlow source and looks at the ONNX file it writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convkit.artifact import Artifact, Opening
from convkit.step import Converter, Format, Work

Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Conversion:
    """What a step was given, what it wrote, and what it noted."""

    source: Artifact
    path: Path
    notes: list[str]

    def model(self) -> Any:
        """The ModelProto, checked."""
        import onnx

        onnx.checker.check_model(str(self.path), full_check=True)
        return onnx.load(self.path)

    def operators(self) -> list[str]:
        """Operators of the main graph."""
        return [node.op_type for node in self.model().graph.node]

    def shapes(self) -> dict[str, list[int | str]]:
        """Declared shapes of inputs and outputs, in order."""
        graph = self.model().graph
        return {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.output)
        }

    def run(self, feeds: Arrays) -> dict[str, Any]:
        """What ONNX Runtime computes, by output name."""
        import onnxruntime

        session = onnxruntime.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def convert(
    format: Format,
    step: Converter,
    path: Path,
    out: Path,
    opening: Opening | None = None,
    **options: Any,
) -> Conversion:
    """Takes the step as the pipeline does for an eager rung: with what headers tell."""
    opening = opening or Opening()
    described = format.describe(path, opening)
    source = Artifact(
        path, format.name, described.precision, described.inputs, described.outputs, (), opening
    )
    notes: list[str] = []
    assert format.load is not None
    work = Work([], format.load, notes.append, lambda *_: None)
    step.rungs[0].run(source, out, work, **options)
    return Conversion(source, out, notes)


def assert_close(expected: Arrays, got: Arrays, tolerance: float) -> None:
    """The same names in order, dtypes and shapes; values within `tolerance` of the largest."""
    assert list(got) == list(expected)
    for name, value in expected.items():
        reference = np.asarray(value)
        assert got[name].dtype == reference.dtype, name
        assert got[name].shape == reference.shape, name
        if reference.size:
            exact = reference.astype(np.float64)
            scale = max(1e-6, float(np.abs(exact).max()))
            assert float(np.abs(exact - got[name]).max()) <= tolerance * scale, name
