"""Trained Keras models that lie inside installed packages, as far as they need code to be built.

Each function builds a network, with its weights unless it says otherwise; those without are
factories for a weights-only file (see `material.chars2vec_weights_file`).
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.material import material_file

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_LETTERS = 59
"""How many characters the published networks of chars2vec know."""


def chars2vec(size: int = 50) -> Any:
    """Two LSTMs over one-hot letters, without weights: (batch, letters, 59) -> (batch, size).

    Source: chars2vec/model.py in the package, whose LSTM has today's default activations here, as
    in the ONNX twin; Keras 2.2, which trained it, had hard_sigmoid gates.
    """
    keras = _keras()
    letters = keras.layers.Input((None, _LETTERS), name="letters")
    hidden = keras.layers.LSTM(size, return_sequences=True, name="lstm_1")(letters)
    return keras.Model(letters, keras.layers.LSTM(size, name="lstm_2")(hidden), name="chars2vec")


def mtcnn(part: str) -> Any:
    """Keras twin of `material.mtcnn_pnet`, `_rnet` or `_onet`, trained: (batch, h, w, 3)."""
    _keras()
    joblib = pytest.importorskip("joblib", reason="the weights are joblib files")
    pytest.importorskip("lz4", reason="the weights are compressed with lz4")
    weights = joblib.load(material_file("mtcnn", f"assets/weights/{part}.lz4"))
    networks = pytest.importorskip("mtcnn.network." + part, reason="the network's own class")
    network = getattr(networks, {"pnet": "PNet", "rnet": "RNet", "onet": "ONet"}[part])()
    network.build()
    network.set_weights(weights)
    return network


def _keras() -> Any:
    return pytest.importorskip("keras", reason="the network is built with Keras")
