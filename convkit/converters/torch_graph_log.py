"""Keeps PyTorch's older ONNX exporter from printing whole graphs to standard output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def graph_log_off() -> Iterator[None]:
    """Within, the exporter's C++ side prints no graph when it fails.

    PyTorch 2.13 turns that log on itself (it tests a function's truth), so turning it off
    beforehand does not help.
    """
    import torch

    log = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *_: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = log
