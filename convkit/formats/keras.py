"""Keras models: `.keras` archives, HDF5 files of every era, factories.

The network of a file that Keras 2 or 1 wrote is rebuilt in the words of Keras 3. A file of weights
can be described, but only a factory makes a network of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convkit.artifact import Artifact, Description, Opening, Precision
from convkit.formats import keras_config
from convkit.formats.keras_factory import writes_keras
from convkit.formats.keras_file import KerasFile, is_archive, is_hdf5, read_keras
from convkit.step import Format, Package, Runner


def _matches(path: Path, opening: Opening) -> bool:
    if opening.factory and path.suffix == ".py":
        return writes_keras(path, opening.factory)
    return path.is_file() and (is_hdf5(path) or is_archive(path))


def _describe(path: Path, opening: Opening) -> Description:
    """What the file's configuration and the shapes of its weights tell; Keras is not loaded.

    Raises:
        ModelError: missing, damaged, or no Keras file.
        UnsafeError: it carries code, and is not trusted.
    """
    if opening.factory and path.suffix == ".py":
        return Description(Precision.FP32, inputs=opening.inputs)
    file = read_keras(path)
    if opening.factory:
        return Description(
            Precision.of_weights(file.elements),
            inputs=opening.inputs,
            parameter_count=sum(file.elements.values()) or None,
        )
    if not opening.trust:
        keras_config.check_no_code(path, file.config)
    return Description(
        precision=Precision.of_weights(file.elements),
        inputs=opening.inputs or keras_config.inputs_of(file.config),
        outputs=keras_config.outputs_of(file.config),
        parameter_count=sum(file.elements.values()) or None,
        operators=keras_config.layer_counts(file.config),
        details=_details(file),
    )


def _details(file: KerasFile) -> dict[str, Any]:
    kinds = {"archive": "archive", "full": "HDF5", "weights": "HDF5, weights only"}
    details: dict[str, Any] = {"kind": kinds[file.kind], "keras_version": file.version or "1"}
    if file.config:
        details["model"] = str(file.config.get("class_name"))
        details["name"] = keras_config.name_of(file.config)
    custom = [name for name, _ in keras_config.custom_classes(file.config)]
    optional = {"custom_classes": custom, "weights_by_dtype": dict(file.elements)}
    return details | {name: value for name, value in optional.items() if value}


def _load(artifact: Artifact) -> Any:
    """The `keras.Model`, on TensorFlow, its weights filled in.

    Raises:
        ModelError, UnsafeError: see `_describe`; or a class of its is not there.
        UnsupportedError: it uses what Keras 3 no longer has.
        WeightsMismatchError: the weights do not fit the network of a factory.
    """
    if artifact.opening.factory:
        from convkit.formats.keras_factory import build

        return build(artifact)[0]
    from convkit.formats.keras_loading import load_keras

    return load_keras(artifact.path, trust=artifact.opening.trust)


def _open(artifact: Artifact) -> Runner:
    """A runner on TensorFlow's CPU kernels.

    Raises:
        InputsUnknownError: nothing says what the model takes.
        ModelError, UnsafeError: see `_load`.
    """
    from convkit.formats.keras_runner import KerasRunner

    if artifact.opening.factory:
        from convkit.formats.keras_factory import build

        return KerasRunner(*build(artifact))
    return KerasRunner(_load(artifact), artifact.opening.inputs or _unsaid(artifact))


def _unsaid(artifact: Artifact) -> Any:
    """What a subclassed model takes: it does not say itself, its file does."""
    config = read_keras(artifact.path).config
    known = keras_config.is_functional(config) or keras_config.is_sequential(config)
    return () if known else keras_config.inputs_of(config)


keras = Format(
    name="keras",
    suffixes=(".keras", ".h5", ".hdf5"),
    needs=(Package("tensorflow", "savedmodel"), Package("keras", "savedmodel")),
    matches=_matches,
    describe=_describe,
    open=_open,
    load=_load,
)
