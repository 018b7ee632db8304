"""Imports TensorFlow without its messages: the one place that does.

TensorFlow logs from C++ (read when it is loaded), from absl and from Python's `logging`; none of it
tells a user of a converter something he can act on. What fails is raised and reported.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",  # 3: not even errors; they arrive as exceptions too
    "KERAS_BACKEND": "tensorflow",
}
_LOGGERS = ("tensorflow", "absl", "h5py")


def import_tensorflow() -> Any:
    """The `tensorflow` module, quiet. What a user set in the environment himself stays.

    Where nobody loaded it before, it sees no GPU: it would take all of its memory from others.
    """
    is_ours = "tensorflow" not in sys.modules
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    with quiet_import():
        import tensorflow

        if is_ours:
            tensorflow.config.set_visible_devices([], "GPU")
    return tensorflow


def import_keras() -> Any:
    """The `keras` module on TensorFlow, quiet.

    Raises:
        MissingRequirementError: Keras was already imported with another backend.
    """
    import_tensorflow()
    with quiet_import():
        import keras
    backend = keras.backend.backend()
    if backend != "tensorflow":
        from convkit.errors import MissingRequirementError

        raise MissingRequirementError(
            f"Keras runs on {backend} here; convkit runs Keras models on TensorFlow.",
            hint="KERAS_BACKEND=tensorflow convkit ...",
        )
    return keras


@contextmanager
def quiet_import() -> Iterator[None]:
    """Silences what TensorFlow writes straight to standard error while it is loaded.

    C++ logs a few lines before its log level applies; the descriptor itself is turned away.
    """
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
