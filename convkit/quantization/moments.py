"""What the layers of a graph see on data: means and covariances of what weights multiply.

One small batch is in memory at a time, and of a large image a fixed number of places, so that cost
and memory do not grow with the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.onnx_structure import plain_session
from convkit.quantization.layers import int_attribute, output_axis, refusal_of
from convkit.step import Feeds, Progress

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

_LARGEST_ROW = 2048
"""Weights of an output beyond which only the mean square of each is kept, no covariance."""

_FEWEST_PLACES, _MOST_PLACES = 64, 256
"""Places of an image, or of a sequence, that are looked at for each sample: between them as many
as make `_VECTORS` for each weight of an output over all samples."""

_VECTORS = 10

_GATHERED_BYTES = 1 << 20
"""Vectors that are multiplied at once."""

_FETCH_BYTES = 128 << 20
"""What leaves the session at once; layers are seen in several runs where it is more."""


@dataclass
class Moments:
    """Sums over data of the vectors that a layer's weights multiply.

    Attributes:
        count: vectors seen.
        total: their sum, (groups, elements), float64.
        products: sum of their outer products, (groups, elements, elements); of wide layers only
            its diagonal, (groups, elements).
    """

    count: int
    total: Array
    products: Array

    @property
    def mean(self) -> Array:
        """(groups, elements)."""
        return np.asarray(self.total / max(self.count, 1))

    @property
    def square(self) -> Array:
        """Mean square of each element, (groups, elements)."""
        diagonal = self.products
        if diagonal.ndim == 3:
            diagonal = np.diagonal(diagonal, axis1=1, axis2=2)
        return np.asarray(diagonal / max(self.count, 1))

    def covariance(self, *, is_centred: bool = True) -> Array | None:
        """(groups, elements, elements), around the mean or around 0; None for wide layers."""
        if self.products.ndim != 3:
            return None
        second: Array = self.products / max(self.count, 1)
        if not is_centred:
            return second
        mean = self.mean
        return np.asarray(second - mean[:, :, None] * mean[:, None, :])


def moments_of(
    model: ir.Model,
    folder: Path,
    names: Iterable[str],
    batches: Iterable[Feeds],
    progress: Progress,
    total: int | None = None,
) -> dict[str, Moments]:
    """Moments of the layers called `names`, over all batches.

    Args:
        model: typed, its constants initializers.
        folder: where its weights lie.
        names: of nodes that `layers_of` gives.
        batches: inputs by name; gone through once, or once for each part of a large model.
        progress: hears how many batches are done.
        total: number of batches.

    Raises:
        Exception: whatever ONNX Runtime raises where the model does not run.
    """
    wanted = set(names)
    nodes = [n for n in model.graph if n.name in wanted and refusal_of(n) is None]
    seeing = _Seeing(model, folder, list(dict.fromkeys(_name(node.inputs[0]) for node in nodes)))
    sums = {node.name or "": _Sums() for node in nodes}
    places = {node: _places(node, total) for node in nodes}
    done = 0
    for feeds in batches:
        for row in _rows(feeds):
            progress("moments", done, total)
            for arrays in seeing.parts(row):
                for node in nodes:
                    array = arrays.get(_name(node.inputs[0]))
                    if array is not None:
                        generator = np.random.default_rng(done)
                        vectors = layer_vectors(node, array, places[node], generator)
                        sums[node.name or ""].add(vectors)
            done += 1
    return {name: each.moments() for name, each in sums.items() if each.count}


class _Seeing:
    """Gives values of a model's graph for a sample, a few at a time."""

    def __init__(self, model: ir.Model, folder: Path, names: list[str]) -> None:
        import onnx
        import onnx_ir as ir

        proto = ir.to_proto(model)
        self._inputs = {value.name or "" for value in model.graph.inputs}
        self._given = [name for name in names if name in self._inputs]
        self._sizes = {n: f"convkit_size_{i}" for i, n in enumerate(names) if n not in self._inputs}
        del proto.graph.output[:]
        for name, size in self._sizes.items():
            proto.graph.node.append(onnx.helper.make_node("Size", [name], [size]))
        wanted = [*self._sizes, *self._sizes.values()]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        self._session = plain_session(proto, folder) if self._sizes else None
        self._chunks: list[list[str]] = []

    def parts(self, feeds: Feeds) -> Iterator[dict[str, Array]]:
        given = {name: array for name, array in feeds.items() if name in self._inputs}
        yield {name: given[name] for name in self._given}
        if self._session is None:
            return
        if not self._chunks:
            counts = self._session.run(list(self._sizes.values()), given)
            self._chunks = list(_grouped(dict(zip(self._sizes, map(int, counts), strict=True))))
        for chunk in self._chunks:
            yield dict(zip(chunk, self._session.run(chunk, given), strict=True))


def _grouped(counts: Mapping[str, int]) -> Iterator[list[str]]:
    """Names of float32 arrays, in groups that are small enough to be fetched."""
    group: list[str] = []
    size = 0
    for name, count in counts.items():
        if group and size + 4 * count > _FETCH_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += 4 * count
    if group:
        yield group


def _rows(feeds: Feeds) -> Iterator[Feeds]:
    """One sample at a time, where all inputs have as many; else all at once."""
    counts = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
    if len(counts) != 1 or 0 in counts:
        yield feeds
        return
    for index in range(counts.pop()):
        yield {name: array[index : index + 1] for name, array in feeds.items()}


