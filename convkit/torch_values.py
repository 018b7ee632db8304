"""Values on their way in and out of PyTorch networks: arrays, tensors, Python numbers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convkit.naming import named_leaves

if TYPE_CHECKING:
    import numpy as np
    import torch

NUMBERS: Mapping[str, type] = {"int": int, "float": float, "bool": bool}
"""How annotations and TorchScript spell the numbers that a network may take beside tensors."""


def named_tensors(result: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors in what a network returned, with names; anything else is dropped."""
    import torch

    return [(n, value) for n, value in named_leaves(result) if isinstance(value, torch.Tensor)]


def to_array(value: Any) -> np.ndarray[Any, Any]:
    """A numpy array of a tensor's or number's values; bfloat16 becomes `ml_dtypes.bfloat16`."""
    import numpy as np
    import torch

    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    tensor: torch.Tensor = value.detach().cpu().contiguous()
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


def to_argument(array: np.ndarray[Any, Any], number: type | None) -> Any:
    """A tensor; the bare number from a 0-d array where the network takes a Python number."""
    return number(array.item()) if number is not None and array.ndim == 0 else to_tensor(array)


def parameters_of(network: torch.nn.Module) -> dict[str, type | None]:
    """Parameters of `forward` that can be given by name, with the number type each asks for."""
    try:
        parameters = inspect.signature(network.forward).parameters
    except (TypeError, ValueError):
        return {}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: _number(p.annotation) for name, p in parameters.items() if p.kind in named}


def _number(annotation: Any) -> type | None:
    """The type; a module with postponed annotations gives its name."""
    if annotation in NUMBERS.values():
        return annotation  # type: ignore[no-any-return]
    return NUMBERS.get(annotation) if isinstance(annotation, str) else None
