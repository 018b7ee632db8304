"""What runs the ONNX backend suite: convkit's importers, and outside references beside them.

Each is a function `(model, folder, example) -> run`, see `tests/backend_suite.py`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from tests.backend_suite import Prepare, Run

_CARRIERS: Mapping[str, str] = {
    "int4": "int8", "int2": "int8", "uint4": "uint8", "uint2": "uint8", "float4_e2m1fn": "float32",
}  # fmt: skip
"""Types that neither PyTorch nor TensorFlow computes with -> the type that carries their values."""
_HOLDS_FLOAT4 = ("float32", "float8_e4m3fn")
"""Types whose values include all of the 4-bit float's."""


def torch_module(model: onnx.ModelProto, folder: Path, example: Sequence[Any]) -> Run:
    """ONNX to PyTorch, the module run eagerly."""
    module = _module(model, folder)
    return _torch_run(module, model)


def torch_export(model: onnx.ModelProto, folder: Path, example: Sequence[Any]) -> Run:
    """ONNX to PyTorch, the module captured by torch.export and that program run."""
    import torch

    module = _module(model, folder)
    with torch.no_grad():
        program = torch.export.export(module, tuple(map(_tensor, example)), strict=False)
    return _torch_run(program.module(), model)


def torch_export_dynamic(model: onnx.ModelProto, folder: Path, example: Sequence[Any]) -> Run:
    """The same with every size left open that the graph leaves open."""
    import torch

    module = _module(model, folder)
    inputs = tuple(map(_tensor, example))
    shapes = tuple(
        {axis: torch.export.Dim.AUTO for axis in range(one.dim())}
        if isinstance(one, torch.Tensor)
        else None
        for one in inputs
    )
    with torch.no_grad():
        program = torch.export.export(module, inputs, dynamic_shapes=(shapes,), strict=False)
    return _torch_run(program.module(), model)


def _module(model: onnx.ModelProto, folder: Path) -> Any:
    from convkit.converters.onnx_to_torch.build import module_of

    return module_of(_saved(model, folder)).eval()


def _saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _torch_run(module: Any, model: onnx.ModelProto) -> Run:
    import torch

    def run(inputs: Sequence[Any]) -> list[Any]:
        with torch.no_grad():
            result = module(*map(_tensor, inputs))
        values = list(result) if isinstance(result, (tuple, list)) else [result]
        if len(model.graph.output) == 1 and isinstance(result, list):
            values = [result]  # one sequence, not several outputs
        return [
            _declared(_from_torch(v), o) for v, o in zip(values, model.graph.output, strict=True)
        ]

    return run


def _tensor(value: Any) -> Any:
    """A tensor of an array's values; lists item by item; None and strings as they are."""
    import torch

    if isinstance(value, (list, tuple)):
        return [_tensor(one) for one in value]
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind in "OSU":
        return value
    array = np.array(value, order="C")
    name = _CARRIERS.get(array.dtype.name)
    if name:
        array = array.astype(name)
    elif array.dtype.kind == "V" or not hasattr(np, array.dtype.name):  # a type of ml_dtypes
        bits = array.view({1: np.uint8, 2: np.int16}[array.dtype.itemsize])
        return torch.from_numpy(bits).view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array)


def _from_torch(value: Any) -> Any:
    import torch

    if isinstance(value, (list, tuple)):
        return [_from_torch(one) for one in value]
    if not isinstance(value, torch.Tensor):
        return value
    tensor = value.detach().contiguous()
    name = str(tensor.dtype).removeprefix("torch.")
    if hasattr(ml_dtypes, name):
        bits = tensor.view({1: torch.uint8, 2: torch.int16}[tensor.element_size()]).numpy()
        return bits.view(getattr(ml_dtypes, name))
    return tensor.numpy()


