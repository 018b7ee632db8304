"""Single nodes, converted to PyTorch and compared with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convkit.converters.onnx_to_torch.build import module_of
from tests.onnx_files import make_model, make_value
from tests.torch_import import FP32, expected, node, onnx, torch

MICROSOFT = "com.microsoft"


def agrees(
    folder: Path,
    operator: str,
    inputs: Sequence[np.ndarray[Any, Any] | None],
    dtypes: Sequence[Any],
    limit: float = FP32,
    weights: Sequence[int] = (),
    domain: str = "",
    version: int = 22,
    **attributes: Any,
) -> None:
    """Compares one node with ONNX Runtime; inputs whose index is in `weights` are constants.

    `limit` is relative and absolute; one of at least 1 is absolute only, in units of integers.
    """
    names = ["" if array is None else f"x{i}" for i, array in enumerate(inputs)]
    constants = {names[i]: inputs[i] for i in weights}
    given = {
        name: array
        for name, array in zip(names, inputs, strict=True)
        if array is not None and name not in constants
    }
    outputs = ["" if dtype is None else f"y{i}" for i, dtype in enumerate(dtypes)]
    typed = [(name, dtype) for name, dtype in zip(outputs, dtypes, strict=True) if name]
    model = make_model(
        [node(operator, names, outputs, domain=domain, **attributes)],
        [
            make_value(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), list(array.shape))
            for name, array in given.items()
        ],
        [
            make_value(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(t)), None)
            for name, t in typed
        ],
        constants,
        opsets=(("", version), (MICROSOFT, 1)),
    )
    path = folder / "model.onnx"
    onnx.save(model, path)
    feeds = list(given.values())
    with torch.no_grad():
        results = module_of(path)(*(torch.from_numpy(array.copy()) for array in feeds))
    found = list(results.values()) if isinstance(results, dict) else list(results)
    relative = limit if limit < 1 else 0.0
    for got, wanted in zip(found, expected(path, feeds), strict=True):
        right = _tensor(np.array(wanted))
        torch.testing.assert_close(got, right, rtol=relative, atol=limit, equal_nan=True)


def _tensor(array: np.ndarray[Any, Any]) -> Any:
    """The array as a tensor; NumPy has two 64-bit unsigned types, PyTorch knows one of them."""
    if array.dtype == np.uint64:
        return torch.from_numpy(array.view(np.int64)).view(torch.uint64)
    return torch.from_numpy(array)
