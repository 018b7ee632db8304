"""Weights of a Hugging Face folder as lazy ONNX tensors, read when they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from convkit.errors import RungSkipped

if TYPE_CHECKING:
    import onnx_ir

    from convkit.checkpoint.rows import Rows

Rename = Callable[[dict[str, "Rows"]], Mapping[str, "Rows"]]
"""From tensors under the folder's names to tensors under the graph's; may leave some out."""


class FolderWeights:
    """The float tensors of a folder under the graph's names. A context manager."""

    def __init__(self, folder: Path, rename: Rename) -> None:
        from convkit.checkpoint.folder import open_folder

        self._checkpoint = open_folder(folder)
        stored = dict(self._checkpoint.tensors)
        self._tensors = {**stored, **rename(stored)}

    def __enter__(self) -> FolderWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpoint.close()

    def lazy(
        self, name: str, dtype: onnx_ir.DataType, *, is_transposed: bool = False
    ) -> onnx_ir.LazyTensor:
        """A tensor that is read, converted to `dtype` and transposed (2-D) each time it is needed.

        Raises:
            RungSkipped: the folder does not have it.
        """
        import onnx_ir

        stored = self._tensors.get(name)
        if stored is None:
            raise RungSkipped(f"the folder has no float weights for {name}")
        shape = stored.shape[::-1] if is_transposed else stored.shape

        def read() -> onnx_ir.TensorProtocol:
            array = stored.array().astype(dtype.numpy(), copy=False)
            return onnx_ir.Tensor(array.T.copy() if is_transposed else array, dtype=dtype)

        return onnx_ir.LazyTensor(read, dtype=dtype, shape=onnx_ir.Shape(shape), name=name)


def fill(graph: onnx_ir.Graph, weights: FolderWeights) -> None:
    """Gives every empty initializer its weights.

    A Transpose that only turns a weight around for a product is done while the weight is read.

    Raises:
        RungSkipped: an initializer has no weights, or of another shape.
    """
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None:
            continue
        if value.dtype is None:
            raise RungSkipped(f"mobius gives {name} no dtype")
        tensor = weights.lazy(name, value.dtype)
        if value.shape is not None and list(value.shape) != list(tensor.shape):
            raise RungSkipped(f"{name} is {tensor.shape}, mobius wants {value.shape}")
        value.const_value = tensor
        _fold_transpose(graph, name, value, weights)


def _fold_transpose(
    graph: onnx_ir.Graph, name: str, value: onnx_ir.Value, weights: FolderWeights
) -> None:
    users = [use.node for use in value.uses()]
    if len(users) != 1 or users[0].op_type != "Transpose" or value.shape is None:
        return
    turned = users[0].outputs[0]
    order = users[0].attributes.get("perm")
    if len(value.shape) != 2 or (order is not None and list(order.value) != [1, 0]):
        return
    tensor = weights.lazy(name, value.dtype or turned.dtype, is_transposed=True)  # type: ignore[arg-type]
    graph.remove(users[0], safe=False)
    value.const_value, value.shape = tensor, tensor.shape
    turned.replace_all_uses_with(value)
