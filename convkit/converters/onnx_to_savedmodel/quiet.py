"""Keeps TensorFlow's own messages off the terminal while a model is converted."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from convkit.tensorflow_import import import_tensorflow


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Imports TensorFlow silently and hides its Python warnings inside the block."""
    import_tensorflow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
