"""convkit: convert trained models between formats and precisions, proven and measured.

The public names are loaded when first used, so that importing convkit costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convkit.artifact import Artifact, Precision, TensorSpec
    from convkit.benchmark import bench
    from convkit.errors import ConvkitError
    from convkit.library import convert, inspect, load, plan, verify

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "ConvkitError",
    "Precision",
    "TensorSpec",
    "__version__",
    "bench",
    "convert",
    "inspect",
    "load",
    "plan",
    "verify",
]

_HOMES = {
    "Artifact": "artifact",
    "Precision": "artifact",
    "TensorSpec": "artifact",
    "ConvkitError": "errors",
    "bench": "benchmark",
    "convert": "library",
    "inspect": "library",
    "load": "library",
    "plan": "library",
    "verify": "library",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'convkit' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"convkit.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
