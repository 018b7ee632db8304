"""The last step of a route to ONNX with `--opset`: an older opset, where the result is above it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from convkit.artifact import Artifact, Precision
from convkit.errors import ModelError
from convkit.graph import Route
from convkit.onnx_folder import copy_companions, graph_file, result_file
from convkit.step import Converter, Package, Work, rung

_ONNX = Package("onnx", "onnx")
_COST = 0.5


@dataclass(frozen=True)
class OpsetStep(Converter):
    """ONNX to ONNX of an older opset. The planner does not know it; `--opset` asks for it."""

    @property
    def name(self) -> str:
        """`onnx-opset`."""
        return "onnx-opset"


@rung("onnx-opset", needs=[_ONNX])
def _lower(source: Artifact, out: Path, work: Work, *, opset: int = 17) -> None:
    """Writes the model at opset `opset`, or at its own where that is older."""
    from convkit.opset import fit

    file = result_file(source.path, out)
    _copy(graph_file(source.path), file, keeps_names=file != out)
    fitted = fit(file, opset=opset)
    copy_companions(source, out)
    work.note(str(fitted))


onnx_opset = OpsetStep(
    "onnx",
    "onnx",
    carries=tuple(Precision),
    loses="nothing that is computed; newer operators are spelled out with older ones",
    cost=_COST,
    rungs=(_lower,),
)


def opset_of(path: Path) -> int:
    """The opset of ONNX's own operators in a file or folder; 0 where it uses none."""
    from convkit.formats.onnx_header import read_header

    opsets = read_header(graph_file(path)).opsets
    return max(opsets.get("", 0), opsets.get("ai.onnx", 0))


def is_at_most(path: Path, opset: int | None) -> bool:
    """Whether a model needs no lowering to `opset`."""
    return opset is None or opset_of(path) <= opset


def extended(route: Route, source: Artifact, to: str, opset: int | None) -> Route:
    """The route with this step at its end, where a result above `opset` may come out."""
    if opset is None or to != "onnx":
        return route
    if not route.steps and is_at_most(source.path, opset):
        return route
    return replace(route, steps=(*route.steps, onnx_opset), cost=route.cost + _COST)


def _copy(source: Path, out: Path, *, keeps_names: bool) -> None:
    """Copies a graph; data files beside it keep their names, or get some that begin with its own.

    Beside a single file only what begins with its name is known to belong to it.
    """
    from convkit.formats.onnx_header import read_header

    header = read_header(source)
    found = {t.external["location"] for t in header.initializers if t.external.get("location")}
    names = {place: f"{out.name}.data" for place in found}
    if len(found) > 1:
        names = {place: f"{out.name}.data{index}" for index, place in enumerate(sorted(found))}
    if not found or keeps_names:
        names = {place: place for place in found}
        shutil.copyfile(source, out)
    else:
        _rename_data(source, out, names)
    for place, name in names.items():
        copy = out.parent / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.parent / place, copy)


def _rename_data(source: Path, out: Path, names: Mapping[str, str]) -> None:
    """Writes the graph at `source` with other locations of its data to `out`."""
    import onnx

    model = onnx.load(str(source), load_external_data=False)
    for tensor in onnx.external_data_helper._get_all_tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value in names:
                entry.value = names[entry.value]
    try:
        out.write_bytes(model.SerializeToString())
    except ValueError as cause:  # protobuf cannot hold 2 GB
        raise ModelError(f"{source.name} is too large to change its opset.") from cause
