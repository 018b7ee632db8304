"""Imports a framework by name; those that talk while they are loaded are kept quiet."""

from __future__ import annotations

import importlib

from convkit.tensorflow_import import import_keras, import_tensorflow

_ON_TENSORFLOW = ("tensorflow", "keras", "tf2onnx")


def load_module(name: str) -> None:
    """Imports a module that a step needs.

    Raises:
        ImportError: it is not installed.
        MissingRequirementError: Keras runs on another backend here.
    """
    if name in _ON_TENSORFLOW:
        import_tensorflow()
    if name == "keras":
        import_keras()
    importlib.import_module(name)
