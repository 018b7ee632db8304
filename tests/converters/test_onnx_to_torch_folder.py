"""What is written: exported programs, and folders that live without convkit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import convkit
from convkit.errors import UnsafeError
from tests.torch_import import assert_agrees, expected, node, numbers, saved, torch

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph with layers, a library function, and a dynamic height and width."""
    nodes = [
        node("Conv", ["image.1", "stem.weight"], ["c"], pads=[1, 1, 1, 1]),
        node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("LRN", ["p"], ["l"], size=3),
        node("GlobalAveragePool", ["l"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "head.weight", "head.bias"], ["logits 0"], transB=1),
    ]
    weights = {
        "stem.weight": numbers(4, 3, 3, 3),
        "head.weight": numbers(5, 4),
        "head.bias": numbers(5),
    }
    folder = tmp_path_factory.mktemp("network")
    shape = ["batch", 3, "height", "width"]
    return saved(folder, nodes, {"image.1": shape}, ["logits 0"], weights)


@pytest.fixture(scope="module")
def folder(network: Path) -> Path:
    """The network as a folder, verified by the pipeline."""
    out = network.parent / "written"
    report = convkit.convert(network, to="torch", out=out)
    assert report.passed
    return out


def test_an_exported_program_verifies_with_its_dynamic_dimensions(network: Path) -> None:
    report = convkit.convert(network, to="torch", out=network.parent / "model.pt2")
    assert report.passed
    assert report.steps[0].notes == ()
    described, _ = convkit.inspect(network.parent / "model.pt2")
    assert described.outputs[0].name == "logits 0"
    assert sum(isinstance(size, str) for size in described.inputs[0].shape) == 3


def test_the_folder_runs_without_convkit(network: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "mine")
    data = numbers(2, 3, 9, 8)
    np.save(tmp_path / "x.npy", data)
    code = """
import sys
sys.modules["convkit"] = None
import numpy, torch
from mine.model import load
model = load()
with torch.no_grad():
    numpy.save("y.npy", model(torch.from_numpy(numpy.load("x.npy"))).numpy())
print(type(model.stem).__name__, type(model.head).__name__, model.training)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["Conv2d", "Linear", "False"]
    # Both sum in single precision.
    wanted = expected(network, [data])[0]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), wanted, rtol=1e-5, atol=1e-5)


def test_the_folder_can_be_imported_from_inside(folder: Path) -> None:
    code = "import sys; sys.modules['convkit'] = None; import model; print(model.load().training)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "False", done.stderr


def test_the_folder_is_described_without_running_it(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "model.py").write_text("raise SystemExit('this ran')")
    described, details = convkit.inspect(copy)
    assert described.format == "torch"
    assert [spec.name for spec in described.inputs] == ["image.1"]
    assert details.parameter_count == 4 * 27 + 25


def test_opening_the_folder_asks_for_trust(folder: Path) -> None:
    with pytest.raises(UnsafeError) as caught:
        convkit.load(folder)
    assert "--trust" in str(caught.value)
    assert caught.value.exit_code == 9


def test_with_trust_the_folder_runs_by_names(network: Path, folder: Path) -> None:
    data = numbers(2, 3, 6, 7)
    with convkit.load(folder, trust=True) as runner:
        outputs = runner({"image.1": data})
    wanted = expected(network, [data])[0]
    np.testing.assert_allclose(outputs["logits 0"], wanted, rtol=1e-5, atol=1e-5)


def test_the_folder_holds_sources_weights_and_a_signature(folder: Path) -> None:
    names = {file.name for file in folder.iterdir()} - {"__pycache__"}
    assert names == {"model.py", "operators.py", "model.safetensors", "convkit_module.json"}
    signature = json.loads((folder / "convkit_module.json").read_text())
    assert signature["parameters"]["head.weight"] == "head.weight"
    assert "convkit" not in (folder / "operators.py").read_text()
    assert "import convkit" not in (folder / "model.py").read_text()


def test_an_edited_model_is_what_runs(folder: Path, network: Path, tmp_path: Path) -> None:
    copy = tmp_path / "edited"
    shutil.copytree(folder, copy)
    source = (copy / "model.py").read_text()
    assert "return logits_0" in source
    (copy / "model.py").write_text(source.replace("return logits_0", "return logits_0 + 1"))
    data = numbers(1, 3, 6, 6)
    with convkit.load(copy, trust=True) as runner:
        outputs = runner({"image.1": data})
    wanted = expected(network, [data])[0] + 1
    np.testing.assert_allclose(outputs["logits 0"], wanted, rtol=1e-5, atol=1e-5)


def test_importing_the_converter_loads_no_framework() -> None:
    code = (
        "import convkit.converters.onnx_to_torch, sys; "
        "print(sorted({'torch', 'onnx', 'onnx_ir'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_agreement_is_measured_against_the_runtime(network: Path) -> None:
    from convkit.converters.onnx_to_torch.build import module_of

    assert_agrees(module_of(network), network, [numbers(3, 3, 8, 10)])
    assert torch.is_tensor(module_of(network)(torch.zeros(1, 3, 4, 4))[0])
