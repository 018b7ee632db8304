"""Recipe: one conversion as an object, built by the command line or read from YAML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from convkit.artifact import Opening, Precision
from convkit.errors import UsageError
from convkit.openings import opening_of

_FIELDS = {"set": "settings", "for": "target"}
"""Names in YAML that are called otherwise in Python, where they are taken."""


def _lower(name: Any) -> Any:
    """Schemes are spelled either way, `Q4_K_M` in names of files."""
    return name.lower() if isinstance(name, str) else name


def _share(value: Any) -> Any:
    """`1%` is 0.01."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            raise ValueError("A share is written as 1% or 0.01.") from None
    return value


class Recipe(BaseModel):
    """What to convert, to what, and how.

    Attributes:
        model: a path, or `package.module:factory`.
        to: target format.
        precision: asked for; None keeps the source's.
        out: where the result goes; None: beside the source (`model.onnx` -> `model.fp16.onnx`).
        weights: weights of a factory's network; `FILE:KEY` names a state dict inside.
        scheme: how to quantize, as users of the target call it (`q4_k_m`); implies the precision.
        samples: inputs to trace and verify with.
        calibration: representative data for a calibrated pass.
        adapter: a folder with a low-rank adapter to be merged into the weights.
        target: hardware that a quantized result is meant for (`cpu`, `tensorrt`); in YAML `for`.
        max_drop: how much accuracy may fall, as a share: 0.01 or `1%`.
        metric: what accuracy is: a name, or `module:function` of outputs and labels.
        pure: every tensor gets the scheme's own type, where it can be quantized at all.
        tensor_types: `REGEX=TYPE`, the type of tensors whose names match.
        inputs: input specs, `x=float32[batch,3,224,224]`.
        signature: which signature of a SavedModel.
        input_names, output_names: tensors where a TensorFlow graph begins and ends.
        settings: `step.option` -> value; in YAML the field is called `set`.
        opset: ONNX opset for every step that has one.
        verify: False skips the comparison with the source.
        trust: the user vouches for code inside the model file.
        force: an existing result is replaced.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    to: str
    precision: Precision | None = None
    out: Path | None = None
    weights: str | None = None
    scheme: Annotated[str, BeforeValidator(_lower)] | None = None
    samples: Path | None = None
    calibration: Path | None = None
    adapter: Path | None = None
    target: str | None = None
    max_drop: Annotated[float, BeforeValidator(_share), Field(ge=0, lt=1)] | None = None
    metric: str | None = None
    pure: bool = False
    tensor_types: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    signature: str | None = None
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    settings: Mapping[str, Any] = Field(default_factory=dict)
    opset: int | None = Field(default=None, ge=7)
    verify: bool = True
    trust: bool = False
    force: bool = False

    def opening(self) -> Opening:
        """How the model is to be opened, as far as the recipe says."""
        return opening_of(
            self.inputs,
            self.samples,
            self.trust,
            self.signature,
            self.input_names,
            self.output_names,
            self.adapter,
        )


def make(**fields: Any) -> Recipe:
    """A recipe from fields that a user gave one by one.

    Raises:
        UsageError: a value is not one that its field takes.
    """
    try:
        return Recipe(**fields)
    except ValidationError as cause:
        problem = cause.errors()[0]
        field = str(problem["loc"][0])
        raise UsageError(
            f"{fields[field]!r} is no {field} to ask for.",
            why=str(problem["msg"]).removeprefix("Value error, "),
            hint="See:  convkit convert --help",
        ) from cause


def read(path: Path, settings: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe; relative paths in it are taken from the recipe's own folder.

    Args:
        path: the YAML file.
        settings: recipe fields and step options that override the file's.

    Raises:
        UsageError: missing, not YAML, or a field is unknown or wrong; says the line.
    """
    try:
        text = path.read_text()
        document = yaml.safe_load(text)
        lines = _lines(text)
    except OSError as cause:
        raise UsageError(f"The recipe {path} cannot be read.", why=str(cause)) from cause
    except (yaml.YAMLError, UnicodeDecodeError) as cause:
        why = str(cause).splitlines()
        raise UsageError(f"The recipe {path} is not YAML.", why=why) from cause
    if not isinstance(document, dict):
        raise UsageError(
            f"The recipe {path} holds no fields.",
            hint="It needs at least:  model: ...  and  to: ...",
        )
    _override(document, settings or {})
    try:
        recipe = Recipe.model_validate({_FIELDS.get(str(k), k): v for k, v in document.items()})
    except ValidationError as cause:
        raise _explained(path, cause, lines) from cause
    return recipe.model_copy(update=_anchored(recipe, path.parent))


def _override(document: dict[str, Any], settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if "." in name:
            document.setdefault("set", {})[name] = value
        else:
            document[name] = value


def _anchored(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Relative paths of the recipe, taken from its folder."""
    from convkit.samples import RANDOM

    changed: dict[str, Any] = {}
    if (folder / recipe.model).exists():
        changed["model"] = str(folder / recipe.model)
    for field in ("out", "samples", "calibration", "adapter"):
        value = getattr(recipe, field)
        if value is not None and not (field == "calibration" and value == RANDOM):
            changed[field] = folder / value
    if recipe.weights:
        changed["weights"] = str(folder / recipe.weights)
    return changed


def _explained(path: Path, cause: ValidationError, lines: Mapping[str, int]) -> UsageError:
    in_yaml = {field: name for name, field in _FIELDS.items()}
    known = [in_yaml.get(name, name) for name in Recipe.model_fields]
    why = []
    for problem in cause.errors():
        field = str(problem["loc"][0]) if problem["loc"] else ""
        where = f"line {lines[field]}: " if field in lines else ""
        if problem["type"] == "extra_forbidden":
            why.append(f"{where}there is no field '{field}'{_nearest(field, known)}")
        else:
            why.append(f"{where}{field}: {problem['msg']}")
    return UsageError(
        f"The recipe {path} does not fit.", why=why, hint=f"Fields: {', '.join(known)}"
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _lines(text: str) -> dict[str, int]:
    """Top-level field -> line, counted from 1."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return {key.value: key.start_mark.line + 1 for key, _ in pairs}