def _declared(value: Any, declared: onnx.ValueInfoProto) -> Any:
    """Values in a carrier type as the type that the model declares; all others untouched."""
    if not isinstance(value, np.ndarray) or not declared.type.HasField("tensor_type"):
        return value
    dtype = onnx.helper.tensor_dtype_to_np_dtype(declared.type.tensor_type.elem_type)
    is_float4 = dtype.name == "float4_e2m1fn" and value.dtype.name in _HOLDS_FLOAT4
    if is_float4:
        return value.astype(np.float32).astype(dtype)
    return value.astype(dtype) if _CARRIERS.get(dtype.name) == value.dtype.name else value


def savedmodel(model: onnx.ModelProto, folder: Path, example: Sequence[Any]) -> Run:
    """ONNX to SavedModel: written, loaded by TensorFlow alone, run through its signature."""
    from convkit.converters.onnx_to_savedmodel.build import save

    out = folder / "saved"
    save(_saved(model, folder), out)
    return _signature_run(out, model)


def _signature_run(folder: Path, model: onnx.ModelProto) -> Run:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))
    signature = loaded.signatures["serving_default"]
    specs = signature.structured_input_signature[1]
    order = json.loads((folder / "assets.extra" / "convkit_signature.json").read_text())

    def run(inputs: Sequence[Any]) -> list[Any]:
        loaded  # noqa: B018 - a signature does not keep the variables alive
        feeds = {
            name: tf.constant(_carried(value, specs[name].dtype.as_numpy_dtype))
            for name, value in zip(_names(order["inputs"]), inputs, strict=True)
            if value is not None
        }
        outputs = signature(**feeds)
        return [
            _declared(outputs[name].numpy(), declared)
            for name, declared in zip(_names(order["outputs"]), model.graph.output, strict=True)
        ]

    return run


def _names(entries: Sequence[Any]) -> list[str]:
    """Signature names, whether listed bare or as records."""
    return [one if isinstance(one, str) else one["signature"] for one in entries]


def _carried(value: Any, wanted: Any) -> Any:
    """The array; of the signature's type where TensorFlow has no such type as the model."""
    array = np.asarray(value)
    return array.astype(wanted) if array.dtype.name in _CARRIERS else array


def onnxruntime(model: onnx.ModelProto, folder: Path, example: Sequence[Any]) -> Run:
    """ONNX Runtime on the CPU, as it comes."""
    import onnxruntime as runtime

    quiet = runtime.SessionOptions()
    quiet.log_severity_level = 4
    session = runtime.InferenceSession(
        model.SerializeToString(), quiet, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=False)))


def reference(model: onnx.ModelProto, folder: Path, example: Sequence[Any]) -> Run:
    """The evaluator in the onnx package, which computes operators by their specification."""
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(model)
    return lambda inputs: session.run(None, dict(zip(session.input_names, inputs, strict=False)))


def onnx2torch(model: onnx.ModelProto, folder: Path, example: Sequence[Any]) -> Run:
    """The onnx2torch library."""
    from onnx2torch import convert

    return _torch_run(convert(model).eval(), model)


def onnx2pytorch(model: onnx.ModelProto, folder: Path, example: Sequence[Any]) -> Run:
    """The onnx2pytorch library."""
    from onnx2pytorch import ConvertModel

    return _torch_run(ConvertModel(model, experimental=True).eval(), model)


BACKENDS: Mapping[str, tuple[str, Prepare]] = {
    "torch": ("convkit.converters.onnx_to_torch", torch_module),
    "savedmodel": ("convkit.converters.onnx_to_savedmodel", savedmodel),
    "onnxruntime": ("onnxruntime", onnxruntime),
    "onnx.reference": ("onnx.reference", reference),
    "onnx2torch": ("onnx2torch", onnx2torch),
    "onnx2pytorch": ("onnx2pytorch", onnx2pytorch),
}
"""Name -> the module it needs, and itself."""


def is_installed(backend: str) -> bool:
    """Whether the module that a backend needs can be found."""
    try:
        return importlib.util.find_spec(BACKENDS[backend][0]) is not None
    except ModuleNotFoundError:
        return False
