"""Which tests of the ONNX backend suite an importer is known to fail, and pytest's parameters.

A list holds one test a line, `name: reason`. A test that starts to pass must leave its list.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.backend_suite import Case

_FOLDER = Path(__file__).parent
_NOT_RUN = ("crash", "timeout")
"""Reasons that begin so: the test would end the process or keep it, and is not run."""


def identity(case: Case) -> str:
    """A name that is unique in the whole suite."""
    return case.name if case.kind == "node" else f"{case.kind}/{case.name}"


def known_failures(backend: str) -> dict[str, str]:
    """Test -> why it fails, from `backend_failures_<backend>.txt`."""
    lines = (_FOLDER / f"backend_failures_{backend}.txt").read_text().splitlines()
    entries = (line.partition(": ") for line in lines if line and not line.startswith("#"))
    return {name: reason for name, _, reason in entries}


def parameters(cases: Sequence[Case], backend: str, quick_count: int) -> list[Any]:
    """All cases for `parametrize`: a seeded sample runs by default, the others are slow."""
    failing = known_failures(backend)
    quick = {identity(case) for case in random.Random(0).sample(list(cases), quick_count)}
    return [_parameter(case, failing, quick) for case in cases]


def _parameter(case: Case, failing: dict[str, str], quick: set[str]) -> Any:
    name = identity(case)
    marks = [] if name in quick else [pytest.mark.slow]
    if name in failing:
        reason = failing[name]
        runs = not reason.startswith(_NOT_RUN)
        marks.append(pytest.mark.xfail(strict=True, run=runs, reason=reason))
    return pytest.param(case, id=name, marks=marks)


def check_list(cases: Sequence[Case], backend: str) -> None:
    """Every line names a test there is, with a reason."""
    known = {identity(case) for case in cases}
    for name, reason in known_failures(backend).items():
        assert name in known, f"there is no test {name}"
        assert len(reason) > 10, f"{name} has no reason"
