"""ONNX to PyTorch: source of a module that is run, exported, or handed over to be edited."""

from __future__ import annotations

from pathlib import Path

from convkit.artifact import Artifact
from convkit.step import Package, Work, converter

_PROGRAM_SUFFIXES = (".pt2", ".pt", ".pth", ".bin")


@converter(
    "onnx",
    "torch",
    carries=("fp32", "fp16", "bf16", "int8", "q4"),
    loses="operator fusions of ONNX Runtime, metadata of the file",
    needs=(
        Package("torch", "torch"),
        Package("safetensors", "torch"),
        Package("onnx", "onnx"),
        Package("onnx_ir", "onnx", "onnx-ir"),
    ),
    writes_code=True,
)
def onnx_to_torch(source: Artifact, out: Path, work: Work) -> None:
    """Writes a module, one line per node and weights in layers, and exports it.

    A destination that is a folder (`-o name/`) gets the module's source and its weights instead of
    an exported program.

    Raises:
        ModelError: the ONNX file is damaged.
        UnsupportedError: an operator has no translation, or PyTorch cannot export the network.
    """
    from convkit.converters.onnx_to_torch.writing import write_folder, write_program

    if out.suffix.lower() in _PROGRAM_SUFFIXES:
        write_program(source, out, work)
    else:
        write_folder(source, out, work)
