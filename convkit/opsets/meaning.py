"""Whether an ONNX operator is defined alike in two opsets."""

from __future__ import annotations

from typing import Any

STANDARD = ("", "ai.onnx")
"""Names of the domain of ONNX's own operators."""

_REWORDED = frozenset(
    (
        ("Add", 14), ("BatchNormalization", 15), ("Div", 14), ("Loop", 16),
        ("Mul", 14), ("ReduceMax", 20), ("ReduceMin", 20), ("ScatterElements", 18),
        ("ScatterND", 18), ("Sub", 14), ("QuantizeLinear", 25), ("DequantizeLinear", 19),
        ("BitShift", 28), ("OptionalGetElement", 18), ("Cast", 13), ("DepthToSpace", 13),
        ("Clip", 13), ("GatherElements", 13), ("GatherND", 13), ("Gemm", 13), ("TopK", 11),
    )
)  # fmt: skip
"""(operator, version) whose text was reworded or whose types were widened, nothing else.

Source: onnx/defs of onnx 1.23, read side by side with the version before.
"""


def schema_of(operator: str, opset: int) -> Any | None:
    """The standard operator's schema in an opset; None where there is none yet."""
    import onnx.defs

    try:
        return onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return None


def means_the_same(node: Any, one: int, other: int) -> bool:
    """Whether an operator is defined alike in both opsets, as this node uses it.

    Revisions that only widen the types keep the text of the definition, the inputs, outputs and
    attributes; those are equal here. A new attribute that the node does not set changes nothing.
    Whether the types of the node are allowed is another question (`narrow_types`).
    """
    if node.domain not in STANDARD:
        return True
    newer, older = (schema_of(node.op_type, opset) for opset in (max(one, other), min(one, other)))
    if newer is None or older is None:
        return False
    if newer.since_version == older.since_version:
        return True
    used = {attribute.name for attribute in node.attribute}
    shared = set(older.attributes)
    return (
        used <= shared
        and shared <= set(newer.attributes)
        and _is_same_text(newer, older)
        and all(_attribute(newer, name) == _attribute(older, name) for name in shared)
        and _parameters(newer.inputs) == _parameters(older.inputs)
        and _parameters(newer.outputs) == _parameters(older.outputs)
    )


def _is_same_text(newer: Any, older: Any) -> bool:
    between = newer.since_version
    while between > older.since_version:
        schema = schema_of(newer.name, between)
        before = schema_of(newer.name, schema.since_version - 1) if schema else None
        if schema is None or before is None:
            return False
        is_reworded = (newer.name, schema.since_version) in _REWORDED
        if not is_reworded and _words(schema.doc) != _words(before.doc):
            return False
        between = before.since_version
    return True


def _words(text: str | None) -> str:
    return " ".join((text or "").split())


def _attribute(schema: Any, name: str) -> tuple[str, bool, str]:
    attribute = schema.attributes[name]
    return str(attribute.type), attribute.required, str(attribute.default_value)


def _parameters(parameters: Any) -> list[tuple[str, bool, int]]:
    return [(str(p.option), p.is_homogeneous, p.min_arity) for p in parameters]
