"""A trace of an exported program keeps the sizes that the program keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="exports and traces networks")

import torch
from torch import Tensor, nn

import convkit


class Sized(nn.Module):
    """Uses the sizes of its input in a view, an expansion, a slice and a new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 6, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        batch, length = x.shape[0], x.shape[1]
        begin = self.start.expand(batch, 6)
        half = x[:, : length // 2].reshape(batch, -1, 6).mean(1)
        return begin + half + torch.ones(batch, 6) * length


def test_sizes_of_a_traced_program_follow_its_inputs(tmp_path: Path) -> None:
    dims = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Sized(), (torch.randn(3, 8, 6),), dynamic_shapes=(dims,))
    path, out = tmp_path / "m.pt2", tmp_path / "m.pt"
    torch.export.save(program, path)
    report = convkit.convert(path, to="torchscript", out=out)
    assert report.steps[0].rung == "trace"
    traced = torch.jit.load(str(out))
    for batch, length in ((1, 10), (5, 4)):
        x = torch.from_numpy(
            np.random.default_rng(batch).standard_normal((batch, length, 6)).astype(np.float32)
        )
        with torch.no_grad():
            torch.testing.assert_close(traced(x), Sized()(x))
