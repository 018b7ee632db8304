"""From an fp32 ONNX model to an int8 one: reading, choosing a scheme, writing."""

from __future__ import annotations

import abc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from convkit.artifact import Artifact
from convkit.errors import ModelError, UnsupportedError, UsageError
from convkit.onnx_folder import graph_file
from convkit.onnx_typing import load_typed, opset_of
from convkit.passes.onnx_half_writing import write_model
from convkit.passes.onnx_quantized_model import named_nodes, write_quantized
from convkit.quantization.targets import Target, target_of
from convkit.step import Work

if TYPE_CHECKING:
    import onnx_ir as ir

    from convkit.quantization.calibration_data import CalibrationData
    from convkit.quantization.control import Control

_OLDEST_OPSET = {"static": 10, "dynamic": 11}
"""The first with QuantizeLinear, and with DynamicQuantizeLinear. Source: ONNX Changelog.md."""

_PER_CHANNEL_OPSET = 13
"""The first with a scale for each channel."""

_CACHE = "past_key_values"
"""What inputs are called that hold the tokens before. Source: optimum's and mobius' exporters."""

_CONTROLLED = ("Conv", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Gather")
"""Layers that accuracy control may give back; what lies between them follows them."""


@dataclass(frozen=True)
class Choices:
    """What the user chose; see the pass for each."""

    scheme: str | None = None
    target: str | None = None
    max_drop: float | None = None
    metric: str | None = None
    method: str = "percentile"
    is_per_channel: bool | None = None
    keep: tuple[str, ...] = ()
    equalizes: bool = True
    smoothing: float | None = None
    corrects_biases: bool = True
    compensates: bool = True
    cache: Path | None = None


def convert(source: Artifact, out: Path, work: Work, choices: Choices) -> None:
    """Writes the model in int8 to `out`; see the pass for the options.

    Raises:
        ModelError, UnsafeError: the model cannot be read.
        UnsupportedError: nothing in it can be quantized, or it is quantized already.
        UsageError: the scheme is static and there are no data.
        SamplesError: the data do not fit the model.
        GateError: no choice of layers keeps within `max_drop`.
        ResourceError: `out` cannot be written.
    """
    from convkit.quantization.calibration_data import calibration_of
    from convkit.quantization.control import check_control
    from convkit.quantization.recognition import refuse_quantized

    if choices.smoothing is not None and not 0 <= choices.smoothing <= 1:
        raise UsageError(
            f"smooth is {choices.smoothing}; it is a share, from 0 to 1.",
            hint="--set onnx-int8.smooth=0.5",
        )
    path = graph_file(source.path)
    target = target_of(choices.target)
    data = calibration_of(work, source.inputs)
    scheme = _scheme(source, choices, data)
    if choices.max_drop is not None:
        is_calibrated = scheme == "static"
        check_control(data, source, work, metric=choices.metric, is_calibrated=is_calibrated)
    work.progress("types", 0, 4)
    model = _loaded(path, scheme, target, choices, work)
    refuse_quantized(model, source, work)
    make: _Making = (_Static if scheme == "static" else _Dynamic)(
        model, path.parent, target, choices, data, work
    )
    keep = named_nodes(model, choices.keep)
    control = _controlled(make, keep, source, data, choices, work)
    if control is not None and not control.passed and scheme == "static" and choices.equalizes:
        make, control = _unequalized(make, control, keep, source, data, work)
    made = make.model(keep if control is None else keep | control.keep, work.note)
    work.progress("writing", 3, 4)
    write_quantized(made, source, out)
    if control is not None:
        control.conclude(out)
    work.progress("writing", 4, 4)


def _scheme(source: Artifact, choices: Choices, data: CalibrationData | None) -> str:
    """The user's scheme, else static where there are data."""
    is_stepwise = any(spec.name.startswith(_CACHE) for spec in source.inputs)
    if choices.scheme == "static" and is_stepwise:
        raise UsageError(
            f"{source.path} predicts text token by token, which is quantized dynamically here.",
            hint="--scheme dynamic",
        )
    if choices.scheme == "static" and data is None:
        raise UsageError(
            "Static int8 takes the ranges of activations from data, and there are none.",
            hint="Give some:  --calibration inputs.npz\nDo without:  --scheme dynamic",
        )
    is_static = data is not None and not is_stepwise
    return choices.scheme or ("static" if is_static else "dynamic")


def _loaded(path: Path, scheme: str, target: Target, choices: Choices, work: Work) -> ir.Model:
    """The typed model, at an opset that can say what is to be said."""
    model = load_typed(path)
    opset = opset_of(model, "")
    is_per_channel = choices.is_per_channel
    if is_per_channel is None:
        is_per_channel = target.is_per_channel
    oldest = _OLDEST_OPSET[scheme]
    needed = _PER_CHANNEL_OPSET if scheme == "static" and is_per_channel else oldest
    if opset >= needed:
        return model
    try:
        raised = load_typed(path, needed)
        work.note(f"Opset {opset} became {needed}, which int8 needs.")
        return raised
    except ModelError as cause:
        if opset < oldest:
            raise UnsupportedError(
                f"{path} has opset {opset}; int8 needs {oldest}.", why=cause.why
            ) from cause
        work.note(f"Opset {opset} stays, and one scale for each weight: {'; '.join(cause.why)}")
        return model


class _Making(abc.ABC):
    """Makes the quantized model, again for each choice of what stays float.

    Attributes:
        float_model: what is quantized; it stays as it is.
    """

    def __init__(
        self,
        model: ir.Model,
        folder: Path,
        target: Target,
        choices: Choices,
        data: CalibrationData | None,
        work: Work,
    ) -> None:
        self.float_model = model
        self.folder = folder
        self.target = target
        self.choices = choices
        self.work = work

    @abc.abstractmethod
    def model(self, keep: frozenset[str], note: Callable[[str], None]) -> ir.Model:
        """The model with the nodes `keep` in fp32."""


class _Dynamic(_Making):
    def model(self, keep: frozenset[str], note: Callable[[str], None]) -> ir.Model:
        from convkit.quantization.dynamic import quantize_dynamic

        made = self.float_model.clone()
        quantize_dynamic(made, self.folder, self.target, keep=keep, note=note)
        return made


class _Static(_Making):
    def __init__(
        self,
        model: ir.Model,
        folder: Path,
        target: Target,
        choices: Choices,
        data: CalibrationData | None,
        work: Work,
    ) -> None:
        from convkit.quantization.calibration_lint import lint
        from convkit.quantization.static import StaticSettings
        from convkit.quantization.static_basis import static_basis

        super().__init__(model, folder, target, choices, data, work)
        assert data is not None
        for finding in lint(data, model, folder):  # before the model's own scaling is folded away
            work.note(str(finding))
        data, _ = data.shares()  # what is held out judges the result
        self._by_rows = _by_rows(model, target)
        self._basis = static_basis(
            model,
            folder,
            data,
            target,
            method=choices.method,
            equalizes=choices.equalizes,
            smoothing=choices.smoothing,
            apart=self._by_rows,
            sees_moments=choices.corrects_biases or choices.compensates,
            cache=choices.cache,
            progress=work.progress,
            note=work.note,
        )
        self._settings = StaticSettings(
            choices.is_per_channel,
            self._basis.moments,
            compensates=choices.compensates,
            corrects_biases=choices.corrects_biases,
        )

    def model(self, keep: frozenset[str], note: Callable[[str], None]) -> ir.Model:
        from convkit.quantization.dynamic import quantize_dynamic
        from convkit.quantization.static import quantize_static

        made = self.float_model.clone()
        refused = None
        try:
            quantize_static(
                made,
                self.folder,
                self._basis.ranges,
                self.target,
                self._settings,
                keep=keep | self._by_rows,
                note=note,
            )
        except UnsupportedError as cause:
            refused = cause
        if not self.target.has_recurrent_kernels:  # nor others that quantize as they run
            if refused is not None:
                raise refused
            return made
        try:  # tables, recurrent layers and the bodies of loops have no ranges
            quantize_dynamic(made, self.folder, self.target, keep=keep, note=note)
        except UnsupportedError:
            if refused is not None:
                raise refused from None
        return made


def _by_rows(model: ir.Model, target: Target) -> frozenset[str]:
    """Layers of which each row gets a scale of its own when it is there."""
    from convkit.quantization.activation_rows import needs_rows
    from convkit.quantization.layers import refusal_of

    if not target.has_recurrent_kernels:  # nor others that quantize as they run
        return frozenset()
    nodes = [node for node in model.graph if node.op_type in ("MatMul", "Gemm") and node.name]
    return frozenset(n.name or "" for n in nodes if refusal_of(n) is None and needs_rows(n))


def _unequalized(
    make: _Making,
    control: Control,
    keep: frozenset[str],
    source: Artifact,
    data: CalibrationData | None,
    work: Work,
) -> tuple[_Making, Control]:
    """The better of what was found and of what is found where channels stay as they are.

    Channels that were scaled up to the end of a Clip are cut there a little earlier, in fp32 too:
    what that loses no layer can give back.
    """
    silent = replace(work, note=lambda _: None)
    choices = replace(make.choices, equalizes=False)
    path = graph_file(source.path)
    model = _loaded(path, "static", make.target, choices, silent)
    other = _Static(model, path.parent, make.target, choices, data, silent)
    again = _controlled(other, keep, source, data, choices, work)
    if again is None or (not again.passed and again.drop >= control.drop):
        return make, control
    work.note("Channels stay as they are after all: equalized, more was lost than may be.")
    return other, again


def _controlled(
    make: _Making,
    keep: frozenset[str],
    source: Artifact,
    data: CalibrationData | None,
    choices: Choices,
    work: Work,
) -> Control | None:
    """What stays in fp32, beside `keep`, so that no more than `max_drop` of the metric is lost.

    None where there is no limit.
    """
    from convkit.quantization.changed_layers import changed_layers
    from convkit.quantization.control import controlled

    if choices.max_drop is None:
        return None
    quantized = make.model(keep, lambda _: None)
    layers = changed_layers(make.float_model, quantized, _CONTROLLED)
    del quantized
    with tempfile.TemporaryDirectory() as folder:

        def candidate(kept: frozenset[str]) -> Path:
            path = Path(folder) / "candidate.onnx"
            made = make.model(keep | kept, lambda _: None)
            write_model(made, path, make.folder, f"{path.name}.data")
            return path

        base = None
        if isinstance(make, _Static):  # its layers may hold other weights than the source's
            base = Path(folder) / "base.onnx"
            write_model(make.float_model.clone(), base, make.folder, f"{base.name}.data")
        return controlled(
            candidate,
            layers,
            data,
            source,
            max_drop=choices.max_drop,
            metric=choices.metric,
            work=work,
            is_calibrated=isinstance(make, _Static),
            base=base,
            precision="int8",
        )
