"""From an fp32 ONNX model to one of four bits: reading, choosing, writing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convkit.artifact import Artifact
from convkit.errors import UnsupportedError, UsageError
from convkit.onnx_folder import graph_file
from convkit.onnx_metadata import WEIGHTS_KEY
from convkit.onnx_typing import load_typed, opset_of
from convkit.passes.onnx_calibration import calibration_samples, look_at
from convkit.passes.onnx_half_writing import write_model
from convkit.passes.onnx_quantized_model import named_nodes, write_quantized
from convkit.quantization.targets import Target, target_of
from convkit.step import Work

if TYPE_CHECKING:
    import onnx_ir as ir

    from convkit.quantization.block_graph import BlockSettings
    from convkit.quantization.calibration_data import CalibrationData
    from convkit.quantization.control import Control

_BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Source: onnxruntime, docs/ContribOperators.md, MatMulNBits: a power of two, at least 16."""

_HEAD_BITS = (4, 8, 32)
_BLOCKED_OPSET = 21
"""The first whose DequantizeLinear knows blocks. Source: ONNX Changelog.md."""

_CONTROLLED = ("Gemm", "MatMul", "Gather")


@dataclass(frozen=True)
class Choices:
    """What the user chose; see the pass for each."""

    scheme: str | None = None
    target: str | None = None
    max_drop: float | None = None
    metric: str | None = None
    block_size: int | None = None
    is_symmetric: bool = False
    accuracy_level: int | None = None
    head_bits: int = 8
    keep: tuple[str, ...] = ()


_Make = Callable[[frozenset[str], Callable[[str], None]], "ir.Model"]


def convert(source: Artifact, out: Path, work: Work, choices: Choices) -> None:
    """Writes the model in four bits to `out`; see the pass for the options.

    Raises:
        ModelError, UnsafeError: the model cannot be read.
        UnsupportedError: nothing in it can be quantized, or it is quantized already.
        UsageError: an option has no such value, or the scheme needs data and there are none.
        SamplesError: the data do not fit the model.
        GateError: no choice of layers keeps within `max_drop`.
        ResourceError: `out` cannot be written.
    """
    from convkit.quantization.block_graph import quantize_blocks
    from convkit.quantization.control import check_control
    from convkit.quantization.recognition import refuse_quantized

    target = target_of(choices.target)
    path = graph_file(source.path)
    model = load_typed(path)
    data = calibration_samples(source, model, work)
    settings = _settings(choices, target, data)
    if choices.max_drop is not None:
        check_control(
            data, source, work, metric=choices.metric, is_calibrated=settings.data is not None
        )
    if not settings.has_kernels and opset_of(model, "") < _BLOCKED_OPSET:
        work.note(f"Opset {opset_of(model, '')} became {_BLOCKED_OPSET}, which blocks need.")
        model = load_typed(path, _BLOCKED_OPSET)
    refuse_quantized(model, source, work)
    model.metadata_props.pop(WEIGHTS_KEY, None)  # it says where float weights are
    keep = named_nodes(model, choices.keep)
    if settings.data is not None:
        look_at(settings.data, source, model, work)

    def make(kept: frozenset[str], note: Callable[[str], None]) -> ir.Model:
        made = model.clone()
        quantize_blocks(made, path.parent, settings, keep=kept, note=note, progress=work.progress)
        return made

    control = None
    if choices.max_drop is not None:
        control = _controlled(make, model, keep, source, data, choices, settings, work)
        keep |= control.keep
    write_quantized(make(keep, work.note), source, out)
    if control is not None:
        control.conclude(out)


def _settings(choices: Choices, target: Target, data: CalibrationData | None) -> BlockSettings:
    from convkit.quantization.block_graph import FLOATING, BlockSettings

    scheme = choices.scheme or ("rtn" if data is None else "gptq")
    block = choices.block_size or (64 if scheme in FLOATING else 32)
    _check(choices, scheme, block, target, data)
    level = choices.accuracy_level
    return BlockSettings(
        scheme=scheme,
        block=block,
        is_symmetric=choices.is_symmetric or not target.has_block_kernels,
        accuracy_level=target.accuracy_level if level is None else level,
        has_kernels=target.has_block_kernels,
        head_bits=choices.head_bits,
        data=data.shares()[0] if data is not None and scheme == "gptq" else None,
        known=None if choices.max_drop is None else {},
    )


def _check(
    choices: Choices, scheme: str, block: int, target: Target, data: CalibrationData | None
) -> None:
    from convkit.quantization.block_graph import FLOATING

    if block not in _BLOCK_SIZES:
        raise UsageError(
            f"block_size is {block}; blocks have {', '.join(map(str, _BLOCK_SIZES))} weights.",
            hint="--set onnx-q4.block_size=32",
        )
    if choices.head_bits not in _HEAD_BITS:
        raise UsageError(
            f"head_bits is {choices.head_bits}; it is {', '.join(map(str, _HEAD_BITS))}.",
            hint="--set onnx-q4.head_bits=8",
        )
    if scheme == "gptq" and data is None:
        raise UsageError(
            "gptq rounds weights for the data that they see, and there are none.",
            hint="Give some:  --calibration inputs.npz\nDo without:  --scheme rtn",
        )
    if scheme in FLOATING and not target.has_block_kernels:
        raise UnsupportedError(
            f"{target.name} cannot read {scheme}, which only MatMulBnb4 of ONNX Runtime does.",
            hint="Use blocks of even levels:  --scheme rtn",
        )


def _controlled(
    make: _Make,
    model: ir.Model,
    keep: frozenset[str],
    source: Artifact,
    data: CalibrationData | None,
    choices: Choices,
    settings: BlockSettings,
    work: Work,
) -> Control:
    """What stays in fp32, beside `keep`, so that no more than `max_drop` of the metric is lost."""
    from convkit.quantization.changed_layers import changed_layers
    from convkit.quantization.control import controlled

    layers = changed_layers(model, make(keep, _unheard), _CONTROLLED)
    folder = graph_file(source.path).parent
    with tempfile.TemporaryDirectory() as place:

        def candidate(kept: frozenset[str]) -> Path:
            path = Path(place) / "candidate.onnx"
            write_model(make(keep | kept, _unheard), path, folder, f"{path.name}.data")
            return path

        return controlled(
            candidate,
            layers,
            data,
            source,
            max_drop=choices.max_drop or 0.0,
            metric=choices.metric,
            work=work,
            is_calibrated=settings.data is not None,
            precision="q4",
        )


def _unheard(text: str) -> None:
    """What candidates note is not told."""
