"""Products of matrices."""

from __future__ import annotations

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import (
    NARROW_INTS,
    computed_in,
    rank_of,
)

_WIDE = {
    **{dtype: tf.int32 for dtype in NARROW_INTS},
    tf.uint32: tf.int64,
    tf.uint64: tf.int64,
}
_DETERMINANT = {tf.float16: tf.float32, tf.bfloat16: tf.float32}


def mat_mul(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """ONNX MatMul, NumPy's rules: vectors lose their axis, the leading axes broadcast."""
    left, right = rank_of(a), rank_of(b)
    if left >= 2 and right >= 2:
        return computed_in(_WIDE, tf.matmul, a, b)
    if left == 1 and right == 1:
        return tf.reduce_sum(a * b)
    if left == 1:
        return tf.squeeze(mat_mul(a[None, :], b), -2)
    return tf.squeeze(mat_mul(a, b[:, None]), -1)


def gemm(
    a: tf.Tensor,
    b: tf.Tensor,
    c: tf.Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> tf.Tensor:
    """ONNX Gemm: alpha * a @ b + beta * c."""
    if a.dtype in _WIDE:
        wide = _WIDE[a.dtype]
        added = None if c is None else tf.cast(c, wide)
        result = gemm(
            tf.cast(a, wide),
            tf.cast(b, wide),
            added,
            alpha=alpha,
            beta=beta,
            transA=transA,
            transB=transB,
        )
        return tf.cast(result, a.dtype)
    y = _scaled(tf.matmul(a, b, transpose_a=bool(transA), transpose_b=bool(transB)), alpha)
    if c is None or beta == 0:
        return y
    c = _scaled(c, beta)
    width = y.shape[-1]
    if width is not None and c.shape.as_list() in ([width], [1, width]):
        # TensorFlow's own rewriting fails on the sum of a product and a row.
        return tf.nn.bias_add(y, c if c.shape.rank == 1 else tf.reshape(c, [width]))
    return y + c


def _scaled(x: tf.Tensor, factor: float) -> tf.Tensor:
    if factor == 1:
        return x
    if x.dtype.is_integer:
        return tf.cast(tf.cast(x, tf.float64) * factor, x.dtype)
    return x * tf.constant(factor, x.dtype)


def einsum(*inputs: tf.Tensor, equation: str) -> tf.Tensor:
    """ONNX Einsum; the letters are case sensitive and an absent right side is NumPy's."""
    equation = equation.replace(" ", "")
    return computed_in(_WIDE, lambda *tensors: tf.einsum(equation, *tensors), *inputs)


def det(x: tf.Tensor) -> tf.Tensor:
    """ONNX Det of the innermost matrices."""
    return computed_in(_DETERMINANT, tf.linalg.det, x)


OPERATORS = {
    "Det": det,
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": mat_mul,
}
