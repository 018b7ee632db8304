"""TorchScript to PyTorch: an exported program, `.pt2`, which runs without TorchScript."""

from __future__ import annotations

from pathlib import Path

from convkit.artifact import Artifact
from convkit.converters.torchscript_call import call_of, quiet_exporters
from convkit.converters.torchscript_program import exported_program
from convkit.step import Package, Work, converter


@converter(
    "torchscript",
    "torch",
    carries=("fp32", "fp16", "bf16"),
    loses="state between calls, methods other than forward, Python numbers as inputs",
    needs=(Package("torch", "torch"),),
)
def torchscript_to_torch(source: Artifact, out: Path, work: Work) -> None:
    """Reads the graph operator by operator and exports it with dynamic dimensions.

    Loops as long as a dynamic size and branches on tensor values that `torch.cond` cannot take have
    no counterpart.

    Raises:
        UnsupportedError: with the construct and where it stands in the source.
    """
    import torch

    program = exported_program(call_of(source, work), work.note)
    with quiet_exporters():
        torch.export.save(program, str(out))
