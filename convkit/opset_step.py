"""The last step of a route to ONNX with `--opset`: an older opset, where the result is above it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from convkit.artifact import Artifact, Precision
from convkit.errors import ModelError
from convkit.graph import Route
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

    _copy(source.path, out)
    fitted = fit(out, opset=opset)
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
    """The opset of ONNX's own operators in a file; 0 where it uses none."""
    from convkit.formats.onnx_header import read_header

    opsets = read_header(path).opsets
    return max(opsets.get("", 0), opsets.get("ai.onnx", 0))


def is_at_most(path: Path, opset: int | None) -> bool:
    """Whether a file needs no lowering to `opset`."""
    return opset is None or opset_of(path) <= opset


def extended(route: Route, source: Artifact, to: str, opset: int | None) -> Route:
    """The route with this step at its end, where a result above `opset` may come out."""
    if opset is None or to != "onnx":
        return route
    if not route.steps and is_at_most(source.path, opset):
        return route
    return replace(route, steps=(*route.steps, onnx_opset), cost=route.cost + _COST)


def _copy(source: Path, out: Path) -> None:
    """Copies a model; data files beside it get names that begin with the copy's."""
    from convkit.formats.onnx_header import read_header

    header = read_header(source)
    places = {t.external["location"] for t in header.initializers if t.external.get("location")}
    if not places:
        shutil.copyfile(source, out)
        return
    import onnx

    names = {place: f"{out.name}.data" for place in places}
    if len(places) > 1:
        names = {place: f"{out.name}.data{index}" for index, place in enumerate(sorted(places))}
    model = onnx.load(str(source), load_external_data=False)
    for tensor in onnx.external_data_helper._get_all_tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value in names:
                entry.value = names[entry.value]
    try:
        out.write_bytes(model.SerializeToString())
    except ValueError as cause:  # protobuf cannot hold 2 GB
        raise ModelError(f"{source.name} is too large to change its opset.") from cause
    for place, name in names.items():
        shutil.copyfile(source.parent / place, out.with_name(name))
