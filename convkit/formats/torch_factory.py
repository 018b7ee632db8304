"""Networks that a factory builds: `package.module:factory`, with or without a weights file."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact, TensorSpec
from convkit.errors import InputsUnknownError, ModelError, UnknownNameError, UsageError
from convkit.formats.torch_checkpoint import fill, load_state
from convkit.formats.torch_runner import Example
from convkit.step import Feeds, Sizes
from convkit.torch_values import named_tensors, parameters_of, to_array

if TYPE_CHECKING:
    import torch

_SEED = 0


def build(artifact: Artifact) -> tuple[torch.nn.Module, Any]:
    """The network of an artifact's factory, weights filled in, and the example inputs it gave.

    A factory without weights is called under a fixed seed, so that each opening gives the same
    network.

    Raises:
        UsageError: the factory's name does not lead to something callable.
        ModelError: its module or the call fails, or it gives no network.
        WeightsMismatchError: the weights do not fit.
    """
    import torch

    name = artifact.opening.factory or ""
    factory = _find(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        made = _call(name, factory)
    network, examples = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(network, torch.nn.Module):
        raise ModelError(
            f"{name} gave {_kind(made)}, not a torch.nn.Module.",
            hint="Let the factory return the network, or (network, example_inputs).",
        )
    if artifact.path.suffix != ".py":
        fill(network, load_state(artifact.path, artifact.opening), artifact.path)
    return network.eval(), examples


def inputs_of(
    network: torch.nn.Module, artifact: Artifact, examples: Any
) -> tuple[tuple[TensorSpec, ...], Example]:
    """Input specs and a maker of inputs: as the user said, else from what the network carries.

    Raises:
        InputsUnknownError: nobody says what the inputs look like.
    """
    from convkit.samples import draw

    names = list(parameters_of(network))
    specs = artifact.opening.inputs or artifact.inputs
    ranges: dict[str, tuple[float, float]] = {}
    if not specs:
        arrays = _example_arrays(network, examples, names)
        if not arrays:
            raise InputsUnknownError(artifact.opening.factory or str(artifact.path), names)
        specs = tuple(_spec(name, array) for name, array in arrays.items())
        ranges = {
            name: (0, int(array.max()))
            for name, array in arrays.items()
            if array.dtype.kind in "iu" and array.size and array.min() >= 0
        }

    def example(sizes: Sizes, seed: int) -> Feeds:
        return draw(specs, sizes, seed, ranges)

    return specs, example


def _find(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    with _working_folder_importable():
        try:
            found: Any = importlib.import_module(module_name)
        except (Exception, SystemExit) as cause:  # a script may end the process when imported
            raise _import_failure(module_name, cause) from cause
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [key for key in vars(found) if callable(vars(found)[key])]
            nearest = difflib.get_close_matches(part, known, n=8, cutoff=0.0)
            raise UnknownNameError(f"factory in {module_name}", part, nearest)
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(
            f"{name} is {_kind(found)}; a factory must be callable.",
            hint="Name a class or a function that gives the network.",
        )
    return found


def _import_failure(module: str, cause: Exception | SystemExit) -> ModelError:
    missing = getattr(cause, "name", None) if isinstance(cause, ModuleNotFoundError) else None
    if missing and (module == missing or module.startswith(f"{missing}.")):
        return ModelError(
            f"There is no Python module {missing}.",
            why=f"Searched in {Path.cwd()} and the installed packages.",
            hint="Run from the folder that holds it, or set PYTHONPATH.",
        )
    hint = f"pip install {missing.partition('.')[0]}" if missing else ""
    return ModelError(
        f"Importing {module} failed.", why=f"{type(cause).__name__}: {cause}", hint=hint
    )


def _call(name: str, factory: Any) -> Any:
    try:
        return factory()
    except (Exception, SystemExit) as cause:
        hint = ""
        if isinstance(cause, TypeError) and "argument" in str(cause):
            hint = "A factory is called without arguments: write a function that gives them."
        raise ModelError(
            f"{name}() failed.", why=f"{type(cause).__name__}: {cause}", hint=hint
        ) from cause


def _example_arrays(network: Any, examples: Any, names: Sequence[str]) -> dict[str, Any]:
    """Example inputs by name, from the first source that has them.

    Source: Lightning's `example_input_array`, transformers' `dummy_inputs`, timm's `default_cfg`
    and `pretrained_cfg` (`input_size` is (channels, height, width)).
    """
    import numpy as np

    for found in (
        examples,
        getattr(network, "example_input_array", None),
        getattr(network, "dummy_inputs", None),
    ):
        arrays = _by_name(found, names)
        if arrays:
            return arrays
    for holder in ("default_cfg", "pretrained_cfg"):
        config = getattr(network, holder, None)
        size = config.get("input_size") if isinstance(config, Mapping) else None
        if size:
            return {(names or ["x"])[0]: np.zeros((1, *size), np.float32)}
    size = getattr(network, "input_size", None)
    if isinstance(size, tuple | list) and len(size) >= 2 and all(isinstance(n, int) for n in size):
        return {(names or ["x"])[0]: np.zeros((1, *size), np.float32)}
    return {}


def _by_name(found: Any, names: Sequence[str]) -> dict[str, Any]:
    import torch

    if found is None:
        return {}
    if isinstance(found, torch.Tensor):
        found = (found,)
    if isinstance(found, Mapping):
        return {key: to_array(tensor) for key, tensor in named_tensors(found)}
    tensors = [tensor for _, tensor in named_tensors(found)]
    filled = [*names, *(f"input_{i}" for i in range(len(names), len(tensors)))]
    return {name: to_array(tensor) for name, tensor in zip(filled, tensors, strict=False)}


def _spec(name: str, array: Any) -> TensorSpec:
    shape: tuple[int | str, ...] = array.shape
    if array.ndim >= 2:  # a lone vector may be anything; with two axes the first is the batch
        shape = ("batch", *shape[1:])
    return TensorSpec(name, array.dtype.name, shape)


@contextmanager
def _working_folder_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    added = folder not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        # It stays: a factory may import more of its package when it is called.
        importlib.invalidate_caches()


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
