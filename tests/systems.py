"""The systems that convkit must convert: classic networks and trained models, with what each is.

`scripts/matrix` converts every one of them to every format it has a meaning in.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convkit.artifact import TensorSpec

TARGETS = ("torch", "torchscript", "onnx", "onnx-fp16", "savedmodel")
"""Columns of the matrix; fp16 is a precision of ONNX here."""

_FOR_ONNX = ("torch", "torchscript", "onnx-fp16", "savedmodel")
"""Of a model that is ONNX already."""


@dataclass(frozen=True)
class System:
    """A model and the formats it has a meaning in.

    Attributes:
        kind: the format it comes in.
        make: writes or finds it (a folder to write into is given); `convkit.convert`'s model.
        weights: finds the weights of a factory.
        arguments: further arguments of `convkit.convert`.
        targets: columns it has a meaning in.
    """

    name: str
    kind: str
    make: Callable[[Path], Path | str]
    weights: Callable[[], Path] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = TARGETS


def systems() -> Iterator[System]:
    """All, in the order of the table's rows; those of a framework import it when reached."""
    yield from _keras()
    yield from _tensorflow()
    yield from _onnx()
    yield from _torch()


_CLASSIC_KERAS = (
    "fnn", "cnn", "cnn64", "rnn", "rnn_dynamic", "lstm_forecaster", "gru", "gru_reset_before",
    "simple_rnn", "gru_stack", "bilstm", "masked_gru", "autoencoder", "encoder",
    "conv_autoencoder", "gan_generator", "dcgan_generator", "gan", "transformer_classifier",
    "first_stage", "second_stage",
)  # fmt: skip


def _keras() -> Iterable[System]:
    for name in _CLASSIC_KERAS:
        yield System(name, "keras", lambda folder, n=name: _tf_models().save_keras(n, folder))
    yield System("cnn.h5", "keras", lambda folder: _tf_models().save_keras("cnn", folder, ".h5"))
    yield System("fer", "keras", lambda folder: _material().fer_file())
    yield System(
        "chars2vec",
        "keras",
        lambda folder: "tests.material_keras:chars2vec",
        lambda: _material().chars2vec_weights_file(),
        {"inputs": ("letters=float32[batch,letters,59]",)},
    )


def _tensorflow() -> Iterable[System]:
    yield System(
        "subclassed", "savedmodel",
        lambda folder: _tf_models().save_keras_as_savedmodel("subclassed", folder),
        targets=_without("savedmodel"),
    )  # fmt: skip
    yield System(
        "basic-pitch", "savedmodel", lambda f: _material().basic_pitch_folder(),
        targets=_without("savedmodel"),
    )  # fmt: skip
    for part in ("pnet", "rnet", "onet"):
        yield System(
            f"mtcnn {part} (Keras)", "savedmodel",
            lambda folder, p=part: mtcnn_savedmodel(p, folder),
            targets=_without("savedmodel"),
        )  # fmt: skip
    yield System("tf1_graph.pb", "tf_frozen", lambda folder: _tf_models().tf1_frozen(folder))
    yield System("tf1_graph.meta", "tf_frozen", lambda folder: _tf_models().tf1_checkpoint(folder))


def _torch() -> Iterable[System]:
    for name, (factory, inputs) in _classic_torch().items():
        yield System(
            name,
            "torch",
            lambda folder, f=factory: f,
            arguments={"inputs": tuple(map(_described, inputs))},
            targets=_without("torch"),
        )
    for name in ("efficientnet_lite0", "resemblyzer", "mtcnn_pnet", "mtcnn_rnet", "mtcnn_onet"):
        yield _checkpoint(name)
    yield System(
        "silero_vad.jit",
        "torchscript",
        lambda folder: _material().silero_vad_file(),
        arguments={"inputs": ("x=float32[batch,512]", "sr=int64[]"), "samples": _SILERO},
        targets=("torch", "onnx", "onnx-fp16", "savedmodel"),
    )


