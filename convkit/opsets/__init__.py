"""Adapters that bring ONNX operators from an opset down to an older one, meaning the same."""

from __future__ import annotations
