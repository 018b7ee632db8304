"""Keras to SavedModel: the model in inference mode, with its names, order and variables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from convkit.artifact import Artifact, TensorSpec
from convkit.errors import UnsupportedError
from convkit.step import Package, Work, converter
from convkit.tensorflow_signature import DEFAULT_SIGNATURE, ORDER_FILE


@converter(
    "keras",
    "savedmodel",
    carries=("fp32", "fp16", "bf16"),
    loses="training state, layers and their configuration",
    needs=(Package("tensorflow", "savedmodel"), Package("keras", "savedmodel")),
)
def keras_to_savedmodel(source: Artifact, out: Path, work: Work) -> None:
    """Exports the call with the names of the input and output layers; weights stay variables."""
    from convkit.tensorflow_import import import_keras
    from convkit.tensorflow_keras import keras_function

    model = work.load(source)
    work.progress("tracing the network", 0, None)
    function, inputs, outputs = keras_function(model, source.opening.inputs)
    names = [spec.name for spec in outputs]

    def serve(*tensors: Any) -> dict[str, Any]:
        results = function(*tensors)
        return dict(zip(names, results, strict=True))

    archive = import_keras().export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", serve, input_signature=[_signature(spec) for spec in inputs])
    work.progress("writing", 0, None)
    archive.write_out(str(out), verbose=False)
    _restore_input_names(out, inputs)
    _write_order(out, [spec.name for spec in inputs], names)


def _signature(spec: TensorSpec) -> Any:
    import tensorflow as tf

    shape = [size if isinstance(size, int) else None for size in spec.shape]
    return tf.TensorSpec(shape, spec.dtype, name=spec.name)


def _restore_input_names(folder: Path, inputs: tuple[TensorSpec, ...]) -> None:
    """Gives inputs of the signature the names TensorFlow changed to be names of Python."""
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / "saved_model.pb"
    document = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    taken = document.meta_graphs[0].signature_def[DEFAULT_SIGNATURE].inputs
    if set(taken) == {spec.name for spec in inputs}:
        return
    for spec in inputs:
        if spec.name in taken:
            continue
        changed = [key for key in taken if _as_python(key) == _as_python(spec.name)]
        if len(changed) != 1:
            raise UnsupportedError(
                f"TensorFlow does not take '{spec.name}' as the name of an input.",
                why=f"The signature has {', '.join(taken)}.",
            )
        taken[spec.name].CopyFrom(taken[changed[0]])
        del taken[changed[0]]
    path.write_bytes(document.SerializeToString())


def _as_python(name: str) -> str:
    """A name with everything that is no letter or digit made the same."""
    return "".join(letter if letter.isalnum() else "_" for letter in name).strip("_").lower()


def _write_order(folder: Path, inputs: list[str], outputs: list[str]) -> None:
    """Keeps the order, which a SavedModel sorts by name."""
    path = folder / ORDER_FILE
    path.parent.mkdir(exist_ok=True)
    order = {DEFAULT_SIGNATURE: {"inputs": inputs, "outputs": outputs}}
    path.write_text(json.dumps({"signatures": order}, indent=1) + "\n")
