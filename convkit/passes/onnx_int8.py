"""ONNX in int8: products of weights and activations in integers, static or dynamic."""

from __future__ import annotations

import functools
from pathlib import Path

from convkit.artifact import Artifact
from convkit.quantization.slowdowns import foreseen
from convkit.step import Package, Work, precision_pass

_NEEDS = [Package("onnx", "onnx"), Package("onnx_ir", "onnx"), Package("onnxruntime", "onnx")]


@precision_pass(
    "onnx",
    "int8",
    accepts=["fp32"],
    loses="16 of 24 bits of each weight, and of activations where integers are faster; "
    "what stays in fp32 is listed",
    needs=_NEEDS,
    schemes=["static", "dynamic"],
    calibrated=True,
    warns=functools.partial(foreseen, default="dynamic", with_data="static"),
)
def onnx_int8(
    source: Artifact,
    out: Path,
    work: Work,
    *,
    scheme: str | None = None,
    target: str | None = None,
    max_drop: float | None = None,
    metric: str | None = None,
    method: str = "percentile",
    per_channel: bool | None = None,
    keep_fp32: str = "",
    equalize: bool = True,
    smooth: float | None = None,
    bias_correction: bool = True,
    compensate_rounding: bool = True,
    cache: str = "",
) -> None:
    """Stores weights in int8 and computes in it where the target has kernels for that.

    Static int8 knows the ranges of activations from calibration data; dynamic takes them from each
    input anew. With data static is what is done, without them dynamic.

    Args:
        source: an fp32 ONNX model.
        out: the file to write, weights beyond 1 GiB in `<out>.data`; of a folder a folder like it.
        work: samples, calibration data, and where notes and progress go.
        scheme: `static` or `dynamic`.
        target: what the result is for: `cpu`, `cpu-avx2`, `arm`, `cuda`, `tensorrt`; None: this
            machine's processor.
        max_drop: share of the metric that may be lost; layers return to fp32 until it holds.
        metric: what is lost then, by name or as `module:function`.
        method: how ranges follow from data: `minmax`, `percentile`, `entropy` or `mse`.
        per_channel: a scale for each output of a weight; None: as the target has it.
        keep_fp32: names of nodes or operators that stay in fp32, separated by commas.
        equalize: scale channels between layers so that they use their common range alike.
        smooth: how much of the range of activations goes into the weights that read them, 0 (none)
            to 1 (all); None: for each what makes the least noise.
        bias_correction: take the mean error of each layer back in its bias.
        compensate_rounding: round weights so that their errors make up for each other on the data.
        cache: a file that keeps what was seen of activations for the next time.

    Raises:
        ModelError, UnsafeError, UnsupportedError, UsageError, ResourceError: see `convert`.
        SamplesError: the calibration data do not fit the model.
        GateError: no choice of layers keeps within `max_drop`.
    """
    from convkit.passes.onnx_int8_conversion import Choices, convert

    convert(
        source,
        out,
        work,
        Choices(
            scheme=scheme,
            target=target,
            max_drop=max_drop,
            metric=metric,
            method=method,
            is_per_channel=per_channel,
            keep=tuple(name.strip() for name in keep_fp32.split(",") if name.strip()),
            equalizes=equalize,
            smoothing=smooth,
            corrects_biases=bias_correction,
            compensates=compensate_rounding,
            cache=Path(cache) if cache else None,
        ),
    )
