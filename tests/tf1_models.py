"""A regression of TensorFlow 1: placeholders and variables, frozen and as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from convkit.tensorflow_import import import_tensorflow

_SEED = 11


def tf1_frozen(folder: Path) -> Path:
    """A regression with placeholders, one of them unused, frozen to a GraphDef."""
    tf = import_tensorflow()
    path = folder / "regression.pb"
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        prediction = _regression()
        session.run(tf.compat.v1.global_variables_initializer())
        frozen = tf.compat.v1.graph_util.convert_variables_to_constants(
            session, graph.as_graph_def(), [prediction.op.name]
        )
    path.write_bytes(frozen.SerializeToString())
    return path


def tf1_checkpoint(folder: Path) -> Path:
    """The same as a checkpoint; the path of its meta graph."""
    tf = import_tensorflow()
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        _regression()
        session.run(tf.compat.v1.global_variables_initializer())
        prefix = tf.compat.v1.train.Saver().save(session, str(folder / "model.ckpt"))
    return Path(f"{prefix}.meta")


def tf1_reference(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the regression computes, in numpy."""
    slope, offset = _regression_weights()
    return np.tanh(x @ slope + offset)


def _regression() -> Any:
    """The graph: `x` (N, 2) and a target that only training needs; `prediction` (N, 1)."""
    tf = import_tensorflow()
    v1 = tf.compat.v1
    slope, offset = _regression_weights()
    x = v1.placeholder(tf.float32, [None, 2], name="x")
    target = v1.placeholder(tf.float32, [None, 1], name="target")
    with v1.variable_scope("regression", use_resource=False):
        weight = v1.get_variable("weight", initializer=slope)
        bias = v1.get_variable("bias", initializer=offset)
    prediction = tf.tanh(tf.matmul(x, weight) + bias, name="prediction")
    tf.reduce_mean(tf.square(prediction - target), name="loss")
    return prediction


def _regression_weights() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(_SEED)
    slope = generator.standard_normal((2, 1)).astype(np.float32)
    return slope, generator.standard_normal(1).astype(np.float32)
