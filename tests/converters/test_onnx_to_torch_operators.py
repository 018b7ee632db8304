from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.torch_import import numbers, onnx, torch
from tests.torch_operator_checks import agrees

F = np.float32
RNG = np.random.default_rng(0)


def shape(*sizes: int) -> np.ndarray[Any, Any]:
    return np.array(sizes, np.int64)


TRANSFORMATIONS = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
NEAREST = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize("rounding", NEAREST)
def test_nearest_resize_agrees(transformation: str, rounding: str, tmp_path: Path) -> None:
    for scales in ([1, 1, 2, 3], [1, 1, 0.6, 1.7], [1, 1, 1, 0.4]):
        inputs = [numbers(1, 2, 5, 7), None, np.array(scales, F)]
        agrees(
            tmp_path,
            "Resize",
            inputs,
            [F],
            weights=[2],
            mode="nearest",
            nearest_mode=rounding,
            coordinate_transformation_mode=transformation,
        )


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_smooth_resize_agrees(transformation: str, mode: str, tmp_path: Path) -> None:
    for sizes, extra in itertools.product(
        (shape(1, 2, 10, 14), shape(1, 2, 3, 9), shape(1, 2, 5, 3)),
        ({}, {"exclude_outside": 1} if mode == "cubic" else {}, {"antialias": 1}),
    ):
        if "antialias" in extra and transformation not in ("half_pixel", "asymmetric"):
            continue
        agrees(
            tmp_path,
            "Resize",
            [numbers(1, 2, 5, 7), None, None, sizes],
            [F],
            weights=[3],
            mode=mode,
            coordinate_transformation_mode=transformation,
            **extra,
        )


