"""TensorFlow's image operators that tf2onnx leaves out, or translates wrongly.

Resizing is a product with a matrix of weights per axis; where it is not one that ONNX's Resize
knows, the matrices are built, from sizes known or not.
Source: TensorFlow, core/kernels/image/
{scale_and_translate_op,sampling_kernels,resize_area_op,resize_bicubic_op}.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

Kernel = Callable[[tf.Tensor], tf.Tensor]


def scale_and_translate(
    images: tf.Tensor,
    size: tf.Tensor,
    scale: tf.Tensor,
    translation: tf.Tensor,
    *,
    kernel_type: str = "lanczos3",
    antialias: bool = True,
) -> tf.Tensor:
    """Resampling with a kernel, widened where the image shrinks (`antialias`)."""
    kernel, radius = _KERNELS[kernel_type]
    weights = [
        _kernel_weights(
            _side(images, axis + 1), size[axis], scale[axis], translation[axis],
            kernel, radius, bool(antialias),
        )
        for axis in range(2)
    ]  # fmt: skip
    return _resample(tf.cast(images, tf.float32), *weights)


def resize_area(images: tf.Tensor, size: tf.Tensor, *, align_corners: bool = False) -> Any:
    """Resampling by the mean over the area that each new pixel covers."""
    weights = [
        _area_weights(_side(images, axis + 1), size[axis], bool(align_corners)) for axis in range(2)
    ]
    return _resample(tf.cast(images, tf.float32), *weights)


def resize_bicubic(
    images: tf.Tensor,
    size: tf.Tensor,
    *,
    align_corners: bool = False,
    half_pixel_centers: bool = False,
) -> tf.Tensor:
    """Resampling with four taps, from a table of 1024 steps as TensorFlow does.

    ONNX's Resize has the same two kernels without the table, which moves results by up to 1e-3.
    """
    weights = [
        _cubic_weights(
            _side(images, axis + 1), size[axis], bool(align_corners), bool(half_pixel_centers)
        )
        for axis in range(2)
    ]
    return _resample(tf.cast(images, tf.float32), *weights)


def rgb_to_hsv(images: tf.Tensor) -> tf.Tensor:
    """Hue, saturation, value of red, green, blue in [0, 1]. Source: Smith, SIGGRAPH 1978."""
    red, green, blue = (images[..., channel] for channel in range(3))
    value = tf.reduce_max(images, axis=-1)
    spread = value - tf.reduce_min(images, axis=-1)
    some = tf.where(spread > 0, spread, tf.ones_like(spread))
    saturation = tf.where(
        value > 0, spread / tf.where(value > 0, value, tf.ones_like(value)), tf.zeros_like(value)
    )
    sixth = tf.constant(1 / 6, images.dtype) / some
    hue = tf.where(
        tf.equal(red, value),
        sixth * (green - blue),
        tf.where(
            tf.equal(green, value), sixth * (blue - red) + 2 / 6, sixth * (red - green) + 4 / 6
        ),
    )
    hue = tf.where(spread > 0, hue, tf.zeros_like(hue))
    return tf.stack([tf.where(hue < 0, hue + 1, hue), saturation, value], axis=-1)


def hsv_to_rgb(images: tf.Tensor) -> tf.Tensor:
    """Red, green, blue of hue, saturation, value in [0, 1]. Source: Smith, SIGGRAPH 1978."""
    hue, saturation, value = (images[..., channel] for channel in range(3))
    turned = hue * 6
    red = tf.clip_by_value(tf.abs(turned - 3) - 1, 0.0, 1.0)
    green = tf.clip_by_value(2 - tf.abs(turned - 2), 0.0, 1.0)
    blue = tf.clip_by_value(2 - tf.abs(turned - 4), 0.0, 1.0)
    pure = tf.stack([red, green, blue], axis=-1)
    return ((pure - 1) * saturation[..., tf.newaxis] + 1) * value[..., tf.newaxis]


def extract_image_patches(
    images: tf.Tensor,
    *,
    ksizes: Any = (1, 1, 1, 1),
    strides: Any = (1, 1, 1, 1),
    rates: Any = (1, 1, 1, 1),
    padding: str = "VALID",
) -> Any:
    """Sliding windows: a convolution with a kernel that picks one number each."""
    channels = images.shape[3]
    if channels is None or not images.dtype.is_floating:
        return NotImplemented
    height, width = ksizes[1], ksizes[2]
    count = height * width * channels
    picks = np.eye(count, dtype=images.dtype.as_numpy_dtype)
    kernel = picks.reshape(height, width, channels, count)
    return tf.nn.conv2d(images, kernel, strides, padding, dilations=rates)


def _resample(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Weights (new, old) for height and width, applied to (batch, height, width, channels)."""
    planes = tf.transpose(images, [0, 3, 1, 2])  # (batch, channels, height, width)
    planes = tf.matmul(rows, planes)
    planes = tf.matmul(planes, tf.transpose(columns))
    return tf.transpose(planes, [0, 2, 3, 1])  # (batch, height, width, channels)


