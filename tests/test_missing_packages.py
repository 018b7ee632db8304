"""A package that is missing is named before any work, with the line that brings it."""

from __future__ import annotations

from pathlib import Path

import pytest

from convkit import library
from convkit.artifact import Artifact, Precision
from convkit.errors import MissingRequirementError
from convkit.step import Package


def test_verifying_names_the_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Package, "is_available", property(lambda self: self.module != "tensorflow"))
    artifacts = [Artifact(Path("a"), name, Precision.FP32) for name in ("savedmodel", "onnx")]
    with pytest.raises(MissingRequirementError, match="not installed: tensorflow") as caught:
        library._require_packages(*artifacts)
    assert caught.value.exit_code == 4
    assert caught.value.hint == 'pip install "convkit-ml[savedmodel]"'
    library._require_packages(artifacts[1])
