"""Runs a PyTorch network eagerly on the CPU: arrays in, arrays out, outputs by name."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from convkit.artifact import TensorSpec
from convkit.errors import SamplesError, StepError
from convkit.step import Feeds, Outputs, Runner, Sizes

if TYPE_CHECKING:
    import numpy as np
    import torch

Example = Callable[[Sizes, int], Feeds]
"""Makes seeded inputs for sizes of the dynamic dimensions."""

_PYTHON_SCALARS = {int: int, float: float, bool: bool, "int": int, "float": float, "bool": bool}


class TorchRunner(Runner):
    """A network in evaluation mode, run under `torch.inference_mode`.

    Output specs are known after the first call; a dimension that followed a dynamic input
    dimension in every call so far, through at least two sizes, carries its name.
    """

    def __init__(
        self, network: torch.nn.Module, inputs: Sequence[TensorSpec], example: Example
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs: tuple[TensorSpec, ...] = ()
        self._network: torch.nn.Module | None = network
        self._example = example
        self._signature = parameters_of(network)
        self._seen: list[tuple[dict[str, int], dict[str, tuple[str, tuple[int, ...]]]]] = []

    def __call__(self, feeds: Feeds) -> Outputs:
        """Outputs by name.

        Raises:
            SamplesError: an input is missing.
            StepError: the model was closed.
        """
        import torch

        if self._network is None:
            raise StepError("This model was closed.")
        reset = getattr(self._network, "reset_states", None)
        if callable(reset):
            reset()
        positional, named = self._arguments(feeds)
        with torch.inference_mode():
            result = self._network(*positional, **named)
        arrays = {name: to_array(tensor) for name, tensor in named_tensors(result)}
        self._learn(feeds, arrays)
        return arrays

    def example(self, sizes: Sizes, seed: int) -> Feeds:
        """Seeded inputs the network makes sense of."""
        return self._example(sizes, seed)

    def close(self) -> None:
        """Lets the network go."""
        self._network = None
        gc.collect()

    def _arguments(self, feeds: Feeds) -> tuple[list[Any], dict[str, Any]]:
        missing = [spec.name for spec in self.inputs if spec.name not in feeds]
        if missing:
            raise SamplesError(
                f"The model takes '{missing[0]}', which the inputs lack.",
                why=f"They have: {', '.join(feeds)}",
            )
        values = {}
        for spec in self.inputs:
            parameter = self._signature.get(spec.name)
            annotation = parameter.annotation if parameter is not None else None
            values[spec.name] = _to_argument(feeds[spec.name], annotation)
        tree = getattr(self._network, "_in_spec", None)
        if tree is not None and tree.num_leaves == len(values):
            # An exported program takes arguments exactly as it was exported with.
            from torch.utils import _pytree

            positional, named = _pytree.tree_unflatten(list(values.values()), tree)
            return list(positional), dict(named)
        if all(name in self._signature for name in values):
            return [], values
        return list(values.values()), {}

    def _learn(self, feeds: Feeds, arrays: Mapping[str, Any]) -> None:
        bound = {
            size: feeds[spec.name].shape[axis]
            for spec in self.inputs
            for axis, size in enumerate(spec.shape)
            if isinstance(size, str)
        }
        seen = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
        self._seen = [*self._seen[-7:], (bound, seen)]
        self.outputs = tuple(self._output_spec(name, seen[name]) for name in seen)

    def _output_spec(self, name: str, last: tuple[str, tuple[int, ...]]) -> TensorSpec:
        dtype, shape = last
        calls = [
            (bound, shapes[name][1])
            for bound, shapes in self._seen
            if name in shapes and len(shapes[name][1]) == len(shape)
        ]
        return TensorSpec(name, dtype, tuple(_dimension(name, a, calls) for a in range(len(shape))))


def named_tensors(result: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors in what a network returned, with names; None and anything else are dropped.

    A mapping (a transformers `ModelOutput` too), a named tuple or a dataclass gives its keys;
    a lone tensor is `output`; positions of a tuple are `output_0`, `output_1` and on.
    """
    import torch

    if isinstance(result, torch.Tensor):
        return [("output", result)]
    return [(_joined(path), tensor) for path, tensor in _leaves(result, ())]


def to_array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A numpy array of a tensor's values; bfloat16 becomes `ml_dtypes.bfloat16`."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def to_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """A tensor of an array's values, on memory of its own."""
    import numpy as np
    import torch

    array = np.array(array, order="C")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for key in value._fields:
            yield from _leaves(getattr(value, key), (*path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, str(index)))
    elif is_dataclass(value):
        for field in fields(value):
            yield from _leaves(getattr(value, field.name), (*path, field.name))


def _joined(path: tuple[str, ...]) -> str:
    return "output_" + ".".join(path) if path[0].isdigit() else ".".join(path)


def _dimension(
    name: str, axis: int, calls: Sequence[tuple[Mapping[str, int], tuple[int, ...]]]
) -> int | str:
    sizes = [shape[axis] for _, shape in calls]
    if len(set(sizes)) == 1:
        return sizes[0]
    candidates = set.intersection(*(set(bound) for bound, _ in calls))
    for candidate in sorted(candidates):
        if all(bound[candidate] == shape[axis] for bound, shape in calls):
            return candidate
    return f"{name}_dim{axis}"


def parameters_of(network: torch.nn.Module) -> dict[str, inspect.Parameter]:
    """Parameters of `forward` that can be given by name."""
    try:
        parameters = inspect.signature(network.forward).parameters
    except (TypeError, ValueError):
        return {}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in parameters.items() if p.kind in named}


def _to_argument(array: np.ndarray[Any, Any], annotation: Any) -> Any:
    if array.ndim == 0 and annotation in _PYTHON_SCALARS:
        return _PYTHON_SCALARS[annotation](array.item())
    return to_tensor(array)
