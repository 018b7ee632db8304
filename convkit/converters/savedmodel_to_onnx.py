"""SavedModel to ONNX: one signature, frozen, over tf2onnx."""

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
    """Freezes a signature and translates it operator by operator."""
    from convkit.converters.tf2onnx_conversion import convert
    from convkit.converters.tf2onnx_state import refuse_state

    refuse_state(source.path, source.opening.signature)
    work.progress("reading the SavedModel", 0, None)
    convert(work.load(source), out, work, opset)


savedmodel_to_onnx = ladder(
    "savedmodel",
    "onnx",
    _over_tf2onnx,
    carries=("fp32", "fp16"),
    loses="training state, other signatures, assets, checks that refuse bad inputs",
)
