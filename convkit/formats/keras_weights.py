"""Fills a Keras model from the weights in a file, layer by layer under their names."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convkit.errors import ModelError, WeightsMismatchError
from convkit.formats.keras_file import WEIGHTS, hdf5, is_archive

_OLD_GROUP = "model_weights"


def fill(model: Any, path: Path) -> None:
    """Puts the weights of a `.keras` archive or an HDF5 file of any era into a built model.

    Raises:
        ModelError: the file is damaged, or holds no weights.
        WeightsMismatchError: they do not fit.
    """
    if is_archive(path):
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
            if WEIGHTS not in archive.namelist():
                raise ModelError(f"{path} holds no {WEIGHTS}.")
            target = Path(folder, WEIGHTS)
            with archive.open(WEIGHTS) as source, target.open("wb") as stream:
                shutil.copyfileobj(source, stream)
            _fill_new(model, target, path)
        return
    with hdf5(path) as file:
        old = file.get(_OLD_GROUP, file)
        if "layer_names" in old.attrs:
            fill_old(model, old, path)
            return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, WEIGHTS)  # Keras goes by the ending of the name
        target.symlink_to(path.absolute())
        _fill_new(model, target, path)


def fill_old(model: Any, group: Any, path: Path) -> None:
    """Puts the weights of the older HDF5 layout into a model.

    That layout lists layers by name, each with an ordered list of arrays. Keras matches them by
    order alone; two branches of a network may come in another order, so names go first here.

    Raises:
        WeightsMismatchError: they do not fit.
    """
    stored = {name: arrays for name, arrays in _layers(group) if arrays}
    owners = {layer.name: layer for layer in model.layers if layer.weights}
    if set(stored) != set(owners):
        if len(stored) != len(owners):
            raise WeightsMismatchError(
                str(path),
                missing=sorted(set(owners) - set(stored)),
                unexpected=sorted(set(stored) - set(owners)),
                hint="Give the factory that built this very network.",
            )
        owners = dict(zip(stored, owners.values(), strict=True))
    for name, arrays in stored.items():
        variables = list(_matched(owners[name], list(arrays)))
        _assign(path, name, variables, list(arrays.values()))
    for layer in model._flatten_layers():
        if hasattr(layer, "finalize_state"):  # Normalization computes with copies of its weights
            layer.finalize_state()


def _layers(group: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Layer name -> weight name -> array, in the file's order."""
    for name in _names(group.attrs, "layer_names"):
        layer = group[name]
        yield name, {key: layer[key][()] for key in _names(layer.attrs, "weight_names")}


def _names(attributes: Any, key: str) -> list[str]:
    """A list of names; long ones are split over several attributes (`layer_names0` ...)."""
    parts = [key] if key in attributes else []
    while not parts or parts[-1] != key:
        if (following := f"{key}{len(parts)}") not in attributes:
            break
        parts.append(following)
    return [
        name.decode() if isinstance(name, bytes) else str(name)
        for part in parts
        for name in attributes[part]
    ]


def _matched(layer: Any, names: list[str]) -> list[Any]:
    """The variables of a layer in the order of stored names.

    A nested model stores the weights of all its layers in one list; each name tells its layer.
    """
    ordered = [*layer.trainable_weights, *layer.non_trainable_weights]
    inner = {part.name: part for part in _inner_layers(layer)}
    if not inner:
        return ordered
    waiting: dict[str, list[Any]] = {
        name: [*part.trainable_weights, *part.non_trainable_weights] for name, part in inner.items()
    }
    found = []
    for name in names:
        owner = next((part for part in reversed(name.split("/")[:-1]) if waiting.get(part)), None)
        if owner is None:
            return ordered
        found.append(waiting[owner].pop(0))
    return found


def _inner_layers(layer: Any) -> Iterator[Any]:
    for part in getattr(layer, "layers", ()):
        if getattr(part, "layers", ()):
            yield from _inner_layers(part)
        elif part.weights:
            yield part


def _assign(path: Path, layer: str, variables: list[Any], arrays: list[Any]) -> None:
    variables = [v for v in variables if "seed_generator" not in v.path]
    wrong = [
        f"{layer}: {tuple(array.shape)} in the file, {tuple(variable.shape)} in the network"
        for variable, array in zip(variables, arrays, strict=False)
        if tuple(variable.shape) != tuple(array.shape)
    ]
    if wrong or len(variables) != len(arrays):
        raise WeightsMismatchError(
            str(path),
            shapes=wrong or [f"{layer}: {len(arrays)} arrays for {len(variables)} variables"],
            hint="Give the factory that built this very network.",
        )
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def _fill_new(model: Any, weights: Path, path: Path) -> None:
    try:
        model.load_weights(str(weights))
    except (ValueError, KeyError, TypeError) as cause:
        raise WeightsMismatchError(
            str(path),
            shapes=[line.strip()[:200] for line in str(cause).splitlines() if line.strip()][:3],
            hint="Give the factory that built this very network.",
        ) from cause
    except OSError as cause:
        raise ModelError(f"{path} is damaged or truncated.", why=str(cause)) from cause
