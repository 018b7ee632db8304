"""ONNX files that a stranger made: names and attributes never become code of a module."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("torch", reason="PyTorch is not installed")

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from convkit.artifact import Artifact, Opening, Precision
from convkit.converters.onnx_to_torch.build import module_of
from convkit.converters.onnx_to_torch.generate import program_of
from convkit.converters.onnx_to_torch.writing import write_folder
from convkit.errors import UnsafeError
from convkit.formats import torch_source
from convkit.step import Work

_MARK = "convkit_was_fooled"
"""A file that hostile text would make in the working directory."""

_CALL = f"__import__('pathlib').Path('{_MARK}').touch()"

_NAMES = [
    f"x\nimport os; {_CALL}\n", f'"""\n{_CALL}\n"""', f"'+{_CALL}+'", f"{{{_CALL}}}",
    f"x\r\n{_CALL}",
    "\u2028", "\u2029x", "\x0cx", "\x85", "\x00", "#", "\\", '\\"""', '"', "'", "{}", " ", "0",
    "-1",
    "self", "forward", "torch", "nn", "math", "Path", "load", "Model", "operators", "annotations",
    "__class__", "__init__", "__dict__", "class", "lambda", "None", "print", "match", "a" * 5000,
    "\uff21", "\ufb01", "_", "__", "super", "weight", "training", "_parameters", "state_dict",
]  # fmt: skip
_ATTACKS = (f'nearest"\n{_CALL}\n"', f"nearest'+{_CALL}+'", "\\", "nearest\u2028x")


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / _MARK).exists()


def named_all_over(name: str) -> onnx.ModelProto:
    """A model that has a text wherever ONNX lets its author put one."""
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32) + 1, f"{name}W")
    bias = numpy_helper.from_array(np.ones(3, np.float32), f"{name}B")
    first = numpy_helper.from_array(np.array(0, np.int64), f"{name}i")
    steps: list[tuple[str, list[str], dict[str, Any]]] = [
        ("MatMul", ["", "W"], {}), ("Add", ["0", "B"], {}), ("Shape", ["1"], {}),
        ("Gather", ["2", "i"], {}), ("Cast", ["3"], {"to": 1}), ("Elu", ["1"], {"alpha": 0.5}),
        ("Mul", ["5", "4"], {}),
    ]  # fmt: skip
    nodes = [
        helper.make_node(kind, [f"{name}{i}" for i in ins], [f"{name}{n}"], f"{name}n{n}", **more)
        for n, (kind, ins, more) in enumerate(steps)
    ]
    ends = [
        helper.make_tensor_value_info(value, TensorProto.FLOAT, [f"{name}dim", 3])
        for value in (name, f"{name}6")
    ]
    graph = helper.make_graph(nodes, name, ends[:1], ends[1:], [weight, bias, first])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model.producer_name = model.doc_string = name
    model.metadata_props.add(key=name, value=name)
    return model


def expected(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    hidden = x @ (np.eye(3, dtype=np.float32) + 1) + 1
    return np.where(hidden > 0, hidden, 0.5 * (np.exp(hidden) - 1)) * len(x)


@pytest.mark.parametrize("name", _NAMES, ids=range(len(_NAMES)))
def test_names_are_never_code_and_the_result_is_right(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(named_all_over(name), path)
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    with torch.no_grad():
        got = module_of(path)(torch.from_numpy(x))[0].numpy()
        # Both sum three products in single precision, in any order.
        np.testing.assert_allclose(got, expected(x), rtol=1e-5, atol=1e-6)
        folder = tmp_path / "folder"
        work = Work((), lambda _: None, lambda _: None, lambda *_: None)
        write_folder(Artifact(path, "onnx", Precision.FP32), folder, work)
        artifact = Artifact(folder, "torch", Precision.FP32, opening=Opening(trust=True))
        made = torch_source.load_source(artifact)(torch.from_numpy(x))
        np.testing.assert_allclose(made[f"{name}6"].numpy(), expected(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ['a"""b.onnx', f"a\n{_CALL}.onnx".replace("/", ""), "a\\.onnx", "a\u2028b.onnx", "#.onnx"],
)
def test_a_files_own_name_is_never_code(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    onnx.save(named_all_over("x"), path)
    compile(program_of(path).source, "model.py", "exec")
    module_of(path)


@pytest.mark.parametrize("text", _ATTACKS)
@pytest.mark.parametrize(
    ("operator", "attribute", "shapes"),
    [
        ("Gelu", "approximate", [[2]]), ("Einsum", "equation", [[2, 2]]),
        ("GridSample", "mode", [[1, 1, 4, 4], [1, 2, 2, 2]]),
        ("DepthToSpace", "mode", [[1, 4, 2, 2]]),
        ("Conv", "auto_pad", [[1, 1, 4, 4], [1, 1, 2, 2]]),
    ],
)  # fmt: skip
def test_texts_in_attributes_are_never_code(
    operator: str, attribute: str, shapes: list[list[int]], text: str, tmp_path: Path
) -> None:
    names = [f"i{n}" for n in range(len(shapes))]
    more = {"blocksize": 2} if operator == "DepthToSpace" else {}
    node = helper.make_node(operator, names, ["y"], **{attribute: text}, **more)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(names, shapes, strict=True)
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", inputs, [out])
    path = tmp_path / "model.onnx"
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    module = module_of(path)
    with suppress(RuntimeError, KeyError, ValueError):  # what it asks for does not exist
        module(*(torch.rand(shape) for shape in shapes))


def test_a_folder_is_not_run_without_trust_whatever_lies_beside_it(tmp_path: Path) -> None:
    from convkit import graph

    path = tmp_path / "model.onnx"
    onnx.save(named_all_over("x"), path)
    folder = tmp_path / "folder"
    work = Work((), lambda _: None, lambda _: None, lambda *_: None)
    write_folder(Artifact(path, "onnx", Precision.FP32), folder, work)
    source = (folder / "model.py").read_text()
    (folder / "model.py").write_text(f"{_CALL}\n{source}")
    artifact = graph.detect(folder)
    artifact.write_manifest(verified=True, checks=[], trust=True)
    with pytest.raises(UnsafeError) as caught:
        torch_source.load_source(graph.detect(folder))
    assert caught.value.exit_code == 9
