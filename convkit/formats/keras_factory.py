"""Keras models that a factory builds: `package.module:factory`, with or without a weights file."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convkit.artifact import Artifact, TensorSpec
from convkit.errors import InputsUnknownError, ModelError
from convkit.factory import call_factory, find_factory, kind_of
from convkit.formats.keras_weights import fill
from convkit.tensorflow_import import import_keras
from convkit.tensorflow_keras import keras_inputs

_KERAS = ("keras", "tensorflow", "tf_keras")
_OTHERS = ("torch",)
_SEED = 0
_MAX_MODULES = 4


def writes_keras(path: Path, factory: str) -> bool:
    """Whether the factory in a source file uses Keras, as far as its imports tell.

    Where a module imports PyTorch too, the names inside the factory decide; where it imports
    neither, the module does that the factory comes from. Nothing is imported.
    """
    wanted = factory.partition(":")[2].partition(".")[0]
    for _ in range(_MAX_MODULES):
        try:
            tree = ast.parse(path.read_text())
        except (OSError, ValueError, SyntaxError):
            return False
        names = dict(_imports(tree))
        roots = set(names.values())
        if roots & {*_KERAS, *_OTHERS}:
            return _prefers_keras(tree, names, wanted)
        found = _origin(tree, wanted, path)
        if found is None:
            return False
        path, wanted = found
    return False


def _prefers_keras(tree: ast.Module, names: Mapping[str, str], wanted: str) -> bool:
    roots = set(names.values())
    if not roots & set(_KERAS) or not roots & set(_OTHERS):
        return bool(roots & set(_KERAS))
    body = next((node for node in tree.body if getattr(node, "name", None) == wanted), None)
    if body is None:
        return False
    inner = {**names, **dict(_imports(body))}
    used = [inner.get(n.id) for n in ast.walk(body) if isinstance(n, ast.Name)]
    return sum(root in _KERAS for root in used) > sum(root in _OTHERS for root in used)


def _origin(tree: ast.Module, wanted: str, path: Path) -> tuple[Path, str] | None:
    """Source file and name there of what a module imports under a name."""
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom):
            continue
        name = next((a.name for a in node.names if (a.asname or a.name) == wanted), None)
        if name is None:
            continue
        parts = (node.module or "").split(".") if node.module else []
        roots = (
            [path.parents[node.level - 1]] if node.level else [path.parent, *map(Path, sys.path)]
        )
        for root in roots:
            for file in (
                root.joinpath(*parts).with_suffix(".py"),
                root.joinpath(*parts, "__init__.py"),
            ):
                if file.is_file():
                    return file, name
    return None


def build(artifact: Artifact) -> tuple[Any, tuple[TensorSpec, ...]]:
    """The model of an artifact's factory with its weights, and what it takes.

    A factory gives a `keras.Model`, or (model, example input). A model that is not built yet is
    called once, on zeros of the shapes the user gave.

    Raises:
        ModelError, UsageError: the factory cannot be found or called, or gives no Keras model.
        InputsUnknownError: the model is not built, and nothing says what it takes.
        WeightsMismatchError: the weights do not fit.
    """
    keras = import_keras()
    name = artifact.opening.factory or ""
    factory = find_factory(name)
    keras.utils.set_random_seed(_SEED)
    with _names_from_one():
        made = call_factory(name, factory)
    model, examples = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, keras.Model):
        raise ModelError(
            f"{name} gave {kind_of(model)}, not a keras.Model.",
            hint="Let the factory return the model, or (model, example_input).",
        )
    specs = artifact.opening.inputs or keras_inputs(model) or _specs(examples)
    if not model.built:
        if not specs:
            raise InputsUnknownError(name)
        model(_zeros(specs))
    if artifact.path.suffix != ".py":
        fill(model, artifact.path)
    return model, specs


@contextmanager
def _names_from_one() -> Iterator[None]:
    """Has Keras number the names that it makes up as in a fresh process: each call then agrees."""
    from keras.src.backend.common import global_state

    key = "object_name_uids"
    before = global_state.get_global_attribute(key)
    global_state.set_global_attribute(key, defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute(key, before)


def _zeros(specs: tuple[TensorSpec, ...]) -> Any:
    import numpy as np

    arrays = [
        np.zeros([n if isinstance(n, int) else 2 for n in spec.shape], spec.dtype) for spec in specs
    ]
    return arrays[0] if len(arrays) == 1 else arrays


def _specs(examples: Any) -> tuple[TensorSpec, ...]:
    """Specs of example inputs: one array, or several; the first axis is the batch."""
    import numpy as np

    if examples is None:
        return ()
    several = isinstance(examples, list | tuple)
    arrays = [np.asarray(example) for example in (examples if several else [examples])]
    names = [f"input_{i}" for i in range(len(arrays))] if several else ["input"]
    return tuple(
        TensorSpec(name, array.dtype.name, ("batch", *array.shape[1:]) if array.ndim else ())
        for name, array in zip(names, arrays, strict=True)
    )


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Name bound by an import -> the package it comes from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.partition(".")[0]
                yield alias.asname or root, root
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, node.module.partition(".")[0]
