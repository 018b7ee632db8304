"""Types that users choose themselves: `--tensor-type REGEX=TYPE`.

Source: llama.cpp, `tools/quantize/quantize.cpp` (`parse_tensor_type`) and `src/llama-quant.cpp`
(`llama_tensor_get_type`): the first expression found anywhere in a tensor's name decides.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from convkit.errors import UnknownNameError, UsageError
from convkit.ggml.types import NO_WEIGHTS, TYPES, GgmlType

WEIGHT_TYPES = {name.lower(): kind for name, kind in TYPES.items() if name not in NO_WEIGHTS}
"""Lower-case name -> type, of the types that weights can have."""


@dataclass(frozen=True)
class Override:
    """A type for the tensors whose name a regular expression finds.

    Attributes:
        text: the expression as the user wrote it.
        pattern: it, compiled; case does not matter.
        kind: the type.
    """

    text: str
    pattern: re.Pattern[str]
    kind: GgmlType


def parse_override(text: str) -> Override:
    """Reads `REGEX=TYPE`, as in `attn_(k|v)=q8_0`.

    Raises:
        UnknownNameError: no such type; offers the nearest.
        UsageError: no '=', or no regular expression.
    """
    expression, equals, name = text.rpartition("=")
    if not equals or not expression or not name.strip():
        raise UsageError(
            f"'{text}' is no REGEX=TYPE.", hint="For example:  --tensor-type 'attn_v=q8_0'"
        )
    known = WEIGHT_TYPES.get(name.strip().lower())
    if known is None:
        raise UnknownNameError("tensor type", name.strip(), WEIGHT_TYPES)
    try:
        return Override(expression, re.compile(expression, re.IGNORECASE), known)
    except re.error as cause:
        raise UsageError(
            f"'{expression}' is no regular expression: {cause}.",
            hint="Quote it and escape dots:  --tensor-type 'blk\\.0\\.attn_v=q8_0'",
        ) from cause


def check_overrides(overrides: Iterable[Override], names: Collection[str]) -> None:
    """Raises UsageError for an expression that is found in none of these tensors' names."""
    parts = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
    for override in overrides:
        if any(override.pattern.search(name) for name in names):
            continue
        near = difflib.get_close_matches(override.text.lower(), parts, n=1, cutoff=0.5)
        raise UsageError(
            f"--tensor-type '{override.text}={override.kind.name.lower()}' fits no tensor that "
            f"is quantized.",
            why=f"Tensors have names like {', '.join(list(names)[:3])}." if names else "",
            hint=f"Did you mean '{near[0]}={override.kind.name.lower()}'?" if near else "",
        )
