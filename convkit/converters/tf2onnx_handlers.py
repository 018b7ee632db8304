"""What tf2onnx is given beside its own translations: expansions, and handlers written in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tf2onnx.onnx_opset.nn import Resize

from convkit.converters import tf2onnx_arithmetic, tf2onnx_images, tf2onnx_indexing

EXPANSIONS: Mapping[str, Callable[..., Any]] = {
    **tf2onnx_arithmetic.EXPANSIONS,
    **tf2onnx_images.EXPANSIONS,
    **tf2onnx_indexing.EXPANSIONS,
}


def handlers() -> Mapping[str, tuple[Callable[..., None], list[Any]]]:
    """Operators whose translation is written in ONNX, in the form tf2onnx takes them."""
    return {name: (_resize, []) for name in ("ResizeBilinear", "ResizeNearestNeighbor")}


def _resize(graph: Any, node: Any, name: str, _: Any) -> None:
    """Resize, with sizes instead of factors where a factor is no whole number.

    tf2onnx writes factors; as float32 they may round to one pixel less than TensorFlow gives.
    """
    images, size = node.input[0], node.inputs[1]
    old = graph.get_shape(images)
    new = size.get_tensor_value() if size.is_const() else [0, 0]
    sides = old[1:3] if old is not None else [-1, -1]
    if min(sides) < 1 or any(n % o for n, o in zip(new, sides, strict=True)):
        # Of an image with unknown sides tf2onnx writes sizes.
        graph.set_shape(images, None if old is None else [old[0], -1, -1, old[3]])
    before = {made.name for made in graph.get_nodes()}
    Resize.version_11(graph, node)
    graph.set_shape(images, old)
    for made in graph.get_nodes():
        if made.type == "Resize" and made.name not in before - {node.name}:
            _without_old_mode(made)


def _without_old_mode(node: Any) -> None:
    """Spells a mode that ONNX dropped with opset 13: floor(half_pixel + 0.5), as rounding says."""
    if node.get_attr_value("coordinate_transformation_mode") in _OLD_MODES:
        node.set_attr("coordinate_transformation_mode", "half_pixel")
        node.set_attr("nearest_mode", "round_prefer_ceil")


_OLD_MODES = ("tf_half_pixel_for_nn", b"tf_half_pixel_for_nn")
