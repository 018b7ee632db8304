"""What an ONNX file says about itself beside its graph, read without the graph.

Source: onnx/onnx.proto: ModelProto.metadata_props is field 14, of StringStringEntryProto with key 1
and value 2.
"""

from __future__ import annotations

from pathlib import Path

from convkit.protobuf import Buffer, WireError, mapped, spans

WEIGHTS_KEY, CONFIG_KEY = "convkit.weights", "convkit.config"
"""Where graphs that convkit built keep which initializer is which tensor of the checkpoint, JSON
`{initializer: [tensor, how]}`, and the configuration they were built from."""

_METADATA, _KEY, _VALUE = 14, 1, 2


def read_metadata(path: Path) -> dict[str, str]:
    """Key -> value; empty for what is no ONNX file."""
    try:
        with mapped(path) as data:
            places = spans(data, 0, len(data)).get(_METADATA, [])
            return dict(_entry(data, begin, end) for begin, end in places)
    except (OSError, WireError):
        return {}


def _entry(data: Buffer, begin: int, end: int) -> tuple[str, str]:
    found = spans(data, begin, end)
    key, value = (_text(data, found.get(number, [])) for number in (_KEY, _VALUE))
    return key, value


def _text(data: Buffer, places: list[tuple[int, int]]) -> str:
    return bytes(data[slice(*places[-1])]).decode("utf-8", "replace") if places else ""
