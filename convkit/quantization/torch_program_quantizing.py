"""Networks that are no Hugging Face folder, quantized: an exported program in, or made; one out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact
from convkit.errors import StepError
from convkit.naming import listed
from convkit.step import Work
from convkit.torch_values import parameters_of, to_argument

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

MARK = "convkit-quantization.json"
"""An extra file in the archive that says how its weights are quantized; formats read it."""

_RUNS = 5
_SLOWER = 1.1
_WORDS = {"llm_int8": "8-bit integers", "nf4": "NF4", "fp4": "FP4"}
_PRECISIONS = {"llm_int8": "int8", "nf4": "q4", "fp4": "q4"}


@dataclass(frozen=True)
class Program:
    """A network on its way to a quantized program; nothing is loaded before it is written.

    Attributes:
        source: where it lies.
        scheme, skip, block_size: how it is quantized; see `quantize_program`.
        notes: none; they come with the work.
        byte_count: not known before.
    """

    source: Artifact
    scheme: str = ""
    skip: tuple[str, ...] = ()
    block_size: int = 64
    notes: tuple[str, ...] = ()
    byte_count: int | None = None

    def quantized(self, scheme: str, skip: Sequence[str], block_size: int = 64) -> Program:
        """The same, to be quantized."""
        return replace(self, scheme=scheme, skip=tuple(skip), block_size=block_size)


def write_program(model: Program, out: Path, work: Work) -> None:
    """Loads or exports the network, quantizes it and saves it, a `.pt2`.

    Raises:
        UnsupportedError: it has no weight that can be quantized.
        UsageError: a layer to be left as it is does not exist.
        StepError: PyTorch cannot export it.
    """
    import torch

    from convkit.quantization.torch_program_weights import quantize_program

    program = _program(model.source, work)
    before = program.module()
    outcome = quantize_program(program, model.scheme, model.skip, model.block_size)
    mark = {
        "precision": _PRECISIONS[model.scheme],
        "words": f"{_WORDS[model.scheme]} by convkit",
        "parameter_count": outcome.element_count,
    }
    torch.export.save(program, str(out), extra_files={MARK: json.dumps(mark)})
    count = len(outcome.modules)
    work.note(
        f"{count} weight{'s' if count > 1 else ''} quantized to {_WORDS[model.scheme]} "
        f"({listed(list(outcome.modules), 3)}); {outcome.unpacked} of "
        f"{outcome.multiplied + outcome.unpacked} uses unpack the weight on every call"
    )
    if program.example_inputs is not None:
        work.note(_told(*_milliseconds([before, program.module()], *program.example_inputs)))


def _program(source: Artifact, work: Work) -> ExportedProgram:
    import torch

    if source.opening.factory is None and source.path.suffix == ".pt2":
        # What it may hold besides a program was checked when the source was opened.
        return torch.export.load(source.path)
    network = work.load(source)
    specs = (work.recorded() if work.recorded else source).inputs
    feeds = list(work.samples)[:2][-1]  # the second has a batch of two
    parameters = parameters_of(network)
    values = {spec.name: to_argument(feeds[spec.name], parameters.get(spec.name)) for spec in specs}
    shapes = [
        {axis: torch.export.Dim.AUTO for axis, size in enumerate(s.shape) if isinstance(size, str)}
        for s in specs
    ]
    is_named = set(values) <= set(parameters)
    arguments = () if is_named else tuple(values.values())
    named = values if is_named else {}
    dynamic: Any = dict(zip(values, shapes, strict=True)) if is_named else (tuple(shapes),)
    try:
        with torch.no_grad():
            return _exported(network, arguments, named, dynamic)
    except Exception as cause:
        first = (str(cause).strip().splitlines() or [""])[0]
        raise StepError(
            f"PyTorch cannot export {source.words}, and only exported programs are quantized.",
            why=f"{type(cause).__name__}: {first[:300]}",
            hint=f"Quantize its ONNX graph instead:  convkit convert {source.words} --to onnx",
        ) from cause


def _exported(
    network: torch.nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any], dynamic: Any
) -> ExportedProgram:
    import torch

    if named:
        return torch.export.export(network, (), dict(named), dynamic_shapes=dynamic, strict=False)
    return torch.export.export(network, arguments, dynamic_shapes=dynamic[0], strict=False)


def _milliseconds(
    networks: Sequence[torch.nn.Module], arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> list[float]:
    """The quickest of a few calls of each network, in turns."""
    import torch

    quickest = [float("inf")] * len(networks)
    with torch.inference_mode(), _unwarned():
        for _ in range(_RUNS):
            for number, network in enumerate(networks):
                began = time.perf_counter()
                network(*arguments, **named)
                quickest[number] = min(quickest[number], time.perf_counter() - began)
    return [1e3 * seconds for seconds in quickest]


@contextmanager
def _unwarned() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _told(before_ms: float, after_ms: float) -> str:
    ratio = after_ms / before_ms
    measured = f"{after_ms:.3g} ms a call here, {before_ms:.3g} ms as it was"
    if ratio > _SLOWER:
        return f"slower than before, {ratio:.1f} times as long: {measured}; it saves memory only"
    return f"measured: {measured}"
