"""Converts a micro graph and judges the result: is it valid, does it compute the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from convkit.artifact import Artifact, Precision
from convkit.formats.onnx_true_half import open_true_half
from convkit.passes.onnx_bf16 import onnx_bf16
from convkit.passes.onnx_fp16 import onnx_fp16
from convkit.step import Work
from tests.onnx_micro_graphs import Feeds, MicroGraph

BF16_LOSS = 8
"""bf16 keeps 8 bits where fp16 keeps 11."""


def convert(
    source: Path, out: Path, samples: Sequence[Feeds], precision: str = "fp16", **options: Any
) -> list[str]:
    """Runs the pass; gives its notes."""
    notes: list[str] = []
    work = Work(samples, lambda artifact: None, notes.append, lambda what, done, total: None)
    step = {"fp16": onnx_fp16, "bf16": onnx_bf16}[precision]
    step.rungs[0].run(Artifact(source, "onnx", Precision.FP32), out, work, **options)
    return notes


def verdict(graph: MicroGraph, path: Path) -> str:
    """One of right, wrong (with the error), invalid (with the reason), not converted."""
    if not path.exists():
        return "not converted"
    try:
        check(path, Precision.FP16)
    except Exception as error:
        return f"invalid: {type(error).__name__}"
    try:
        error = worst_error(graph, path, Precision.FP16)
    except AssertionError as changed:
        return f"wrong: {changed}"
    return "right" if error <= graph.tolerance else f"wrong: off by {error:.2g}"


def check(path: Path, precision: Precision) -> None:
    """Raises unless ONNX accepts the file, and ONNX Runtime too where it has the kernels."""
    onnx.checker.check_model(onnx.load(path), full_check=True)
    if precision is Precision.FP16:
        quiet = onnxruntime.SessionOptions()
        quiet.log_severity_level = 4
        onnxruntime.InferenceSession(path, quiet, providers=["CPUExecutionProvider"])


def worst_error(graph: MicroGraph, path: Path, precision: Precision) -> float:
    """Largest difference to the fp32 model over all samples, relative to the largest output."""
    reference = onnxruntime.InferenceSession(_distinct(graph.model).SerializeToString())
    worst = 0.0
    with open_true_half(Artifact(path, "onnx", precision)) as runner:
        dtypes = {spec.name: _numpy(spec.dtype) for spec in runner.inputs}
        for feeds in graph.samples:
            cast = {
                k: v.astype(dtypes[k]) if v.dtype == np.float32 else v for k, v in feeds.items()
            }
            outputs = runner(cast)
            for argument, wanted in zip(
                reference.get_outputs(), reference.run(None, feeds), strict=True
            ):
                assert argument.name in outputs, f"output {argument.name} is gone"
                worst = max(worst, _error(wanted, outputs[argument.name]))
    return worst


def _error(wanted: np.ndarray, got: np.ndarray) -> float:
    assert got.shape == wanted.shape, "shape changed"
    wide, reference = got.astype(np.float64), wanted.astype(np.float64)
    if not np.isfinite(wide).all():
        return float("inf")
    scale = max(float(np.abs(reference).max(initial=0)), 1e-9)
    return float(np.abs(wide - reference).max(initial=0)) / scale


def _numpy(dtype: str) -> Any:
    import ml_dtypes

    return ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)


def _distinct(model: onnx.ModelProto) -> onnx.ModelProto:
    """ONNX Runtime refuses two nodes of one name, the ONNX checker does not."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for index, node in enumerate(copy.graph.node):
        node.name = f"n{index}"
    return copy
