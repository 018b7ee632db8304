"""Hugging Face folders in bfloat16, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact
from convkit.passes.torch_streaming import OverflowsError, Target, lower_folder
from convkit.step import Work, precision_pass

if TYPE_CHECKING:
    import numpy as np

_INFINITY = 0x7F80
_MAGNITUDE = 0x7FFF


def to_bf16(piece: memoryview, dtype: str) -> memoryview:
    """Rounds F32 or F64 bytes to bfloat16 (the upper half of binary32), to nearest, ties to even.

    Raises:
        OverflowsError: a finite value would become infinite (above about 3.3961e38).
        Source: Intel, "BFLOAT16 - Hardware Numerics Definition", 2018.
    """
    import ml_dtypes
    import numpy as np

    wide = np.frombuffer(piece, np.float32 if dtype == "F32" else np.float64)
    narrow = (wide if dtype == "F32" else _to_odd_float32(wide)).astype(ml_dtypes.bfloat16)
    infinite = (narrow.view(np.uint16) & _MAGNITUDE) == _INFINITY
    if infinite.any() and np.isfinite(wide[infinite]).any():
        raise OverflowsError
    return narrow.view(np.uint8).data


def _to_odd_float32(wide: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Doubles as float32, inexact ones rounded to odd, so that rounding again is rounding once.

    ml_dtypes reaches bfloat16 through float32, where a value just above a tie would become the tie.
    Source: Boldo and Melquiond, "When double rounding is odd", IMACS 2005.
    """
    import numpy as np

    with np.errstate(over="ignore", under="ignore"):
        narrow = wide.astype(np.float32)
    inexact, away = narrow != wide, np.abs(narrow) > np.abs(wide)
    bits = narrow.view(np.uint32)
    bits -= away  # towards zero
    bits |= inexact
    return narrow


@precision_pass(
    "torch",
    "bf16",
    accepts=("fp32",),
    loses="five of seven decimal digits of each weight; the range stays",
    cost=1.0,
    of_source=True,
)
def torch_bf16(source: Artifact, out: Path, work: Work) -> None:
    """Writes a Hugging Face folder with weights in bf16."""
    lower_folder(source, out, work, Target("BF16", "bfloat16", to_bf16))
