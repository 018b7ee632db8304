"""What convkit adds to the TorchScript archives it writes: the signature, which they forget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convkit.artifact import TensorSpec

EXTRA_FILE = "convkit.json"
"""Name of the extra file in the archive."""


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a network, and what values its inputs make sense with.

    Attributes:
        ranges: input name -> least and greatest value.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def to_text(self) -> str:
        """What the extra file holds."""
        document = {
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "ranges": self.ranges,
        }
        return json.dumps(document)

    @classmethod
    def of_text(cls, text: str) -> Signature:
        """The signature in an extra file; an empty one where the text is no such document."""
        try:
            document = json.loads(text or "{}")
            inputs, outputs = (
                tuple(map(_spec, document.get(key, ()))) for key in ("inputs", "outputs")
            )
            ranges = {
                str(name): (float(low), float(high))
                for name, (low, high) in document.get("ranges", {}).items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return cls()
        return cls(inputs, outputs, ranges)


def _spec(document: Any) -> TensorSpec:
    shape = tuple(_dimension(size) for size in document["shape"])
    return TensorSpec(str(document["name"]), str(document["dtype"]), shape)


def _dimension(value: object) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{value!r} is no dimension")
    return value