def _side(images: tf.Tensor, axis: int) -> tf.Tensor:
    size = images.shape[axis]
    return tf.shape(images)[axis] if size is None else tf.constant(size)


def _kernel_weights(
    old: tf.Tensor,
    new: tf.Tensor,
    scale: tf.Tensor,
    translation: tf.Tensor,
    kernel: Kernel,
    radius: float,
    antialias: bool,
) -> tf.Tensor:
    inverse = 1 / scale
    stretch = tf.maximum(inverse, 1.0) if antialias else tf.ones_like(inverse)
    centres = (_steps(new) + 0.5) * inverse - translation * inverse
    pixels = _steps(old) + 0.5
    first = tf.math.ceil(centres - stretch * radius - 0.5)
    last = tf.floor(centres + stretch * radius - 0.5)
    offset = pixels[tf.newaxis, :] - centres[:, tf.newaxis]
    place = pixels[tf.newaxis, :] - 0.5
    is_near = (place >= first[:, tf.newaxis]) & (place <= last[:, tf.newaxis])
    weights = tf.where(is_near, kernel(tf.abs(offset / stretch)), tf.zeros_like(offset))
    total = tf.reduce_sum(weights, axis=1, keepdims=True)
    limit = 1000 * np.finfo(np.float32).tiny
    is_some = tf.abs(total) >= limit
    weights = tf.where(is_some, weights / tf.where(is_some, total, tf.ones_like(total)), weights)
    is_inside = (centres >= 0) & (centres <= tf.cast(old, tf.float32))
    return tf.where(is_inside[:, tf.newaxis], weights, tf.zeros_like(weights))


def _area_weights(old: tf.Tensor, new: tf.Tensor, align_corners: bool) -> tf.Tensor:
    before, after = tf.cast(old, tf.float32), tf.cast(new, tf.float32)
    scale = before / after
    if align_corners:
        scale = tf.where(after > 1, (before - 1) / tf.maximum(after - 1, 1), scale)
    begin = _steps(new)[:, tf.newaxis] * scale
    end = (_steps(new)[:, tf.newaxis] + 1) * scale
    pixels = _steps(old)[tf.newaxis, :]
    covered = tf.minimum(end, pixels + 1) - tf.maximum(begin, pixels)
    # What lies beyond the last pixel is taken from that pixel.
    is_last = tf.equal(pixels, before - 1)
    beyond = tf.maximum(end - tf.maximum(begin, before), 0)
    return (tf.maximum(covered, 0) + tf.where(is_last, beyond, tf.zeros_like(beyond))) / scale


