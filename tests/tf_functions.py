"""Graphs of TensorFlow functions that no Keras layer gives: branches, loops, transforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from convkit.artifact import TensorSpec
from convkit.tensorflow_import import import_tensorflow


@dataclass(frozen=True)
class Function:
    """A TensorFlow function and what it takes."""

    call: Callable[..., Any]
    inputs: tuple[TensorSpec, ...]


_ROWS = (TensorSpec("x", "float32", ("batch", 6)),)
_IMAGES = (TensorSpec("x", "float32", ("batch", 6, 7, 3)),)


def _cond(x: Any) -> dict[str, Any]:
    tf = import_tensorflow()
    warm = tf.cond(tf.reduce_sum(x) > 0, lambda: x * 2, lambda: tf.tanh(x))
    return {"y": warm}


def _while(x: Any) -> dict[str, Any]:
    tf = import_tensorflow()
    count, y = tf.while_loop(
        lambda i, v: tf.reduce_sum(tf.abs(v)) > 0.5,
        lambda i, v: (i + 1, v * 0.5),
        (tf.constant(0), x),
        maximum_iterations=20,
    )
    return {"count": count, "y": y}


def _misc(x: Any, index: Any) -> dict[str, Any]:
    tf = import_tensorflow()
    values, order = tf.math.top_k(x, 3)
    kept = tf.boolean_mask(tf.transpose(x), [True, False, True, True, False, True])
    gathered = tf.gather(x, index % 6, axis=1, batch_dims=1)
    scattered = tf.tensor_scatter_nd_update(tf.transpose(x), [[1], [4]], tf.transpose(x)[2:4])
    return {
        "values": values,
        "order": order,
        "kept": kept,
        "products": tf.einsum("bi,bj->bij", x, x),
        "gathered": gathered,
        "scattered": scattered,
        "one_hot": tf.one_hot(index % 5, 5),
    }


def _rfft(x: Any) -> dict[str, Any]:
    tf = import_tensorflow()
    return {"magnitude": tf.abs(tf.signal.rfft(x))}


def _resize(x: Any) -> dict[str, Any]:
    tf = import_tensorflow()
    return {
        "nearest": tf.image.resize(x, (13, 10), "nearest"),
        "bicubic": tf.image.resize(x, (13, 10), "bicubic"),
        "bilinear": tf.image.resize(x, (4, 11), "bilinear"),
    }


def _tensor_array(x: Any) -> dict[str, Any]:
    tf = import_tensorflow()
    rows = tf.transpose(x)

    def step(i: Any, total: Any, written: Any) -> Any:
        total = total * 0.5 + rows[i]
        return i + 1, total, written.write(i, total)

    written = tf.TensorArray(tf.float32, size=6)
    start = (tf.constant(0), tf.zeros_like(rows[0]), written)
    return {"y": tf.while_loop(lambda i, *_: i < 6, step, start)[2].stack()}


def _erfc(x: Any) -> dict[str, Any]:
    tf = import_tensorflow()
    return {"gelu": tf.nn.gelu(x), "erfc": tf.math.erfc(x), "log1p": tf.math.log1p(tf.abs(x))}


def _antialias(x: Any) -> dict[str, Any]:
    tf = import_tensorflow()
    return {
        "small": tf.image.resize(x, (3, 4), "bilinear", antialias=True),
        "lanczos": tf.image.resize(x, (9, 5), "lanczos3"),
        "area": tf.image.resize(x, (4, 4), "area"),
    }


FUNCTIONS: Mapping[str, Function] = {
    "cond": Function(_cond, _ROWS),
    "while_loop": Function(_while, _ROWS),
    "misc": Function(_misc, (*_ROWS, TensorSpec("index", "int32", ("batch", 4)))),
    "rfft": Function(_rfft, (TensorSpec("x", "float32", ("batch", 32)),)),
    "resize": Function(_resize, _IMAGES),
    "tensor_array": Function(_tensor_array, _ROWS),
    "erfc": Function(_erfc, _ROWS),
    "antialias": Function(_antialias, _IMAGES),
}
