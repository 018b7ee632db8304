"""ONNX in fp16: typed, valid by construction, and with fp32 where fp16 would overflow."""

from __future__ import annotations

from pathlib import Path

from convkit.artifact import Artifact
from convkit.step import Package, Work, precision_pass

_NEEDS = [Package("onnx", "onnx"), Package("onnx_ir", "onnx"), Package("onnxruntime", "onnx")]


@precision_pass(
    "onnx",
    "fp16",
    accepts=["fp32"],
    loses="13 of 24 bits of each weight; what fp16 cannot hold stays in fp32 and is listed",
    needs=_NEEDS,
)
def onnx_fp16(
    source: Artifact,
    out: Path,
    work: Work,
    *,
    keep_io: bool = True,
    measure_ranges: bool = True,
    headroom: float = 4.0,
    keep_fp32: str = "",
) -> None:
    """Stores weights and computes in fp16.

    The fp32 model is run on the samples first. Nodes that make or read values above
    65504 / headroom there stay in fp32, as do constants fp16 cannot hold, angles and sizes.

    Args:
        source: an fp32 ONNX model.
        out: the file to write, weights beyond 1 GiB in `<out>.data`; of a folder a folder like it.
        work: samples, and where notes and progress go.
        keep_io: inputs and outputs of the model keep their types. The cache of a language model,
            which goes from one call to the next, is fp16 all the same.
        measure_ranges: look for overflow on the samples.
        headroom: how far below the largest fp16 number values must stay on the samples.
        keep_fp32: names of nodes or operators that stay in fp32, separated by commas.

    Raises:
        ModelError, UnsafeError, UnsupportedError, UsageError, ResourceError: see `convert`.
    """
    from convkit.passes.onnx_half_constants import FP16
    from convkit.passes.onnx_half_conversion import convert

    convert(
        source,
        out,
        work,
        FP16,
        keep_io=keep_io,
        measures=measure_ranges,
        headroom=headroom,
        keep_fp32=keep_fp32,
    )
