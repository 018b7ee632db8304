"""How large the values of a model become on samples: the evidence for fp32 islands.

All of them are measured in one run with the memory of an ordinary one, those inside If, Loop and
Scan bodies too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convkit.onnx_structure import plain_session
from convkit.onnx_typing import nodes_of
from convkit.passes.onnx_half_types import is_float
from convkit.quantization.probes import Probes
from convkit.quantization.value_range import Range, Ranges
from convkit.step import Feeds

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

SAMPLE_LIMIT = 32
"""Samples that are run; ranges hardly grow beyond."""

_FETCH_LIMIT_BYTES = 256 << 20
"""Memory for values that hold infinities, which are looked at outside the session."""


def measure(
    model: ir.Model, folder: Path, samples: Sequence[Feeds], progress: Callable[..., None]
) -> Ranges:
    """Runs the fp32 model on the samples and gives the range of every float value.

    Args:
        model: its larger initializers still refer to files in `folder`.
        folder: the folder of the model file.
        samples: inputs by name; the first 32 are run.
        progress: takes (what, done, total).

    Raises:
        Exception: whatever ONNX Runtime raises when the model or a sample does not run.
    """
    import onnx_ir as ir

    wanted = {
        value.name for node in nodes_of(model.graph) for value in node.outputs if is_float(value)
    }
    wanted |= {value.name for value in model.graph.inputs if is_float(value)}
    if not wanted:
        return {}
    names = {value.name or "" for value in model.graph.inputs}
    batch = [{k: v for k, v in feeds.items() if k in names} for feeds in samples[:SAMPLE_LIMIT]]
    wanted -= {name for name in names if all(name in f and f[name].size == 0 for f in batch)}

    def attempt(allows_empty: bool) -> tuple[dict[str, Range], set[str]]:
        proto = ir.to_proto(model)
        probes = Probes({name for name in wanted if name}, _sized(model), allows_empty)
        probes.add_to(proto.graph, [value.name for value in proto.graph.input])
        return _run(proto, probes, batch, folder, progress)

    try:
        found, unbounded = attempt(False)
    except Exception:  # a value without elements has no extremes; with a 0 joined it has
        found, unbounded = attempt(True)
    if unbounded:
        plain = ir.to_proto(model)
        own = {output for node in plain.graph.node for output in node.output}
        for name in unbounded:
            if name in own or name in names:
                found[name] = Range(0.0, 0.0)
            else:  # inside a body, where it cannot be looked at: taken for too large
                found[name] = Range(-math.inf, math.inf)
        found.update(_finite_ranges(plain, unbounded & (own | names), batch, folder))
    return found


def _sized(model: ir.Model) -> set[str]:
    """Values of the main graph whose element count matters: in and out of means and sums."""
    from convkit.passes.onnx_half_insides import SUMMING

    values = [v for n in model.graph if n.op_type in SUMMING for v in (n.inputs[0], n.outputs[0])]
    return {value.name for value in values if value is not None and value.name}


def _run(
    proto: onnx.ModelProto,
    probes: Probes,
    batch: Sequence[Feeds],
    folder: Path,
    progress: Callable[..., None],
) -> tuple[dict[str, Range], set[str]]:
    session = plain_session(proto, folder)
    found: dict[str, Range] = {}
    unbounded: set[str] = set()
    for index, feeds in enumerate(batch):
        progress("ranges", index, len(batch))
        scalars = dict(zip(probes.outputs, session.run(probes.outputs, dict(feeds)), strict=True))
        for name, (low, high) in probes.scalars.items():
            count = int(scalars[probes.sizes[name]]) if name in probes.sizes else 0
            seen = Range(float(scalars[low]), float(scalars[high]), count)
            if not (math.isfinite(seen.low) and math.isfinite(seen.high)):
                unbounded.add(name)
            else:
                found[name] = found[name].joined(seen) if name in found else seen
    return found, unbounded


def _finite_ranges(
    proto: onnx.ModelProto,
    names: Iterable[str],
    batch: Sequence[Feeds],
    folder: Path,
) -> dict[str, Range]:
    """Ranges over the finite elements only; values are fetched few at a time."""
    import numpy as np
    import onnx

    found: dict[str, Range] = {}
    pending = sorted(names)
    chunk = 1
    while pending:
        now, pending = pending[:chunk], pending[chunk:]
        probe = onnx.ModelProto()
        probe.CopyFrom(proto)
        del probe.graph.output[:]
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in now)
        session = plain_session(probe, folder)
        largest = 1
        for feeds in batch:
            for name, array in zip(now, session.run(now, dict(feeds)), strict=True):
                finite = array[np.isfinite(array)]
                low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
                seen = Range(float(low), float(high), int(array.size))
                found[name] = found[name].joined(seen) if name in found else seen
                largest = max(largest, array.nbytes)
        chunk = max(1, min(64, _FETCH_LIMIT_BYTES // largest))
    return found
