"""ONNX in four bits: weights in blocks, and products that read them so."""

from __future__ import annotations

import functools
from pathlib import Path

from convkit.artifact import Artifact
from convkit.quantization.slowdowns import foreseen
from convkit.step import Package, Work, precision_pass

_NEEDS = [Package("onnx", "onnx"), Package("onnx_ir", "onnx"), Package("onnxruntime", "onnx")]


@precision_pass(
    "onnx",
    "q4",
    accepts=["fp32"],
    loses="what lies between sixteen levels in each block of weights; activations are rounded to "
    "eight bits where kernels ask for it",
    needs=_NEEDS,
    schemes=["rtn", "hqq", "gptq", "nf4", "fp4"],
    calibrated=True,
    warns=functools.partial(foreseen, default="rtn", with_data="gptq"),
)
def onnx_q4(
    source: Artifact,
    out: Path,
    work: Work,
    *,
    scheme: str | None = None,
    target: str | None = None,
    max_drop: float | None = None,
    metric: str | None = None,
    block_size: int | None = None,
    symmetric: bool = False,
    accuracy_level: int | None = None,
    head_bits: int = 8,
    keep_fp32: str = "",
) -> None:
    """Stores the weights of products and tables in blocks of four bits.

    Args:
        source: an fp32 ONNX model.
        out: the file to write, weights beyond 1 GiB in `<out>.data`; of a folder a folder like it.
        work: samples, calibration data, and where notes and progress go.
        scheme: `rtn` rounds each weight to the nearest level, in the range that loses least;
            `hqq` lets a few large weights be wrong; `gptq` makes errors up for each other on
            calibration data, of language models a text too, and is what is done where there are
            any; `nf4` and `fp4` are the codes of bitsandbytes.
        target: what the result is for: `cpu`, `cpu-avx2`, `arm`, `cuda`, `tensorrt`; None: this
            machine's processor.
        max_drop: share of the metric that may be lost; layers return to fp32 until it holds.
        metric: what is lost then, by name or as `module:function`.
        block_size: weights that share a scale: 16, 32, 64, 128 or 256; None: 32, and 64 of nf4 and
            fp4.
        symmetric: levels lie about zero, without offsets or the zero points of `hqq`: 5 bits a
            weight in blocks of 32 instead of 6, less exact, and faster where many rows are
            multiplied at once (MiniLM at 1,024 tokens: 1.1 times the speed of fp32 in blocks of
            128, with offsets 0.85; one token of a language model is 2.8 and 2.2 times as fast).
        accuracy_level: of MatMulNBits: 4 rounds what is multiplied to eight bits, 0 computes in
            float; None: as the target has it.
        head_bits: of tables and of what gives the outputs: 8, 4, or 32 to leave them in float.
        keep_fp32: names of nodes or operators that stay in fp32, separated by commas.

    Raises:
        ModelError, UnsafeError, UnsupportedError, UsageError, ResourceError: see `convert`.
        SamplesError: the calibration data do not fit the model.
        GateError: no choice of layers keeps within `max_drop`.
    """
    from convkit.passes.onnx_q4_conversion import Choices, convert

    convert(
        source,
        out,
        work,
        Choices(
            scheme=scheme,
            target=target,
            max_drop=max_drop,
            metric=metric,
            block_size=block_size,
            is_symmetric=symmetric,
            accuracy_level=accuracy_level,
            head_bits=head_bits,
            keep=tuple(name.strip() for name in keep_fp32.split(",") if name.strip()),
        ),
    )