class _Sums:
    """Sums over vectors, which are gathered until there are enough for a product of matrices."""

    def __init__(self) -> None:
        self.count = 0
        self._total: Array = np.zeros(0)
        self._products: Array = np.zeros(0)
        self._waiting: list[Array] = []

    def add(self, vectors: Array | None) -> None:
        """Adds (groups, places, elements)."""
        if vectors is None or not np.isfinite(vectors).all():
            return
        self.count += vectors.shape[1]
        self._waiting.append(vectors)
        if sum(each.nbytes for each in self._waiting) >= _GATHERED_BYTES:
            self._take()

    def moments(self) -> Moments:
        if self._waiting:
            self._take()
        return Moments(self.count, self._total, self._products)

    def _take(self) -> None:
        vectors = np.concatenate(self._waiting, axis=1)
        self._waiting = []
        # float32 sums of some hundred products; the totals over all data are float64
        if vectors.shape[2] > _LARGEST_ROW:
            products = np.square(vectors).sum(1)
        else:
            products = np.matmul(vectors.transpose(0, 2, 1), vectors)
        total = vectors.sum(1, dtype=np.float64)
        if self._total.size:
            self._total += total
            self._products += products
        else:
            self._total, self._products = total, products.astype(np.float64)


def layer_vectors(
    node: ir.Node, array: Array, places: int, generator: np.random.Generator
) -> Array | None:
    """What the weights of each output multiply, at random places: (groups, places, elements)."""
    if node.op_type == "Conv":
        return _patches(node, array, places, generator)
    rows = array.reshape(-1, array.shape[-1])
    return np.ascontiguousarray(rows[None, _chosen(len(rows), places, generator)])


def _places(node: ir.Node, samples: int | None) -> int:
    """How many places of each sample are looked at."""
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    sizes = [int(size) for size in weight.shape.numpy()]
    elements = math.prod(sizes) // sizes[output_axis(node)]
    wanted = _VECTORS * elements // samples if samples else _MOST_PLACES
    return min(max(wanted, _FEWEST_PLACES), _MOST_PLACES)


def _chosen(count: int, wanted: int, generator: np.random.Generator) -> Array:
    """Indices of so many places, at random; of all where they are no more."""
    return np.arange(count) if count <= wanted else generator.integers(0, count, wanted)


def _pixels(node: ir.Node, image: Array, places: int, generator: np.random.Generator) -> Array:
    """Patches of one place each."""
    groups = int_attribute(node, "group", 1)
    flat = image.reshape(*image.shape[:2], -1)  # (batch, channels, places)
    chosen = _chosen(flat.shape[2], places, generator)
    rows = flat[:, :, chosen].transpose(0, 2, 1).reshape(len(image) * len(chosen), groups, -1)
    return np.ascontiguousarray(rows.transpose(1, 0, 2))  # (groups, places, elements)


def _patches(
    node: ir.Node, image: Array, places: int, generator: np.random.Generator
) -> Array | None:
    """Patches under the kernel of a convolution, each as its weights lie."""
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    kernel = [int(size) for size in weight.shape.numpy()[2:]]
    dilations = _ints(node, "dilations", [1] * len(kernel))
    strides = _ints(node, "strides", [1] * len(kernel))
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    pads = _pads(node, image.shape[2:], reach, strides)
    if max(kernel) == 1 and max(strides) == 1 and not np.any(pads):
        return _pixels(node, image, places, generator)
    spatial = tuple(range(2, 2 + len(kernel)))
    padded = np.pad(image, [(0, 0), (0, 0), *pads])
    if any(size < need for size, need in zip(padded.shape[2:], reach, strict=True)):
        return None
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=spatial)
    steps = tuple(slice(None, None, step) for step in strides)
    holes = tuple(slice(None, None, step) for step in dilations)
    every = (slice(None), slice(None))
    windows = windows[every + steps + holes]
    counts = (windows.shape[0], *windows.shape[2 : 2 + len(kernel)])
    chosen = _chosen(int(np.prod(counts)), places, generator)
    windows = np.moveaxis(windows, 1, len(counts))  # (batch, *places, channels, *kernel)
    picked = windows[np.unravel_index(chosen, counts)]
    groups = int_attribute(node, "group", 1)
    picked = picked.reshape(len(chosen), groups, -1)  # (places, groups, elements)
    return np.ascontiguousarray(picked.transpose(1, 0, 2))


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    found = node.attributes.get(name)
    return default if found is None else list(found.as_ints())


def _pads(
    node: ir.Node, sides: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Zeros before and behind each side of an image. Source: ONNX Operators.md, Conv, auto_pad."""
    given = node.attributes.get("auto_pad")
    mode = "NOTSET" if given is None else given.as_string()
    if mode == "NOTSET":
        pads = _ints(node, "pads", [0] * (2 * len(sides)))
        return list(zip(pads[: len(sides)], pads[len(sides) :], strict=True))
    if mode == "VALID":
        return [(0, 0)] * len(sides)
    found = []
    for side, size, stride in zip(sides, reach, strides, strict=True):
        total = max((-(-side // stride) - 1) * stride + size - side, 0)
        less = total // 2
        found.append((less, total - less) if mode == "SAME_UPPER" else (total - less, less))
    return found


def _name(value: ir.Value | None) -> str:
    assert value is not None
    return value.name or ""
