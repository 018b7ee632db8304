"""The official ONNX backend suite, run by PyTorch modules made from its models."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx", reason="the suite comes with the onnx package")
pytest.importorskip("torch", reason="runs the modules")

from tests.backend_contenders import torch_export, torch_module
from tests.backend_expectations import check_list, identity, known_failures, parameters
from tests.backend_suite import Case, cases, failure

ALL = cases()
EXPORTED = tuple(
    case
    for case in ALL
    if case.is_core and case.takes_floats and identity(case) not in known_failures("torch")
)


@pytest.mark.parametrize("case", parameters(ALL, "torch", 150))
def test_the_module_computes_what_the_suite_expects(case: Case) -> None:
    assert failure(case, torch_module) == ""


@pytest.mark.parametrize("case", parameters(EXPORTED, "torch_export", 15))
def test_the_module_can_be_captured_again_and_agrees(case: Case) -> None:
    assert failure(case, torch_export) == ""


def test_every_known_failure_is_a_test_and_has_a_reason() -> None:
    check_list(ALL, "torch")
    check_list(EXPORTED, "torch_export")


def test_known_failures_leave_what_is_promised() -> None:
    nodes = [case for case in ALL if case.kind == "node"]
    core = [case for case in nodes if case.is_core]
    failing = known_failures("torch")
    assert sum(identity(case) not in failing for case in nodes) >= 1650
    # Of the core tests 39 may fail.
    assert sum(identity(case) in failing for case in core) <= 39
    assert len(known_failures("torch_export")) <= 0.1 * len(EXPORTED)
