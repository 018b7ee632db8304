"""GGUF models at fewer than eight bits a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convkit.ggml.streaming import opened, sink
from convkit.step import Package, Work
from convkit.streaming import streaming_pass

_SCHEMES = (
    "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "q5_k_s",
    "q5_k_m", "q6_k", "iq4_nl", "iq4_xs",
)  # fmt: skip


@streaming_pass(
    "gguf",
    "q4",
    open=opened,
    sink=sink,
    accepts=("fp32", "fp16", "bf16", "int8"),
    loses="what lies between a few levels in each block of weights",
    needs=(Package("libggml", "gguf", "libggml-python", instead=("llvmlite", "xllamacpp")),),
    schemes=_SCHEMES,
    calibrated=True,
)
def gguf_q4(
    model: Any,
    work: Work,
    *,
    scheme: str = "q4_k_m",
    pure: bool = False,
    tensor_types: tuple[str, ...] = (),
    imatrix_chunks: int | None = None,
    imatrix_out: str | None = None,
) -> Any:
    """Quantizes as llama.cpp does: types by its rules, blocks bit for bit the same.

    Args:
        model: from a file, or on its way into one.
        work: calibration, notes, and whether the user insists.
        scheme: of llama.cpp's names.
        pure: the scheme's own type for every tensor.
        tensor_types: `REGEX=TYPE`, types of one's own choosing.
        imatrix_chunks: how much of a text importance is measured on, in pieces of 512 tokens; all
            of it by default.
        imatrix_out: file that keeps the measured importance matrix: GGUF, or llama.cpp's older kind
            if its name ends in `.dat`.
    """
    from convkit.ggml.calibration import Measuring
    from convkit.ggml.requantizing import requantized

    kept_as = Path(imatrix_out).expanduser() if imatrix_out else None
    return requantized(
        model,
        work,
        scheme,
        is_pure=pure,
        tensor_types=tensor_types,
        measuring=Measuring(imatrix_chunks, kept_as),
    )
