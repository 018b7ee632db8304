"""Rebuilds files that Keras 2 wrote: its configurations by hand, its layouts of weights.

Source: files written by Keras 2.0.5, 2.2 and 2.15 (tf_keras), whose structure these follow.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

Config = dict[str, Any]


def layer(kind: str, name: str, *given: Any, **config: Any) -> Config:
    """A layer of a graph; `given` are names of layers, or (name, keywords), of one call."""
    call = [[g, 0, 0, {}] if isinstance(g, str) else [g[0], 0, 0, g[1]] for g in given]
    return {
        "module": "keras.layers",
        "class_name": kind,
        "config": {"name": name, "trainable": True, "dtype": "float32", **config},
        "registered_name": None,
        "build_config": {"input_shape": [None, 1]},
        "name": name,
        "inbound_nodes": [call] if call else [],
    }


def function(name: str, written: str, call: list[Any]) -> Config:
    """A call of TensorFlow between layers."""
    made = layer("TFOpLambda", name, function=written)
    return {**made, "module": "keras.src.layers.core.tf_op_layer", "inbound_nodes": [call]}


def entry(name: str, shape: list[int | None]) -> Config:
    """An input layer."""
    return layer("InputLayer", name, batch_input_shape=[None, *shape], sparse=False, ragged=False)


def graph(layers: list[Config], inputs: list[str], outputs: list[str]) -> Config:
    """A functional model."""
    ends = {"input_layers": inputs, "output_layers": outputs}
    return {
        "module": "keras.src.engine.functional",
        "class_name": "Functional",
        "config": {
            "name": "model",
            "trainable": True,
            "layers": layers,
            **{side: [[name, 0, 0] for name in names] for side, names in ends.items()},
        },
        "registered_name": "Functional",
        "build_config": {"input_shape": [None, 1]},
        "compile_config": {"optimizer": "adam", "loss": "mse"},
    }


def chain(layers: list[Config]) -> Config:
    """A sequential model."""
    return {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": "chain", "layers": [without_place(node) for node in layers]},
        "registered_name": None,
    }


def without_place(node: Config) -> Config:
    """A layer as a chain holds it."""
    return {key: value for key, value in node.items() if key not in ("inbound_nodes", "name")}


def bare(node: Any) -> Any:
    """A configuration as versions before 2.12 wrote it: without modules and registered names."""
    if isinstance(node, dict):
        gone = ("module", "registered_name", "build_config", "compile_config")
        return {key: bare(value) for key, value in node.items() if key not in gone}
    return [bare(value) for value in node] if isinstance(node, list) else node


def write_archive(path: Path, network: Any, config: Config) -> Path:
    """A `.keras` file of Keras 2.15 with the weights of a network of Keras 3."""
    own = path.with_name(f"own_{path.name}")
    network.save(own)
    with zipfile.ZipFile(own) as source, zipfile.ZipFile(path, "w") as target:
        target.writestr("metadata.json", json.dumps({"keras_version": "2.15.0"}))
        target.writestr("config.json", json.dumps(config))
        target.writestr("model.weights.h5", source.read("model.weights.h5"))
    own.unlink()
    return path


def write_hdf5(
    path: Path, network: Any, config: Config | None, names: list[str] | None = None
) -> Path:
    """An HDF5 file of Keras 2 with the weights of a network; without configuration weights only.

    Args:
        path: where it goes.
        network: of Keras 3.
        config: in the words of Keras 2.
        names: order in which the layers are listed; None is the network's.
    """
    import h5py

    layers = {part.name: part for part in network.layers}
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights") if config else file
        if config:
            file.attrs["model_config"] = json.dumps(bare(config)).encode()
            file.attrs["keras_version"] = b"2.2.4"
        group.attrs["keras_version"] = b"2.2.4"
        group.attrs["backend"] = b"tensorflow"
        group.attrs["layer_names"] = [name.encode() for name in names or layers]
        for name in names or layers:
            _write_layer(group.create_group(name), name, layers[name])
    return path


def _write_layer(group: Any, name: str, part: Any) -> None:
    stored = []
    for side in (part.trainable_weights, part.non_trainable_weights):
        for variable in side:
            owner = variable.path.split("/")[-2]
            key = f"{owner if owner != name else name}/{variable.name}:0"
            group.create_dataset(key, data=variable.numpy())
            stored.append(key.encode())
    group.attrs["weight_names"] = stored
