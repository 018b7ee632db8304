"""How inputs of products go together on data: mean products of each two of them.

Source: Frantar et al., GPTQ, 2023, section 3: the Hessian of the squared error of a product is
twice the sum of outer products of what the weights multiply.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.errors import SamplesError, StepError
from convkit.onnx_structure import plain_session
from convkit.quantization.observing import FETCHED_BYTES, Batches
from convkit.step import Feeds, Progress

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

STAGE_BYTES = 256 << 20
"""Moments that are in memory together."""

_MOST_ROWS = 32
_MICROSOFT = "com.microsoft"


def staged(lengths: Mapping[str, int], limit_bytes: int = STAGE_BYTES) -> list[list[str]]:
    """Values whose moments are taken in one pass over the data.

    Args:
        lengths: name of a value -> its inputs, in the order of the graph.
        limit_bytes: of all moments of a stage; one alone may be larger.
    """
    found: list[list[str]] = []
    held = limit_bytes
    for name, length in lengths.items():
        size = 8 * length * length
        if not found or held + size > limit_bytes:
            found.append([])
            held = 0
        found[-1].append(name)
        held += size
    return found


def second_moments(
    model: ir.Model,
    folder: Path,
    values: Sequence[str],
    data: Batches,
    progress: Progress,
) -> dict[str, Array]:
    """Mean products of each two elements of the last axis of values, float64 (inputs, inputs).

    Args:
        model: typed; it is run as it is now, layers that are quantized already included.
        folder: where its weights lie.
        values: of the main graph, float.
        data: samples of the model's inputs.
        progress: hears how far it is.

    Raises:
        StepError: the model does not run on the samples.
        SamplesError: a sample makes values that are not finite.
    """
    seen = _Seen(model, folder, values)
    rows, done = data.fixed_rows, 0
    if rows is None:
        sample = next(iter(data.largest().batches(1)))
        size = sum(array.nbytes for array in seen.run(sample).values())
        rows = max(1, min(_MOST_ROWS, FETCHED_BYTES // max(size, 1)))
    sums: dict[str, Array] = {}
    counts = dict.fromkeys(values, 0)
    for feeds in data.batches(rows):
        progress("moments of inputs", min(done, data.count), data.count)
        for name, array in seen.run(feeds).items():
            vectors = array.reshape(-1, array.shape[-1]).astype(np.float32, copy=False)
            product = vectors.T @ vectors  # (inputs, inputs)
            if name in sums:
                sums[name] += product
            else:
                sums[name] = product.astype(np.float64)
            counts[name] += len(vectors)
        done += rows
    for name, total in sums.items():
        if not np.isfinite(total).all():
            raise SamplesError(
                f"The samples make the value '{name}' NaN or infinite, so weights cannot be "
                "fitted to them.",
                hint="Leave such samples out, or fit nothing:  --scheme rtn",
            )
        total /= max(counts[name], 1)
    return sums


class _Seen:
    """Values of a model's graph, and no more than they need computed."""

    def __init__(
        self,
        model: ir.Model,
        folder: Path,
        values: Sequence[str],
    ) -> None:
        import onnx_ir as ir

        proto = ir.to_proto(model)
        if all(entry.domain != _MICROSOFT for entry in proto.opset_import):
            proto.opset_import.add(domain=_MICROSOFT, version=1)  # of layers quantized already
        self._inputs = {value.name or "" for value in model.graph.inputs}
        self._given = [name for name in values if name in self._inputs]
        self._made = [name for name in values if name not in self._inputs]
        self._session: Any = None
        if self._made:
            keep_only(proto, self._made)
            try:
                self._session = plain_session(proto, folder)
            except Exception as cause:  # the runtime's own
                raise _failed(cause) from cause

    def run(self, feeds: Feeds) -> dict[str, Array]:
        given = {name: array for name, array in feeds.items() if name in self._inputs}
        found = {name: given[name] for name in self._given}
        if self._session is not None:
            try:
                arrays = self._session.run(self._made, given)
            except Exception as cause:  # the runtime's own
                raise _failed(cause) from cause
            found.update(zip(self._made, arrays, strict=True))
        return found


def keep_only(proto: onnx.ModelProto, values: Sequence[str]) -> None:
    """Leaves of a model what some of its values need, which become its outputs, in place."""
    import onnx

    graph, needed = proto.graph, set(values)
    nodes = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= _read_by(node)
            nodes.append(node)
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    nodes.reverse()
    for field, kept in ((graph.node, nodes), (graph.initializer, initializers)):
        copies = [type(each).FromString(each.SerializeToString()) for each in kept]
        del field[:]
        field.extend(copies)
    del graph.output[:]
    del graph.value_info[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)


def _read_by(node: onnx.NodeProto) -> set[str]:
    """Names that a node and the bodies inside it read."""
    found = set(node.input)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                found |= _read_by(inner)
            found |= {value.name for value in body.output}
    return found


def _failed(cause: Exception) -> StepError:
    return StepError("The model does not run on the calibration data.", why=str(cause)[:400])


class StagedMoments(Mapping[str, Array]):
    """Moments of what the weights of nodes multiply, taken when they are asked for.

    Nodes are asked for in the order of the graph, and each stage is of the model as it is by then:
    later layers see what earlier ones make of the data once they are quantized. The moments of one
    stage are in memory.

    Args:
        model: typed; layers of it are replaced while this is in use.
        folder: where its weights lie.
        inputs: name of a node -> the value that its weight multiplies, in the order of the graph.
        lengths: of the last axis of these values.
        data: samples of the model's inputs.
        progress: hears how far it is.
    """

    def __init__(
        self,
        model: ir.Model,
        folder: Path,
        inputs: Mapping[str, str],
        lengths: Mapping[str, int],
        data: Batches,
        progress: Progress,
    ) -> None:
        self._model = model
        self._folder = folder
        self._inputs = inputs
        self._stages = staged({value: lengths[value] for value in inputs.values()})
        self._data = data
        self._progress = progress
        self._held: dict[str, Array] = {}

    def __getitem__(self, node: str) -> Array:
        value = self._inputs[node]
        if value not in self._held:
            stage = next(names for names in self._stages if value in names)
            self._held = {}
            self._held = second_moments(
                self._model, self._folder, stage, self._data, self._progress
            )
        return self._held[value]

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)
