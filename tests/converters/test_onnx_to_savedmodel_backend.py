"""The official ONNX backend suite, run by SavedModels made from its models.

The core tests of opset 24 and below: each is written, loaded by TensorFlow alone, and run through
its signature.
"""

from __future__ import annotations

import pytest

pytest.importorskip("onnx", reason="the suite comes with the onnx package")
pytest.importorskip("tensorflow", reason="runs the SavedModels")

from tests.backend_contenders import savedmodel
from tests.backend_expectations import check_list, identity, known_failures, parameters
from tests.backend_suite import Case, cases, failure

CORE = tuple(case for case in cases(("node",)) if case.is_core and case.opset <= 24)


@pytest.mark.parametrize("case", parameters(CORE, "savedmodel", 30))
def test_the_savedmodel_computes_what_the_suite_expects(case: Case) -> None:
    assert failure(case, savedmodel) == ""


def test_every_known_failure_is_a_test_and_has_a_reason() -> None:
    check_list(CORE, "savedmodel")


def test_known_failures_leave_what_is_promised() -> None:
    failing = known_failures("savedmodel")
    # Of the core tests 40 may fail.
    assert sum(identity(case) in failing for case in CORE) <= 40
