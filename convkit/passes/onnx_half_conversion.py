"""From an fp32 ONNX model to a half precision one: the road both passes share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from convkit.artifact import Artifact
from convkit.errors import ModelError, UsageError
from convkit.naming import listed
from convkit.onnx_folder import copy_companions, data_name, graph_file, result_file, text_folder
from convkit.onnx_typing import load_typed, nodes_of, opset_of
from convkit.passes.onnx_half_cache import Cache, cache_of
from convkit.passes.onnx_half_constants import BF16, Constant, Half, examine
from convkit.passes.onnx_half_islands import Plan, plan_islands
from convkit.passes.onnx_half_lowering import lower
from convkit.passes.onnx_half_ranges import SAMPLE_LIMIT, measure
from convkit.passes.onnx_half_transposes import move_transposes
from convkit.passes.onnx_half_types import OLDEST_OPSET, check_opset, is_float, slots_of
from convkit.passes.onnx_half_writing import write_model
from convkit.quantization.value_range import Ranges
from convkit.step import Work

if TYPE_CHECKING:
    import onnx_ir as ir

_NAMES_SHOWN = 6
_CAUSES_SHOWN = 4
"""Causes of one kind that are told one by one; large models have hundreds."""

_NUMBER = re.compile(r"up to ([\d.e+-]+)")
_VALUE = re.compile(_NUMBER.pattern + r"| in '.*'")

_BF16_OPSET = 22
"""Conv, pooling, LSTM and most others take bf16 from here. Source: ONNX Changelog.md, opset 22."""


def convert(
    source: Artifact,
    out: Path,
    work: Work,
    half: Half,
    *,
    keep_io: bool,
    measures: bool,
    headroom: float,
    keep_fp32: str,
) -> None:
    """Writes the model in half precision to `out`; see the passes for the options.

    Raises:
        ModelError, UnsafeError, UnsupportedError: the model cannot be read.
        UsageError: `headroom` is below 1.
        ResourceError: `out` cannot be written.
    """
    if headroom < 1:
        raise UsageError(
            f"headroom is {headroom}; it divides the largest {half.name} number.",
            hint=f"--set onnx-{half.name}.headroom=4",
        )
    path = graph_file(source.path)
    work.progress("types", 0, 4)
    model = _loaded(path, half, work)
    work.progress("weights", 1, 4)
    constants = examine(model.graph, path.parent, half)
    cache = cache_of(model.graph, text_folder(source.path))
    ranges = _measured(model, path, work, cache) if measures else {}
    work.progress("islands", 2, 4)
    keep = [name.strip() for name in keep_fp32.split(",") if name.strip()]
    plan = plan_islands(
        model,
        half,
        constants,
        ranges,
        keep_io=keep_io,
        headroom=headroom,
        keep=keep,
        carried=cache.carried,
    )
    _report(plan, constants, work)
    lower(model, plan, path.parent)
    work.progress("writing", 3, 4)
    file = result_file(source.path, out)
    if file == out:
        write_model(model, out, path.parent, f"{out.name}.data")
    else:  # a folder, which is kept as it is
        write_model(model, file, path.parent, data_name(path), is_beside=bool(source.data_files))
    copy_companions(source, out)
    work.progress("writing", 4, 4)


def _loaded(path: Path, half: Half, work: Work) -> ir.Model:
    """The typed model, at an opset that knows bf16 where that frees nodes from fp32."""
    model = load_typed(path)
    opset = opset_of(model, "")
    if half is BF16 and opset < _BF16_OPSET and _gains(model, _BF16_OPSET, half):
        try:
            raised = load_typed(path, _BF16_OPSET)
            if _signature(raised) != _signature(model):
                raise ModelError("raised", why="the raised model has other inputs or outputs")
            model = raised
            work.note(f"Opset {opset} became {_BF16_OPSET}, the first with bf16 convolutions.")
        except ModelError as cause:
            work.note(f"Opset {opset} stays, nodes it has no bf16 for too: {'; '.join(cause.why)}")
    check_opset(model, half.name)
    move_transposes(model)
    return model


def _signature(model: ir.Model) -> list[str]:
    values = [*model.graph.inputs, *model.graph.outputs]
    return [f"{value.name}: {value.dtype} {value.shape}" for value in values]


def _gains(model: ir.Model, opset: int, half: Half) -> bool:
    """Whether a node could be half at `opset` and not at the model's own."""
    own = opset_of(model, "")
    return own < OLDEST_OPSET[half.name] or any(
        slots_of(node, opset, half.dtype).is_possible
        and not slots_of(node, own, half.dtype).is_possible
        for node in nodes_of(model.graph)
        if node.domain == "" and any(map(is_float, (*node.inputs, *node.outputs)))
    )


def _measured(model: ir.Model, path: Path, work: Work, cache: Cache) -> Ranges:
    if not work.samples:
        work.note("No samples: overflow was not looked for. Give some with --samples.")
        return {}
    try:
        samples = [cache.completed(feeds) for feeds in work.samples[:SAMPLE_LIMIT]]
        return measure(model, path.parent, samples, work.progress)
    except Exception as cause:  # ONNX Runtime's errors share no better base
        lines = str(cause).splitlines() or [type(cause).__name__]
        work.note(f"Overflow was not looked for: the fp32 model did not run ({lines[0][:200]}).")
        return {}


def _report(plan: Plan, constants: Mapping[ir.Value, Constant], work: Work) -> None:
    """One sentence per cause, and what was done to masks."""
    by_cause: dict[str, list[str]] = {}
    for node, why in plan.reasons.items():
        label = f"{node.name or node.outputs[0].name} ({node.op_type})"
        by_cause.setdefault(why or "between other fp32 nodes", []).append(label)
    total = sum(map(len, by_cause.values()))
    if total:
        count = total + len(plan.half_nodes)
        work.note(f"{total} of {count} floating-point nodes stay in fp32.")
    for why, names in sorted(_merged(by_cause).items(), key=lambda item: -len(item[1])):
        work.note(f"fp32: {why}: {listed(names, _NAMES_SHOWN)}.")
    changed = [
        value.name or ""
        for value in plan.masks.constants
        if constants[value].low < -plan.half.largest / 2 and constants[value].low != float("-inf")
    ]
    if changed:
        masks = ", ".join(sorted(changed))
        work.note(f"Masking constants became -30000, softmax gives the same: {masks}.")


def _merged(by_cause: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Causes with their nodes; many that differ in a value alone become that of the largest."""
    kinds: dict[str, list[str]] = {}
    for why in by_cause:
        kinds.setdefault(_VALUE.sub("", why), []).append(why)
    merged: dict[str, list[str]] = {}
    for causes in kinds.values():
        if len(causes) <= _CAUSES_SHOWN:
            merged |= {why: by_cause[why] for why in causes}
            continue
        worst = max(causes, key=_magnitude)
        names = [name for why in (worst, *causes) for name in by_cause[why]]
        merged[f"{worst} and {len(causes) - 1} more values"] = list(dict.fromkeys(names))
    return merged


def _magnitude(why: str) -> float:
    found = _NUMBER.search(why)
    return float(found[1]) if found else 0.0