_SILERO, _LINES = "silero", "lines"
"""Inputs other than random ones of any size; see `samples_of`."""


def samples_of(text: str, folder: Path) -> Path:
    """Writes inputs that a system asks for: sound at a rate it knows, lines of text 48 high."""
    import numpy as np

    generator = np.random.default_rng(3)
    if text == _SILERO:
        sound = generator.uniform(-0.5, 0.5, (2, 512)).astype(np.float32)
        arrays = {"x": sound, "sr": np.asarray(16000)}
    else:
        arrays = {"x": generator.uniform(-1, 1, (2, 3, 48, 192)).astype(np.float32)}
    path = folder / f"{text}.npz"
    np.savez(path, **arrays)
    return path


def _checkpoint(name: str) -> System:
    # Described here again because tests/material.py imports PyTorch, which this table need not.
    sizes = {
        "efficientnet_lite0": "inputs=float32[batch,3,224,224]",
        "resemblyzer": "mels=float32[batch,frames,40]",
        "mtcnn_pnet": "x=float32[batch,3,height,width]",
        "mtcnn_rnet": "x=float32[batch,3,24,24]",
        "mtcnn_onet": "x=float32[batch,3,48,48]",
    }
    return System(
        f"{name.replace('_', ' ', 1)} (PyTorch)" if name.startswith("mtcnn") else name,
        "torch",
        lambda folder: f"tests.material:{name}",
        lambda: _material().MATERIAL[name].path(),
        {"inputs": (sizes[name],), "key": "model_state" if name == "resemblyzer" else ""},
        _without("torch"),
    )


def _onnx() -> Iterable[System]:
    files: Mapping[str, Callable[[], Path]] = {
        "iclabel": lambda: _material().iclabel_onnx_file(),
        "magika": lambda: _material().magika_onnx_file(),
        "rapidocr det": lambda: _material().rapidocr_onnx_file("det"),
        "rapidocr rec": lambda: _material().rapidocr_onnx_file("rec"),
        "rapidocr cls": lambda: _material().rapidocr_onnx_file("cls"),
        "nsnet2": lambda: _material().nsnet2_onnx_file(),
        "nsnet2 48k": lambda: _material().nsnet2_onnx_file("48k"),
        "captcha-whisperer": lambda: _material().captcha_onnx_file(),
        "chars2vec.onnx": lambda: _material().chars2vec_onnx_file(),
    }
    for name, find in files.items():
        # Copied, because results and manifests go beside a source.
        arguments = {"samples": _LINES} if name == "rapidocr rec" else {}
        yield System(
            name, "onnx", lambda folder, f=find: _copied(f(), folder), None, arguments, _FOR_ONNX
        )


def _without(target: str) -> tuple[str, ...]:
    return tuple(one for one in TARGETS if one != target)


def _copied(path: Path, folder: Path) -> Path:
    return Path(shutil.copy(path, folder / path.name))


def _described(spec: TensorSpec) -> str:
    return f"{spec.name}={spec.dtype}[{','.join(map(str, spec.shape))}]"


def mtcnn_savedmodel(part: str, folder: Path) -> Path:
    """Writes the Keras twin of a part of the face detector: (batch, height, width, 3)."""
    import tensorflow as tf

    from tests import material_keras

    network = material_keras.mtcnn(part)
    size = {"pnet": None, "rnet": 24, "onet": 48}[part]
    spec = tf.TensorSpec((None, size, size, 3), tf.float32, name="x")
    path = folder / f"mtcnn_{part}"
    network.export(path, format="tf_saved_model", verbose=False, input_signature=[spec])
    return path


def _classic_torch() -> Mapping[str, tuple[str, tuple[TensorSpec, ...]]]:
    """Name -> the factory of a classic PyTorch network, and what it takes."""
    from tests.classic_models import CLASSIC_MODELS

    return {model.name: (model.opening.factory or "", model.inputs) for model in CLASSIC_MODELS}


def _tf_models() -> Any:
    from tests import tf_models

    return tf_models


def _material() -> Any:
    from tests import material

    return material
