"""What each channel of values holds on data, with one batch in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.onnx_structure import plain_session
from convkit.onnx_typing import opset_of
from convkit.step import Feeds, Progress

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

_AXES_AS_INPUT = 18
"""ReduceMax and ReduceMean take their axes as an input from here. Source: ONNX Changelog.md."""


@dataclass
class ChannelRange:
    """Channels of a value over all samples, each array (channels,).

    Attributes:
        absmax: largest magnitude.
        square: mean square.
    """

    absmax: Array
    square: Array


def channel_ranges(
    model: ir.Model,
    folder: Path,
    axes: Mapping[str, tuple[int, int]],
    batches: Iterable[Feeds],
    progress: Progress,
    total: int | None = None,
) -> dict[str, ChannelRange]:
    """Runs the model on all batches; only a few numbers a channel leave the session.

    Args:
        model: typed.
        folder: where its weights lie.
        axes: value name -> (axis of its channels, number of its axes).
        batches: inputs by name.
        progress: hears how many samples are done.
        total: number of samples.

    Raises:
        Exception: whatever ONNX Runtime raises where the model does not run.
    """
    import onnx
    import onnx_ir as ir

    proto = ir.to_proto(model)
    del proto.graph.output[:]
    opset = opset_of(model, "")
    names = list(axes)
    for index, name in enumerate(names):
        axis, rank = axes[name]
        others = [each for each in range(rank) if each != axis % rank]
        proto.graph.node.extend(_probes(proto.graph, index, name, others, opset))
    wanted = [f"convkit_{kind}_{i}" for i in range(len(names)) for kind in ("absmax", "square")]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    if not names:
        return {}
    session = plain_session(proto, folder)
    inputs = {value.name for value in model.graph.inputs}
    found: dict[str, ChannelRange] = {}
    done = 0
    for feeds in batches:
        progress("channels", done, total)
        rows = max((array.shape[0] for array in feeds.values() if array.ndim), default=1)
        arrays = session.run(wanted, {k: v for k, v in feeds.items() if k in inputs})
        for index, name in enumerate(names):
            _add(found, name, arrays[2 * index], arrays[2 * index + 1], done, rows)
        done += rows
    return found


def _add(
    found: dict[str, ChannelRange], name: str, absmax: Array, square: Array, done: int, rows: int
) -> None:
    if name not in found:
        found[name] = ChannelRange(absmax, square.astype(np.float64))
        return
    seen = found[name]
    seen.absmax = np.maximum(seen.absmax, absmax)
    seen.square = (seen.square * done + square * rows) / (done + rows)


def _probes(
    graph: onnx.GraphProto, index: int, name: str, axes: list[int], opset: int
) -> list[onnx.NodeProto]:
    import onnx

    make = onnx.helper.make_node
    plain, squared = f"convkit_abs_{index}", f"convkit_product_{index}"
    nodes = [make("Abs", [name], [plain]), make("Mul", [name, name], [squared])]
    given: dict[str, Any] = {"keepdims": 0}
    extra = []
    if opset >= _AXES_AS_INPUT:
        extra = [f"convkit_axes_{index}"]
        graph.initializer.append(onnx.helper.make_tensor(extra[0], 7, [len(axes)], axes))
    else:
        given["axes"] = axes
    nodes.append(make("ReduceMax", [plain, *extra], [f"convkit_absmax_{index}"], **given))
    nodes.append(make("ReduceMean", [squared, *extra], [f"convkit_square_{index}"], **given))
    return nodes
