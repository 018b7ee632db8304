"""ONNX to a TensorFlow SavedModel: TensorFlow records the graph while it is called once."""

from __future__ import annotations

from pathlib import Path

from convkit.artifact import Artifact
from convkit.onnx_folder import graph_file
from convkit.step import Package, Work, converter


@converter(
    "onnx",
    "savedmodel",
    carries=("fp32", "fp16", "bf16", "int8", "q4"),
    loses="the file's metadata, and ONNX's own operators: they become TensorFlow's",
    needs=(
        Package("tensorflow", "savedmodel"),
        Package("onnx", "onnx"),
        Package("onnx_ir", "onnx"),
    ),
)
def onnx_to_savedmodel(
    source: Artifact, out: Path, work: Work, *, layout: str = "preserve"
) -> None:
    """Keeps names, order, types and dynamic dimensions; convolutions run channels-last inside.

    `layout` is `preserve`, or `nhwc-io` for inputs and outputs that are channels-last where the
    network works on them so.

    Raises:
        UsageError: an unknown layout.
        UnsupportedError: operators without a counterpart, by name.
    """
    from convkit.converters.onnx_to_savedmodel.build import save

    save(graph_file(source.path), out, layout=layout, note=work.note)
