"""TensorFlow 1 graphs, frozen or with a checkpoint, to ONNX, over tf2onnx."""

from __future__ import annotations

from pathlib import Path

from convkit.artifact import Artifact
from convkit.step import Package, Work, ladder, rung

_NEEDS = (
    Package("tensorflow", "savedmodel"),
    Package("tf2onnx", "savedmodel"),
    Package("onnx", "onnx"),
    Package("onnxruntime", "onnx"),
)


@rung("tf2onnx", needs=_NEEDS, is_eager=True)
def _over_tf2onnx(source: Artifact, out: Path, work: Work, *, opset: int = 18) -> None:
    """Takes the graph between its inputs and outputs and translates it operator by operator."""
    from convkit.converters.tf2onnx_conversion import convert

    convert(work.load(source), out, work, opset)


tf_frozen_to_onnx = ladder(
    "tf_frozen",
    "onnx",
    _over_tf2onnx,
    carries=("fp32", "fp16"),
    loses="checks that refuse bad inputs",
)