def _cubic_weights(
    old: tf.Tensor, new: tf.Tensor, align_corners: bool, half_pixel_centers: bool
) -> tf.Tensor:
    before, after = tf.cast(old, tf.float32), tf.cast(new, tf.float32)
    scale = before / after
    if align_corners:
        scale = tf.where(after > 1, (before - 1) / tf.maximum(after - 1, 1), scale)
    shift = 0.5 if half_pixel_centers else 0.0
    place = (_steps(new) + shift) * scale - shift
    left = tf.floor(place)
    offset = tf.round((place - left) * _TABLE_STEPS) / _TABLE_STEPS
    # Keys' kernel leaves pixels beyond the edge out; the other one repeats the edge.
    coefficient = -0.5 if half_pixel_centers else -0.75
    pixels = _steps(old)[tf.newaxis, :]
    weights = tf.zeros([], tf.float32)
    for tap in (-1, 0, 1, 2):
        weight = _cubic(tf.abs(tap - offset), coefficient)
        position = left + tap
        if not half_pixel_centers:
            position = tf.clip_by_value(position, 0.0, before - 1)
        is_there = tf.equal(pixels, position[:, tf.newaxis])
        weights += tf.where(is_there, weight[:, tf.newaxis], tf.zeros([], tf.float32))
    if half_pixel_centers:
        weights /= tf.reduce_sum(weights, axis=1, keepdims=True)
    return weights


def _cubic(x: tf.Tensor, a: float) -> tf.Tensor:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return tf.where(x <= 1, near, far)


def _steps(count: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.range(count), tf.float32)


def _box(x: tf.Tensor) -> tf.Tensor:
    return tf.where(x < 0.5, tf.ones_like(x), tf.where(tf.equal(x, 0.5), 0.5 + 0 * x, 0 * x))


def _triangle(x: tf.Tensor) -> tf.Tensor:
    return tf.maximum(1 - x, 0)


def _gaussian(x: tf.Tensor) -> tf.Tensor:
    sigma = 0.5
    return tf.where(x >= 3 * sigma, tf.zeros_like(x), tf.exp(-x * x / (2 * sigma * sigma)))


def _lanczos(radius: float) -> Kernel:
    def weight(x: tf.Tensor) -> tf.Tensor:
        safe = tf.where(x < 1e-3, tf.ones_like(x), x) * math.pi
        wave = radius * tf.sin(safe) * tf.sin(safe / radius) / (safe * safe)
        inside = tf.where(x < 1e-3, tf.ones_like(x), wave)
        return tf.where(x > radius, tf.zeros_like(x), inside)

    return weight


def _keys_cubic(x: tf.Tensor) -> tf.Tensor:
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return tf.where(x < 1, near, tf.where(x < 2, far, tf.zeros_like(x)))


def _mitchell_cubic(x: tf.Tensor) -> tf.Tensor:
    near = ((7 / 6 * x - 2) * x) * x + 8 / 9
    far = ((-7 / 18 * x + 2) * x - 10 / 3) * x + 16 / 9
    return tf.where(x < 1, near, tf.where(x < 2, far, tf.zeros_like(x)))


_KERNELS: dict[str, tuple[Kernel, float]] = {
    "lanczos1": (_lanczos(1.0), 1.0),
    "lanczos3": (_lanczos(3.0), 3.0),
    "lanczos5": (_lanczos(5.0), 5.0),
    "gaussian": (_gaussian, 1.5),
    "box": (_box, 1.0),
    "triangle": (_triangle, 1.0),
    "keyscubic": (_keys_cubic, 2.0),
    "mitchellcubic": (_mitchell_cubic, 2.0),
}

_TABLE_STEPS = 1024
"""Source: TensorFlow, core/kernels/image/resize_bicubic_op.cc."""

EXPANSIONS: Mapping[str, Callable[..., Any]] = {
    "ExtractImagePatches": extract_image_patches,
    "HSVToRGB": hsv_to_rgb,
    "RGBToHSV": rgb_to_hsv,
    "ResizeArea": resize_area,
    "ResizeBicubic": resize_bicubic,
    "ScaleAndTranslate": scale_and_translate,
}