WINDOWS = [
    {},
    {"strides": [2, 2]},
    {"strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"strides": [2, 1], "pads": [0, 1, 1, 2]},
    {"strides": [2, 2], "ceil_mode": 1},
    {"strides": [2, 3], "pads": [1, 0, 2, 1], "ceil_mode": 1},
    {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"strides": [3, 2], "auto_pad": "VALID"},
    {"dilations": [2, 1]},
    {"dilations": [1, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_pooling_agrees(window: dict[str, Any], tmp_path: Path) -> None:
    x = [numbers(2, 3, 9, 8)]
    agrees(tmp_path, "MaxPool", x, [F, np.int64], kernel_shape=[3, 3], **window)
    agrees(tmp_path, "MaxPool", x, [F], kernel_shape=[3, 4], **window)
    agrees(tmp_path, "LpPool", x, [F], kernel_shape=[3, 3], p=3, **window)
    for counted in (0, 1):
        attributes = {**window, "count_include_pad": counted}
        agrees(tmp_path, "AveragePool", x, [F], kernel_shape=[3, 3], **attributes)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_pooling_of_bytes_agrees(dtype: type, tmp_path: Path) -> None:
    x = RNG.integers(0, 100, (1, 2, 6, 6)).astype(dtype)
    agrees(tmp_path, "MaxPool", [x], [dtype], kernel_shape=[2, 2], pads=[1, 0, 0, 1])


CONVOLUTIONS = [
    {"pads": [1, 1, 1, 1]},
    {"pads": [0, 1, 2, 1], "strides": [2, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [3, 2]},
    {"auto_pad": "VALID", "dilations": [2, 1]},
    {"group": 2, "pads": [1, 0, 1, 0]},
]


@pytest.mark.parametrize("attributes", CONVOLUTIONS, ids=str)
def test_convolution_agrees_with_weights_constant_or_not(
    attributes: dict[str, Any], tmp_path: Path
) -> None:
    groups = attributes.get("group", 1)
    inputs = [numbers(2, 4, 9, 8), numbers(6, 4 // groups, 3, 3), numbers(6)]
    agrees(tmp_path, "Conv", inputs, [F], **attributes)
    agrees(tmp_path, "Conv", inputs, [F], weights=[1, 2], **attributes)


TRANSPOSED = [
    {},
    {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    {"strides": [2, 3], "pads": [0, 1, 1, 2]},
    {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"strides": [3, 2], "output_shape": [12, 9]},
    {"strides": [3, 2], "output_shape": [12, 9], "auto_pad": "SAME_UPPER"},
    {"dilations": [2, 2], "group": 2},
]


@pytest.mark.parametrize("attributes", TRANSPOSED, ids=str)
def test_transposed_convolution_agrees(attributes: dict[str, Any], tmp_path: Path) -> None:
    inputs = [numbers(2, 4, 4, 4), numbers(4, 3, 3, 3), numbers(3 * attributes.get("group", 1))]
    agrees(tmp_path, "ConvTranspose", inputs, [F], **attributes)
    agrees(tmp_path, "ConvTranspose", inputs, [F], weights=[1, 2], **attributes)


RECURRENT = [
    {},
    {"direction": "reverse"},
    {"direction": "bidirectional"},
    {"clip": 0.4},
    {"activations": ["HardSigmoid", "Relu", "Softsign"], "activation_alpha": [0.3]},
]
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("attributes", RECURRENT, ids=str)
@pytest.mark.parametrize("lengths", [None, [5, 2, 3]])
def test_recurrent_networks_agree(
    operator: str, attributes: dict[str, Any], lengths: list[int] | None, tmp_path: Path
) -> None:
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    gates, hidden = GATES[operator], 4
    attributes = {**attributes, "hidden_size": hidden}
    if "activations" in attributes:
        names = attributes["activations"]
        attributes["activations"] = {"RNN": ["Relu"], "GRU": names[:2], "LSTM": names}[operator]
    inputs: list[Any] = [
        numbers(5, 3, 6),
        numbers(directions, gates * hidden, 6, seed=1),
        numbers(directions, gates * hidden, hidden, seed=2),
        numbers(directions, 2 * gates * hidden, seed=3),
        None if lengths is None else np.array(lengths, np.int32),
        numbers(directions, 3, hidden, seed=4),
    ]
    if operator == "LSTM":
        inputs += [numbers(directions, 3, hidden, seed=5), numbers(directions, 12, seed=6)]
        agrees(tmp_path, operator, inputs, [F, F, F], **attributes)
        agrees(tmp_path, operator, inputs[:7], [F, F, F], weights=[1, 2, 3], **attributes)
        return
    agrees(tmp_path, operator, inputs, [F, F], **attributes)
    if operator == "GRU":
        attributes["linear_before_reset"] = 1
        agrees(tmp_path, operator, inputs, [F, F], weights=[1, 2, 3], **attributes)


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Less", "Greater"])
@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_wide_unsigned_integers_compute_exactly(operator: str, dtype: type, tmp_path: Path) -> None:
    top = np.iinfo(dtype).max
    a = np.array([0, 1, 7, top, top - 1, top // 2 + 3], dtype)
    b = np.array([1, top, 3, 2, top // 2 + 1, top // 2 + 2], dtype)
    result = np.bool_ if operator in ("Less", "Greater") else dtype
    agrees(tmp_path, operator, [a, b], [result], 0.0, version=20)


SLICES = [
    ([1], [3], [0], [1]),
    ([-3, 0], [-1, 100], [1, 2], [1, 2]),
    ([-1], [-(2**62)], [2], [-1]),
    ([4, 6], [0, 1], [1, 2], [-1, -2]),
    ([100], [2], [2], [-3]),
    ([5], [2], [1], [1]),
]


@pytest.mark.parametrize("bounds", SLICES, ids=str)
def test_slices_agree_with_bounds_constant_or_not(bounds: Any, tmp_path: Path) -> None:
    x = numbers(4, 5, 7)
    inputs = [x, *(shape(*values) for values in bounds)]
    agrees(tmp_path, "Slice", inputs, [F], 0.0, weights=[1, 2, 3, 4])
    agrees(tmp_path, "Slice", inputs, [F], 0.0)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_padding_agrees(mode: str, tmp_path: Path) -> None:
    for amounts in ([0, 0, 1, 2, 0, 0, 0, 1], [1, 0, 1, 0, 1, 1, 0, 1], [0, 0, -1, 1, 0, 0, 2, -1]):
        agrees(
            tmp_path,
            "Pad",
            [numbers(2, 3, 4, 5), shape(*amounts)],
            [F],
            0.0,
            weights=[1],
            mode=mode,
            version=19,
        )


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("aligned", [0, 1])
def test_grid_sampling_agrees(mode: str, padding: str, aligned: int, tmp_path: Path) -> None:
    grid = RNG.uniform(-1.4, 1.4, (2, 4, 3, 2)).astype(F)
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": aligned}
    # Cubic weights of places near borders cancel: 2e-5 at the most.
    agrees(tmp_path, "GridSample", [numbers(2, 3, 5, 6), grid], [F], 5e-5, **attributes)


def test_grid_sampling_of_any_rank_equals_pytorch_where_it_has_that_rank() -> None:
    from convkit.converters.onnx_to_torch.operators import grid

    x, places = torch.randn(2, 3, 5, 6), torch.rand(2, 4, 3, 2) * 2.4 - 1.2
    for mode, padding, aligned in itertools.product(
        ("linear", "nearest", "cubic"), ("zeros", "border", "reflection"), (0, 1)
    ):
        native = grid.grid_sample(x, places, mode=mode, padding_mode=padding, align_corners=aligned)
        at = places.reshape(2, -1, 2).flip(-1)
        y = x
        for axis in range(2):
            place = grid.grid_coordinate(at[..., axis], x.shape[2 + axis], aligned)
            y = grid.sampled_axis(y, place, mode, padding, aligned, is_first=axis == 0)
        torch.testing.assert_close(y.reshape(native.shape), native, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_regions_agree(mode: str, ratio: int, tmp_path: Path) -> None:
    rois = np.array([[0, 0, 6, 5], [1.5, 2, 9, 9.5], [-1, 3, 4, 14]], F)
    inputs = [numbers(2, 3, 10, 12), rois, shape(0, 1, 1)]
    for transformation in ("half_pixel", "output_half_pixel"):
        agrees(
            tmp_path,
            "RoiAlign",
            inputs,
            [F],
            mode=mode,
            sampling_ratio=ratio,
            output_height=3,
            output_width=2,
            spatial_scale=0.9,
            coordinate_transformation_mode=transformation,
            version=16,
        )


def test_largest_values_of_regions_agree(tmp_path: Path) -> None:
    rois = np.array([[0, 0, 0, 6, 5], [1, 1, 2, 9, 9], [1, 3, 3, 3, 3]], F)
    attributes = {"pooled_shape": [3, 2], "spatial_scale": 0.9}
    agrees(tmp_path, "MaxRoiPool", [numbers(2, 3, 10, 12), rois], [F], version=20, **attributes)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scattering_agrees(reduction: str, tmp_path: Path) -> None:
    index = np.array([[[0, -1]], [[2, 1]]])
    attributes = {"reduction": reduction}
    inputs = [numbers(3, 4, 5), index, numbers(2, 1, 5, seed=1)]
    agrees(tmp_path, "ScatterND", inputs, [F], version=18, **attributes)
    inputs = [numbers(3, 4), np.array([[0, -1], [2, 1]]), numbers(2, 2, seed=1)]
    agrees(tmp_path, "ScatterElements", inputs, [F], axis=1, version=18, **attributes)


def test_boxes_are_suppressed_like_onnx_runtime_does(tmp_path: Path) -> None:
    corner = RNG.uniform(0, 10, (2, 30, 2)).astype(F)
    boxes = np.concatenate([corner, corner + RNG.uniform(1, 5, (2, 30, 2)).astype(F)], 2)
    scores = RNG.uniform(0, 1, (2, 3, 30)).astype(F)
    limits = [shape(4), np.array([0.4], F), np.array([0.3], F)]
    agrees(tmp_path, "NonMaxSuppression", [boxes, scores, *limits], [np.int64], 0.0)
    agrees(
        tmp_path,
        "NonMaxSuppression",
        [boxes, scores, *limits],
        [np.int64],
        0.0,
        weights=[2, 3, 4],
        center_point_box=1,
    )


def test_every_operator_of_the_library_has_the_parameters_of_its_newest_schema() -> None:
    import convkit.converters.onnx_to_torch.operators as package
    from convkit.converters.onnx_reading.calls import library, parameters_of

    strings = ("strings", "string", "tensor_strings")
    for (domain, name), function in library(package).items():
        if domain == "com.microsoft" or name == "SimplifiedLayerNormalization":
            continue
        schema = onnx.defs.get_schema(name, domain)
        taken = parameters_of(function)
        missing = {
            attribute
            for attribute in schema.attributes
            if attribute not in taken.attributes and not attribute.endswith(strings)
        }
        assert not missing, f"{name} ignores {missing}"
        extra = taken.attributes - set(schema.attributes)
        assert not extra, f"{name} has no {extra}"
        if taken.positional is not None:
            assert taken.positional == len(schema.inputs), name
