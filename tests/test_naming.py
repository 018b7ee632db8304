"""Names of nested results, the same whatever format a network is in."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from convkit.naming import named_leaves


class Pair(NamedTuple):
    first: int
    second: int | None


@dataclass
class Record:
    logits: int
    states: tuple[int, ...]


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (1, ["output"]),
        ([1], ["output_0"]),
        ((1, (2, [3])), ["output_0", "output_1.0", "output_1.1.0"]),
        ({"a": 1, "b": (2, 3)}, ["a", "b.0", "b.1"]),
        ({0: 1}, ["output_0"]),
        ({"537": 1, "538": (2,)}, ["537", "538.0"]),
        (Pair(1, None), ["first"]),
        (Record(1, (2, 3)), ["logits", "states.0", "states.1"]),
        ((1, {"key": 2}), ["output_0", "output_1.key"]),
        (None, []),
    ],
)
def test_names_follow_keys_fields_and_positions(result: Any, names: list[str]) -> None:
    assert [name for name, _ in named_leaves(result)] == names


def test_eager_networks_programs_and_scripts_agree_on_names(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from convkit.artifact import Artifact, Opening, Precision, TensorSpec
    from convkit.formats.torch import describe, open_torch
    from convkit.formats.torchscript import torchscript
    from convkit.torch_values import named_tensors

    class Nested(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return {"logits": x, "537": x, "states": (x + 1, OrderedDict(last=x + 2))}

    example, expected = torch.zeros(2, 3), ["logits", "537", "states.0", "states.1.last"]
    specs = (TensorSpec("x", "float32", (2, 3)),)
    assert [name for name, _ in named_tensors(Nested()(example))] == expected

    program = tmp_path / "nested.pt2"
    torch.export.save(torch.export.export(Nested(), (example,)), program)
    described = describe(program, Opening())
    assert [spec.name for spec in described.outputs] == expected
    with open_torch(Artifact(program, "torch", Precision.FP32, described.inputs)) as runner:
        assert list(runner({"x": example.numpy()})) == expected

    script = tmp_path / "nested.pt"

    class Typed(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            return x + 1, {"last": x + 2}

    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.trace(Typed(), example, strict=False), script)
    with torchscript.open(Artifact(script, "torchscript", Precision.FP32, specs)) as runner:
        names = list(runner({"x": example.numpy()}))
    assert names == [name for name, _ in named_tensors(Typed()(example))]
