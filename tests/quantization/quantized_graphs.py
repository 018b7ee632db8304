"""Float graphs that tests of quantization make, and what ONNX Runtime makes of the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convkit.onnx_typing import load_typed
from convkit.passes.onnx_half_writing import write_model
from convkit.quantization.dynamic import quantize_dynamic
from convkit.quantization.targets import target_of
from tests.onnx_files import FLOAT, helper, make_model, make_value, onnx, runtime, save

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def float_graph(
    nodes: list[Any], weights: dict[str, Array], shape: list[Any], outputs: tuple[str, ...] = ("y",)
) -> Any:
    """A model from `x` of that shape."""
    results = [make_value(name, FLOAT, None) for name in outputs]
    return make_model(
        nodes, [make_value("x", FLOAT, shape)], results, weights, opsets=(("", 17),), ir_version=8
    )


def quantized(
    model: Any,
    folder: Path,
    *,
    keep: frozenset[str] = frozenset(),
    target: str = "cpu",
    note: Callable[[str], None] = lambda _: None,
) -> Path:
    """The model in dynamic int8, as a file; the float one is `float.onnx` beside it."""
    path = save(model, folder / "float.onnx")
    typed = load_typed(path)
    quantize_dynamic(typed, folder, target_of(target), keep=keep, note=note)
    out = folder / "int8.onnx"
    write_model(typed, out, folder, "int8.onnx.data")
    onnx.checker.check_model(onnx.load(out))
    return out


def outputs_of(path: Path, feeds: Feeds) -> list[Array]:
    """What ONNX Runtime computes."""
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, dict(feeds))]


def optimized_operators(path: Path) -> Counter[str]:
    """Operators that are left when ONNX Runtime has fused and folded what it can."""
    options = runtime.SessionOptions()
    optimized = path.with_suffix(".optimized.onnx")
    options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 3
    runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return operators_of(optimized)


def operators_of(path: Path) -> Counter[str]:
    """Operators of the main graph and of bodies."""
    found: Counter[str] = Counter()
    waiting = [onnx.load(path, load_external_data=False).graph]
    while waiting:
        graph = waiting.pop()
        for node in graph.node:
            found[node.op_type] += 1
            waiting += [each.g for each in node.attribute if each.HasField("g")]
    return found


def node(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> Any:
    """A node; names have blanks between them, and `_` is an input that is left out."""
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), **attributes)
