"""The saved signature: its keys are the ONNX names, whatever characters these hold.

TensorFlow wants names of arguments to be Python identifiers, so the graph is traced and saved with
names of our own, and the saved protobuf is given the ONNX names afterwards.

Source: saved_model.proto, saved_object_graph.proto and struct.proto of TensorFlow;
tensorflow/core/function/polymorphism/function_type.py, which sorts keyword arguments by name after
replacing what is no letter or digit, so our names must sort as these do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KEY = "serving_default"
_WRAPPER = "__inference_signature_wrapper"


def input_keys(names: Sequence[str]) -> dict[str, str]:
    """ONNX name -> the identifier it is traced under; both sort alike once loaded."""
    ranked = sorted(names, key=lambda name: (_argument(name), name))
    return {name: f"input_{rank:06d}" for rank, name in enumerate(ranked)}


def output_keys(names: Sequence[str]) -> dict[str, str]:
    """ONNX name -> the key it is traced under; TensorFlow flattens dictionaries by sorted key."""
    return {name: f"output_{rank:06d}" for rank, name in enumerate(sorted(names))}


def colliding(names: Sequence[str]) -> list[str]:
    """Names that TensorFlow's Python loader cannot tell apart, as it calls by keyword."""
    seen: dict[str, list[str]] = {}
    for name in names:
        seen.setdefault(_argument(name), []).append(name)
    return [name for same in seen.values() if len(same) > 1 for name in same]


def _argument(name: str) -> str:
    """What the loader makes of a name: letters and digits, an underscore for all else."""
    plain = "".join(letter if letter.isalnum() else "_" for letter in name)
    return plain if plain[:1].isalpha() else f"arg_{plain}"


def rename(folder: Path, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Gives the signature of a SavedModel its ONNX names.

    Args:
        folder: the SavedModel.
        inputs: key as traced -> ONNX name.
        outputs: likewise.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    graph = model.meta_graphs[0]
    definition = graph.signature_def[KEY]
    _rekey(definition.inputs, inputs)
    _rekey(definition.outputs, outputs)
    for node in graph.object_graph_def.nodes:
        if node.WhichOneof("kind") == "bare_concrete_function":
            _rename_arguments(node.bare_concrete_function, inputs)
    for name, function in graph.object_graph_def.concrete_functions.items():
        if name.startswith(_WRAPPER):
            arguments = function.canonicalized_input_signature.tuple_value.values[1]
            _rekey(arguments.dict_value.fields, inputs)
            _rekey(function.output_signature.dict_value.fields, outputs)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _rename_arguments(function: Any, inputs: Mapping[str, str]) -> None:
    if not function.concrete_function_name.startswith(_WRAPPER):
        return
    function.argument_keywords[:] = [inputs[key] for key in function.argument_keywords]
    for part in function.function_spec.fullargspec.named_tuple_value.values:
        if part.key == "kwonlyargs":
            for argument in part.value.list_value.values:
                argument.string_value = inputs[argument.string_value]


def _rekey(fields: Any, names: Mapping[str, str]) -> None:
    """Renames the keys of a protobuf map."""
    entries = {key: type(fields[key]).FromString(fields[key].SerializeToString()) for key in fields}
    for key in entries:
        del fields[key]
    for key, entry in entries.items():
        fields[names.get(key, key)].CopyFrom(entry)


def write_order(
    folder: Path, inputs: Sequence[str], outputs: Sequence[str], channels_last: Sequence[str] = ()
) -> None:
    """Keeps the order of inputs and outputs, which a signature does not have.

    Also which of them have their channels at the end although the source has them second.

    Source: `assets.extra` is SavedModel's place for files of others (saved_model/README.md).
    """
    document = {"inputs": [*inputs], "outputs": [*outputs]}
    if channels_last:
        document["channels_last"] = [*channels_last]
    write_extra(folder, "convkit_signature.json", document)


def write_extra(folder: Path, name: str, document: Any) -> None:
    """Writes a JSON document beside the model's own assets."""
    extra = folder / "assets.extra"
    extra.mkdir(exist_ok=True)
    (extra / name).write_text(json.dumps(document, indent=1) + "\n")
