"""ONNX in bf16: the range of fp32 with 8 bits of precision."""

from __future__ import annotations

from pathlib import Path

from convkit.artifact import Artifact
from convkit.step import Package, Work, precision_pass

_NEEDS = [Package("onnx", "onnx"), Package("onnx_ir", "onnx"), Package("onnxruntime", "onnx")]


@precision_pass(
    "onnx",
    "bf16",
    accepts=["fp32"],
    loses="16 of 24 bits of each weight; the range stays",
    needs=_NEEDS,
)
def onnx_bf16(
    source: Artifact,
    out: Path,
    work: Work,
    *,
    keep_io: bool = True,
    measure_ranges: bool = True,
    keep_fp32: str = "",
) -> None:
    """Stores weights and computes in bf16, which needs a GPU or NPU: ONNX Runtime's CPU has none.

    Nothing overflows, so the samples only show which floats count beyond 256. Operators
    that know no bf16 at the model's opset stay in fp32.

    Args:
        source: an fp32 ONNX model of opset 13 or newer; 22 knows bf16 almost everywhere.
        out: the file to write, weights beyond 1 GiB in `<out>.data`; of a folder a folder like it.
        work: samples, and where notes and progress go.
        keep_io: inputs and outputs of the model keep their types. The cache of a language model,
            which goes from one call to the next, is bf16 all the same.
        measure_ranges: look at the samples for whole numbers and angles that bf16 would round.
        keep_fp32: names of nodes or operators that stay in fp32, separated by commas.

    Raises:
        ModelError, UnsafeError, UnsupportedError, ResourceError: see `convert`.
    """
    from convkit.passes.onnx_half_constants import BF16
    from convkit.passes.onnx_half_conversion import convert

    convert(
        source,
        out,
        work,
        BF16,
        keep_io=keep_io,
        measures=measure_ranges,
        headroom=1.0,
        keep_fp32=keep_fp32,
    )
