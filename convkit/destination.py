"""Where a result goes if the user does not say."""

from __future__ import annotations

import re
from pathlib import Path

from convkit.artifact import Artifact
from convkit.graph import ConverterGraph, Route
from convkit.hub_cache import cached_name
from convkit.step import Converter, Pass

_FOLDER_ENDINGS = ("-onnx", "-hf")
"""What converters end the names of folders in; a folder that is made from one has it once."""


_PART = re.compile(r"-\d{5}-of-\d{5}$")
"""How the parts of a split model end; the first stands for all of them."""


def default_destination(
    source: Artifact, model: str, route: Route, converters: ConverterGraph, scheme: str | None
) -> Path:
    """Beside the source, called after it; that of a factory in the working folder.

    What lies in the cache of a hub is called as on the hub, and its results lie in the working
    folder: nothing but downloads belongs into the cache.

    The name of a file gets the precision, where a pass changes it, and the format's ending after
    dots: `model.onnx` -> `model.fp16.onnx`. That of a folder gets them after hyphens, as models on
    hubs are called: `SmolLM2` -> `SmolLM2-onnx`, `SmolLM2-fp16-onnx`.

    Args:
        source: the model as it was detected.
        model: what the user called it.
        route: how the result is made.
        converters: where formats are found.
        scheme: what stands for the precision, if the user chose it.
    """
    path = Path(model).expanduser().absolute()
    is_folder = path.is_dir() and not source.opening.factory
    stem = path.name if is_folder else _PART.sub("", path.stem)
    if name := cached_name(path):
        path, stem = Path(), name if is_folder else stem
    if source.opening.factory:
        path, stem = Path(), source.opening.factory.rpartition(":")[2].lower()
    target, precision = route.states[-1]
    ending = _ending(source, route, converters)
    if is_folder and not ending.startswith("."):
        own = next((own for own in _FOLDER_ENDINGS if stem.endswith(own)), "")
        stem = stem.removesuffix(own)
        ending = ending or (own if target == source.format else f"-{target}")
    is_chosen = any(isinstance(step, Pass) for step in route.steps)
    label = scheme or (str(precision) if is_chosen else "")
    joint = "." if ending.startswith(".") else "-"
    return path.parent / (stem + (joint + label if label else "") + ending)


def _ending(source: Artifact, route: Route, converters: ConverterGraph) -> str:
    """What the name of a result ends in; empty for a folder without an ending of its own."""
    makers = [step for step in route.steps if isinstance(step, Converter)]
    makers = [step for step in makers if step.source != step.target]
    if not makers and source.path.is_dir():
        return ""
    own = makers[-1].ending if makers else None
    found = own(source) if own else None
    return converters.format(route.states[-1][0]).suffixes[0] if found is None else found
