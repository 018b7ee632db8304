"""Operator functions of the SavedModel importer against the official ONNX backend suite."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs TensorFlow")

import onnx
import tensorflow as tf

from tests import backend_suite
from tests.tensorflow_operators import computed, operators

_IMPOSSIBLE = re.compile(
    "FNUZ|2E1|[48]E8M0|_e8m0|E2M1|INT2|UINT2|float4|float6|_u?int2$"  # no TensorFlow kernel
    "|^test_bernoulli|^test_training_dropout"  # NumPy's random numbers
    "|_opset19$|_old$"  # semantics that are brought to the newest before they get here
)
_SEQUENCE_LENGTH = re.compile("^test_split_to_sequence")
"""The number of tensors in a sequence is part of the graph, so it must be known."""


def _single_nodes() -> list[backend_suite.Case]:
    known = operators()
    return [
        case
        for case in backend_suite.cases(("node",))
        if len(case.model.graph.node) == 1
        and (case.model.graph.node[0].domain, case.model.graph.node[0].op_type) in known
        and not _IMPOSSIBLE.search(case.name)
    ]


def _first_of_each() -> list[backend_suite.Case]:
    """The shortest-named case of each operator."""
    found: dict[str, backend_suite.Case] = {}
    for case in _single_nodes():
        kind = case.model.graph.node[0].op_type
        if kind not in found or len(case.name) < len(found[kind].name):
            found[kind] = case
    return [found[kind] for kind in sorted(found)]


def _check(case: backend_suite.Case, mode: str) -> None:
    node = case.model.graph.node[0]
    for inputs, expected in case.data_sets:
        backend_suite.compare(case, expected, computed(node, inputs, mode))


@pytest.mark.parametrize("case", _first_of_each(), ids=lambda case: case.name)
def test_an_operator_agrees_with_the_official_suite(case: backend_suite.Case) -> None:
    _check(case, "known")


def _by_turns() -> list[object]:
    """Every second case with dynamic shapes, every sixth with static ones too.

    Neighbours in the suite differ in little, and with known shapes the backend suite runs them all,
    see test_onnx_to_savedmodel_backend.py.
    """
    cases = [case for case in _single_nodes() if not _SEQUENCE_LENGTH.search(case.name)]
    pairs = [(case, "dynamic") for case in cases[::2]] + [(case, "static") for case in cases[::6]]
    return [pytest.param(case, mode, id=f"{case.name}-{mode}") for case, mode in pairs]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "mode"), _by_turns())
def test_cases_agree_where_shapes_are_not_known(case: backend_suite.Case, mode: str) -> None:
    _check(case, mode)


_LAYOUTS = [
    ("Conv", [(2, 4, 9, 8), (6, 2, 3, 2), (6,)], {"group": 2, "pads": [1, 0, 2, 1]}),
    ("Conv", [(2, 4, 9, 8), (4, 1, 3, 3)], {"group": 4, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", [(2, 4, 9), (6, 4, 3)], {"auto_pad": "SAME_LOWER", "strides": [2]}),
    ("Conv", [(2, 4, 6, 5, 7), (6, 2, 2, 3, 2)], {"group": 2, "dilations": [2, 1, 2]}),
    ("ConvTranspose", [(2, 4, 5, 6), (4, 3, 3, 2), (3,)], {"strides": [2, 3]}),
    ("ConvTranspose", [(2, 4, 5, 6), (4, 1, 3, 3)], {"group": 4, "strides": [2, 2]}),
    ("ConvTranspose", [(2, 4, 5, 6), (4, 3, 3, 3)], {"dilations": [2, 2], "pads": [1, 2, 2, 1]}),
    ("MaxPool", [(2, 3, 9, 8)], {"kernel_shape": [3, 2], "ceil_mode": 1, "strides": [2, 2]}),
    ("AveragePool", [(2, 3, 9, 8)], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("LpPool", [(2, 3, 9, 8)], {"kernel_shape": [3, 2], "p": 3}),
    ("GlobalAveragePool", [(2, 3, 9, 8)], {}),
    ("GlobalMaxPool", [(2, 3, 9, 8)], {}),
    ("BatchNormalization", [(2, 3, 9, 8), (3,), (3,), (3,), (3,)], {}),
    ("InstanceNormalization", [(2, 3, 9, 8), (3,), (3,)], {}),
    ("GroupNormalization", [(2, 6, 9, 8), (6,), (6,)], {"num_groups": 3}),
    ("LRN", [(2, 6, 9, 8)], {"size": 3}),
    ("DepthToSpace", [(2, 8, 3, 4)], {"blocksize": 2, "mode": "CRD"}),
    ("DepthToSpace", [(2, 8, 3, 4)], {"blocksize": 2}),
    ("SpaceToDepth", [(2, 2, 4, 6)], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", [(2, 2, 4, 6)], {"blocksize": 2}),
]


@pytest.mark.parametrize(
    ("kind", "shapes", "attributes"), _LAYOUTS, ids=lambda value: str(value).replace(" ", "")
)
def test_channels_last_gives_the_transposed_result(kind, shapes, attributes) -> None:
    random = np.random.default_rng(0)
    arrays = [random.uniform(0.1, 1, shape).astype(np.float32) for shape in shapes]
    function = operators()["", kind]
    first = function(*map(tf.constant, arrays), **attributes).numpy()
    last = function(
        tf.constant(np.moveaxis(arrays[0], 1, -1)),
        *map(tf.constant, arrays[1:]),
        **attributes,
        layout="NHWC",
    ).numpy()
    # The same kernels on the same numbers; only their order in memory differs.
    np.testing.assert_allclose(np.moveaxis(last, -1, 1), first, rtol=1e-5, atol=1e-6)


def _kernels(kind: str, shapes: list[list[int | None]], **attributes) -> list[str]:
    """The operators of a traced function, without those that only hold or name values."""
    function = operators()["", kind]
    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    traced = tf.function(lambda *inputs: function(*inputs, **attributes), autograph=False)
    graph = traced.get_concrete_function(*specs).graph
    plain = {"Const", "Placeholder", "Identity", "NoOp"}
    return [node.op for node in graph.as_graph_def().node if node.op not in plain]


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 2, 1]])
def test_a_convolution_channels_last_is_one_kernel_and_a_bias(pads) -> None:
    found = _kernels(
        "Conv",
        [[None, None, None, 8], [3, 3, 8, 16], [16]],
        pads=pads,
        layout="NHWC",
        weight_layout="TF",
    )
    assert found == ["Conv2D", "BiasAdd"]


def test_a_depthwise_convolution_is_one_kernel_without_explicit_padding() -> None:
    """Explicit padding there ends the process once TensorFlow fuses the bias into the kernel."""
    found = _kernels(
        "Conv",
        [[None, 8, 8, 8], [3, 3, 1, 8], [8]],
        pads=[1, 1, 1, 1],
        group=8,
        layout="NHWC",
        weight_layout="TF",
    )
    assert found == ["Reshape", "DepthwiseConv2dNative", "BiasAdd"]


def test_pooling_and_products_are_one_kernel() -> None:
    image = [[None, None, None, 8]]
    pool = {"kernel_shape": [2, 2], "strides": [2, 2], "layout": "NHWC"}
    assert _kernels("MaxPool", image, **pool) == ["MaxPool"]
    assert _kernels("AveragePool", image, **pool) == ["AvgPool"]
    assert _kernels("MatMul", [[None, 8], [8, 4]]) == ["MatMul"]
    assert _kernels("Gemm", [[None, 8], [4, 8], [4]], transB=1) == ["MatMul", "BiasAdd"]


def test_a_quantized_product_is_exact_however_deep_it_is() -> None:
    """Sums beyond 2 ** 24 are not whole numbers in float32."""
    depth = 4096
    a = np.full((1, depth), 255, np.uint8)
    b = np.full((depth, 1), 255, np.uint8)
    b[0, 0] = 254
    node = onnx.helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    assert computed(node, [a, b])[0] == a.astype(np.int64) @ b.astype(np.int64)
