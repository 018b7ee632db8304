"""Keras to ONNX: the model in inference mode as one TensorFlow graph, over tf2onnx."""

from __future__ import annotations

from pathlib import Path

from convkit.artifact import Artifact
from convkit.step import Package, Work, ladder, rung

_NEEDS = (
    Package("tensorflow", "savedmodel"),
    Package("keras", "savedmodel"),
    Package("tf2onnx", "savedmodel"),
    Package("onnx", "onnx"),
    Package("onnxruntime", "onnx"),
)


@rung("tf2onnx", needs=_NEEDS, is_eager=True)
def _over_tf2onnx(source: Artifact, out: Path, work: Work, *, opset: int = 18) -> None:
    """Traces the model's call with its inputs' names and shapes and translates the graph."""
    from convkit.converters.tf2onnx_conversion import convert
    from convkit.converters.tf2onnx_refusals import refuse_text
    from convkit.tensorflow_graph import freeze_keras
    from convkit.tensorflow_keras import keras_inputs

    model = work.load(source)
    refuse_text(source.opening.inputs or keras_inputs(model))
    work.progress("tracing the network", 0, None)
    convert(freeze_keras(model, source.opening.inputs), out, work, opset)


keras_to_onnx = ladder(
    "keras",
    "onnx",
    _over_tf2onnx,
    carries=("fp32", "fp16"),
    loses="training state, the layers' names and Python code",
)
