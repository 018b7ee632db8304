"""ONNX data types in PyTorch's and safetensors' words.

PyTorch has no tensors of less than a byte per element: int4, uint4, int2 and uint2 travel one per
element in int8 and uint8, float4 in float8_e4m3fn, which holds each of its values exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

_NAMES = {
    "FLOAT": "float32", "DOUBLE": "float64", "FLOAT16": "float16", "BFLOAT16": "bfloat16",
    "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "BOOL": "bool",
    "COMPLEX64": "complex64", "COMPLEX128": "complex128",
    "FLOAT8E4M3FN": "float8_e4m3fn", "FLOAT8E4M3FNUZ": "float8_e4m3fnuz",
    "FLOAT8E5M2": "float8_e5m2", "FLOAT8E5M2FNUZ": "float8_e5m2fnuz",
    "FLOAT8E8M0": "float8_e8m0fnu",
    "INT4": "int4", "UINT4": "uint4", "INT2": "int2", "UINT2": "uint2",
    "FLOAT4E2M1": "float4_e2m1fn_x2",
}  # fmt: skip
"""ONNX data type -> `torch.` dtype."""

_CARRIERS = {
    "int4": "int8", "int2": "int8", "uint4": "uint8", "uint2": "uint8",
    "float4_e2m1fn_x2": "float8_e4m3fn",
}  # fmt: skip

_NUMPY = {"float4_e2m1fn_x2": "float4_e2m1fn"}

STORED = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "int32": "I32",
    "uint32": "U32", "int64": "I64", "uint64": "U64", "float16": "F16", "bfloat16": "BF16",
    "float32": "F32", "float64": "F64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0", "complex64": "C64",
}  # fmt: skip
"""dtype -> its name in a safetensors header."""

_FLOATS = frozenset(("float16", "bfloat16", "float32", "float64"))


def dtype_name(dtype: Any) -> str:
    """`float32` for `onnx_ir.DataType.FLOAT`; narrow types have their own name."""
    return _NAMES.get(getattr(dtype, "name", ""), "")


def carrier_name(dtype: Any) -> str:
    """The dtype of the tensors that hold such elements."""
    name = dtype_name(dtype)
    return _CARRIERS.get(name, name)


def is_float(dtype: Any) -> bool:
    """Whether values of this type can be trained."""
    return dtype_name(dtype) in _FLOATS


def carried(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array in a dtype that PyTorch has tensors of."""
    import ml_dtypes
    import numpy as np

    name = array.dtype.name
    if name in ("int4", "int2"):
        return array.astype(np.int8)
    if name in ("uint4", "uint2"):
        return array.astype(np.uint8)
    if name == "float4_e2m1fn":
        return array.astype(ml_dtypes.float8_e4m3fn)
    return array


def tensor_of(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """A tensor on the array's memory; dtypes that numpy lacks are reinterpreted."""
    import numpy as np
    import torch

    array = np.require(carried(array), requirements=["C", "A", "W"])
    name = array.dtype.name
    if array.dtype.kind in "biufc" and hasattr(np, name):
        return torch.from_numpy(array)
    plain = array.view(np.uint8 if array.dtype.itemsize == 1 else np.int16)
    return torch.from_numpy(plain).view(getattr(torch, name))
