"""Folders with a network as source: `model.py`, `model.safetensors`, and a signature beside them.

The signature, `convkit_module.json`, names inputs and outputs, so that the folder can be described
without running anything.

SECURITY: `model.py` is Python, and opening the folder runs it; that needs trust.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact, Description, TensorSpec
from convkit.errors import ModelError, UnsafeError
from convkit.formats.torch_checkpoint import describe_tensors, read_safetensors
from convkit.formats.torch_runner import Example
from convkit.step import Feeds, Sizes

if TYPE_CHECKING:
    import torch

SIGNATURE = "convkit_module.json"
_SOURCE = "model.py"
_WEIGHTS = "model.safetensors"

_numbers = itertools.count()


def is_source_folder(path: Path) -> bool:
    """Whether a folder holds a network's source with its signature."""
    return path.is_dir() and (path / SIGNATURE).is_file() and (path / _SOURCE).is_file()


def describe_source(path: Path) -> Description:
    """Inputs, outputs and precision from the signature and the weights' header; no code is run.

    Raises:
        ModelError: the signature or the weights are missing or damaged.
    """
    inputs, outputs = _ports(path)
    weights = path / _WEIGHTS
    if not weights.is_file():
        raise ModelError(
            f"{path} lacks {_WEIGHTS}, the weights of its network.",
            hint="Copy the whole folder, or convert the model again.",
        )
    described = describe_tensors(read_safetensors(weights).values(), source=_SOURCE)
    return Description(
        described.precision,
        inputs=inputs,
        outputs=outputs,
        parameter_count=described.parameter_count,
        details=described.details,
    )


def load_source(artifact: Artifact) -> torch.nn.Module:
    """The network, in evaluation mode; its `forward` gives outputs by name.

    Raises:
        UnsafeError: without trust, since `model.py` is run.
        ModelError: it fails, or gives no network.
    """
    import torch

    path = artifact.path
    if not artifact.opening.trust:
        raise UnsafeError(
            f"{path} is a network as Python source, and opening it runs that source.",
            why=f"Look at {path / _SOURCE} first.",
            hint="If you trust it:  --trust",
        )
    try:
        network = _run(path).load()
    except Exception as cause:
        first = (str(cause).strip().splitlines() or [""])[0]
        raise ModelError(
            f"{path / _SOURCE} cannot be run.", why=f"{type(cause).__name__}: {first[:300]}"
        ) from cause
    if not isinstance(network, torch.nn.Module):
        raise ModelError(f"load() in {path / _SOURCE} gave no torch.nn.Module.")
    return _named(network, [spec.name for spec in _ports(path)[1]]).eval()


def inputs_of_source(artifact: Artifact) -> tuple[tuple[TensorSpec, ...], Example]:
    """Input specs and a maker of inputs."""
    from convkit.samples import draw

    specs = artifact.opening.inputs or _ports(artifact.path)[0]

    def example(sizes: Sizes, seed: int) -> Feeds:
        return draw(specs, sizes, seed)

    return specs, example


def _ports(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    file = path / SIGNATURE
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        inputs = tuple(map(_spec, document["inputs"]))
        return inputs, tuple(map(_spec, document["outputs"]))
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise ModelError(
            f"{file} is damaged.",
            why=f"{type(cause).__name__}: {cause}",
            hint="Convert the model again.",
        ) from cause


def _spec(entry: dict[str, Any]) -> TensorSpec:
    sizes = (size if isinstance(size, int) else str(size) for size in entry["shape"] or ())
    return TensorSpec(str(entry["name"]), str(entry["dtype"]), tuple(sizes))


def _run(path: Path) -> Any:
    """The module `model.py`, under a package name of its own so that its siblings are found."""
    name = f"convkit_source_{next(_numbers)}"
    package = importlib.util.module_from_spec(
        importlib.machinery.ModuleSpec(name, None, is_package=True)
    )
    package.__path__ = [str(path)]
    sys.modules[name] = package
    spec = importlib.util.spec_from_file_location(f"{name}.model", path / _SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _named(network: torch.nn.Module, names: list[str]) -> torch.nn.Module:
    """Lets `forward` take tensors by position and give a dictionary; an edited one stays."""
    kind = type(network)

    def forward(self: Any, *tensors: Any) -> Any:
        made = kind.forward(self, *tensors)
        values = made if isinstance(made, tuple) else (made,)
        return dict(zip(names, values, strict=True)) if len(values) == len(names) else made

    network.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return network
