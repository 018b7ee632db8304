"""Hugging Face folders in half precision, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

from convkit.artifact import Artifact
from convkit.passes.torch_streaming import OverflowsError, Target, lower_folder
from convkit.step import Work, precision_pass

_INFINITY = 0x7C00
_MAGNITUDE = 0x7FFF


def to_fp16(piece: memoryview, dtype: str) -> memoryview:
    """Rounds F32 or F64 bytes to IEEE binary16, to nearest, ties to even.

    Raises:
        OverflowsError: a finite value would become infinite (65520 and above).
        Source: IEEE 754-2019, 3.6 (binary16: exponent mask 0x7C00), 4.3.1 (rounding).
    """
    import numpy as np

    wide = np.frombuffer(piece, np.float32 if dtype == "F32" else np.float64)
    with np.errstate(over="ignore", under="ignore"):
        narrow = wide.astype(np.float16)
    infinite = (narrow.view(np.uint16) & _MAGNITUDE) == _INFINITY
    if infinite.any() and np.isfinite(wide[infinite]).any():
        raise OverflowsError
    return narrow.view(np.uint8).data


@precision_pass(
    "torch",
    "fp16",
    accepts=("fp32",),
    loses="three of seven decimal digits of each weight, and values above 65504",
    cost=1.0,
    of_source=True,
)
def torch_fp16(source: Artifact, out: Path, work: Work) -> None:
    """Writes a Hugging Face folder with weights in fp16; tensors that would overflow stay fp32."""
    lower_folder(source, out, work, Target("F16", "float16", to_fp16))
