"""What ONNX Runtime says, in one line that a user can read."""

from __future__ import annotations

import pytest

from convkit.formats.onnx_load_error import run_line
from convkit.pipeline import _refusals

_PLACE = "/onnxruntime_src/onnxruntime/core/providers/cpu"

_MESSAGES = {
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Add node. "
    f"Name:'p2o.Add.250' Status Message: {_PLACE}/math/element_wise_ops.h:563 void "
    "onnxruntime::BroadcastIterator::Init(ptrdiff_t, ptrdiff_t) axis == 1 || axis == largest was "
    "false. Attempting to broadcast an axis by a dimension other than 1. 2 by 3\n": (
        "node p2o.Add.250 (Add): "
        "Attempting to broadcast an axis by a dimension other than 1. 2 by 3"
    ),
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running "
    f"Reshape node. Name:'r' Status Message: {_PLACE}/tensor/reshape_helper.h:45 "
    "onnxruntime::ReshapeHelper::ReshapeHelper(const onnxruntime::TensorShape&, "
    "onnxruntime::TensorShapeVector&, bool) input_shape_size == size was false. The input tensor "
    "cannot be reshaped to the requested shape. Input shape:{1,2}, requested shape:{3}\n": (
        "node r (Reshape): The input tensor cannot be reshaped to the requested shape. "
        "Input shape:{1,2}, requested shape: ..."
    ),
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. "
    "Name:'c' Status Message: Input channels C is not equal to kernel channels * group.": (
        "node c (Conv): Input channels C is not equal to kernel channels * group."
    ),
}


@pytest.mark.parametrize(("message", "wanted"), _MESSAGES.items())
def test_a_refused_run_is_told_in_one_line(message: str, wanted: str) -> None:
    line = run_line(message)
    assert "onnxruntime" not in line
    assert len(line.splitlines()) == 1
    assert line[:90] == wanted[:90]


def test_many_refused_shapes_take_three_lines() -> None:
    assert len(_refusals(["x (1, 2): no"] * 3)) == 3
    lines = _refusals([f"x (1, {n}): no" for n in range(12)])
    assert lines[1:] == (
        "The source model itself refuses x (1, 1): no",
        "... and 10 further shapes.",
    )
