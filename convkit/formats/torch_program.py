"""Exported programs, `.pt2`: what `torch.export.save` writes.

SECURITY: what PyTorch's own loader would run is checked first, see `torch_program_safety`.

Source: `torch._export.serde` (schema, serialize) and `torch.export.pt2_archive` for the layout.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact, Description, Dimension, Precision, TensorSpec
from convkit.errors import ModelError
from convkit.formats.torch_program_safety import check_archive, check_program
from convkit.formats.torch_runner import Example
from convkit.naming import named_leaves
from convkit.quantization.torch_program_quantizing import MARK
from convkit.step import Feeds, Sizes

if TYPE_CHECKING:
    import torch

_DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32",
    8: "float64", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16",
    29: "float8_e4m3fn", 30: "float8_e5m2",
}  # fmt: skip
"""Source: `torch._export.serde.schema.ScalarType`."""


def is_program(path: Path) -> bool:
    """Whether a file is an archive with an exported program."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        return False
    return any(re.fullmatch(r"(.*/)?models/[^/]+\.json", name) for name in names) or (
        "serialized_exported_program.json" in names
    )


def describe_program(path: Path, *, trust: bool = False) -> Description:
    """Signature, precision, parameter count and operators, from the archive's JSON alone.

    Raises:
        ModelError: damaged, or holds no program.
        UnsafeError: an expression, a call target or a pickle in it would run code.
    """
    program, weights = _read(path, trust)
    graph = program["graph_module"]["graph"]
    values = graph["tensor_values"]
    users, results = (_tensor_names(program, side) for side in ("input", "output"))
    names = _dimension_names(values, users)
    elements: dict[str, int] = {}
    for entry in weights.values():
        spec = _spec("", entry["tensor_meta"], {})
        count = 1
        for size in spec.shape:
            count *= size if isinstance(size, int) else 1
        elements[spec.dtype] = elements.get(spec.dtype, 0) + count
    operators: dict[str, int] = {}
    for node in graph["nodes"]:
        short = node["target"].removeprefix("torch.ops.")
        operators[short] = operators.get(short, 0) + 1
    outputs = zip(_output_names(program), results, strict=True)
    mark = _mark(path)
    precision = Precision.of_weights(elements)
    count = sum(n for dtype, n in elements.items() if not dtype.startswith("int"))
    return Description(
        Precision(mark["precision"]) if mark else precision,
        inputs=tuple(_spec(name, values[name], names) for name in users),
        outputs=tuple(_spec(given, values[name], names) for given, name in outputs),
        parameter_count=int(mark["parameter_count"]) if mark else count,
        operators=operators,
        details={
            "container": "exported program",
            **({"quantization": str(mark["words"])} if mark else {}),
        },
    )


def _mark(path: Path) -> dict[str, Any] | None:
    """What convkit wrote about quantized weights; codes of four bits look like any bytes."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(f"/extra/{MARK}")]
        try:
            mark: dict[str, Any] = json.loads(archive.read(names[0])) if names else {}
            is_whole = {"precision", "words", "parameter_count"} <= mark.keys()
            return mark if is_whole and mark["precision"] in ("int8", "q4") else None
        except (ValueError, AttributeError):
            return None


def load_program(path: Path, *, trust: bool = False) -> torch.export.ExportedProgram:
    """The exported program, checked first.

    Raises:
        ModelError: PyTorch cannot read it.
        UnsafeError: see `describe_program`.
    """
    import torch

    _read(path, trust)
    try:
        return torch.export.load(path)
    except Exception as cause:
        first = (str(cause).strip().splitlines() or [""])[0]
        raise ModelError(
            f"PyTorch {torch.__version__} cannot load the exported program {path}.",
            why=f"{type(cause).__name__}: {first[:300]}",
            hint="Export it again with this PyTorch:  torch.export.save(program, PATH)",
        ) from cause


def inputs_of_program(artifact: Artifact) -> tuple[tuple[TensorSpec, ...], Example]:
    """Input specs of a program and a maker of inputs within the ranges it was exported for."""
    from convkit.samples import draw, size_of

    trust = artifact.opening.trust
    specs = artifact.opening.inputs or describe_program(artifact.path, trust=trust).inputs
    limits = _ranges(artifact.path, trust)

    def example(sizes: Sizes, seed: int) -> Feeds:
        names = {name for spec in specs for name in spec.dynamic}
        within = {}
        for name in names:
            low, high = limits.get(name, (1, None))
            size = max(size_of(name, sizes), low)
            within[name] = size if high is None else min(size, high)
        return draw(specs, within, seed)

    return specs, example


def _read(path: Path, trust: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The program's JSON and the table of its weights, both checked for code."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            found = [n for n in names if re.fullmatch(r"(.*/)?models/[^/]+\.json", n)]
            if not found:
                raise ModelError(
                    f"{path} was written by a PyTorch older than 2.9, or holds no program.",
                    why=f"It holds {', '.join(names[:6])}.",
                    hint="Export it again with a current PyTorch (torch.export.save).",
                )
            program = json.loads(archive.read(found[0]))
            tables = [n for n in names if n.endswith("_weights_config.json")]
            weights = json.loads(archive.read(tables[0]))["config"] if tables else {}
            if not trust:
                check_archive(path, archive)
                check_program(path, program)
        program["graph_module"]["graph"]["tensor_values"].items()
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError, EOFError) as cause:
        raise ModelError(
            f"{path} is damaged: its program cannot be read.",
            why=f"The file has {path.stat().st_size} bytes; {type(cause).__name__}: {cause}",
            hint="Copy it again, or export it again.",
        ) from cause
    return program, weights


def _dimension_names(values: Mapping[str, Any], users: list[str]) -> dict[str, str]:
    """Symbol -> name: `batch` for a first axis, `height` and `width` of images, else the symbol.

    The file keeps no names of its own.
    """
    names: dict[str, str] = {}
    for user in users:
        sizes = values[user]["sizes"]
        usual = ("batch", None, "height", "width") if len(sizes) == 4 else ("batch",)
        for axis, size in enumerate(sizes):
            symbol = _symbol(size)
            name = usual[axis] if axis < len(usual) else None
            if symbol and symbol not in names:
                names[symbol] = name if name and name not in names.values() else symbol
    return names


def _symbol(size: Mapping[str, Any]) -> str:
    text = size.get("as_expr", {}).get("expr_str", "")
    found = re.fullmatch(r"Symbol\('(\w+)'.*\)|(\w+)", text)
    return (found[1] or found[2]) if found else text


def _spec(name: str, meta: Mapping[str, Any], names: Mapping[str, str]) -> TensorSpec:
    shape: list[Dimension] = []
    for axis, size in enumerate(meta["sizes"]):
        if "as_int" in size:
            shape.append(int(size["as_int"]))
        else:
            symbol = _symbol(size)
            shape.append(names.get(symbol) or (symbol if symbol.isidentifier() else f"dim{axis}"))
    return TensorSpec(name, _DTYPES.get(meta["dtype"], "float32"), tuple(shape))


def _output_names(program: Mapping[str, Any]) -> list[str]:
    """Names of the outputs that are tensors, from the tree of what the network returned."""
    entries = _user_arguments(program, "output")
    try:
        call = program["graph_module"]["module_call_graph"][0]["signature"]
        names = [name for name, _ in named_leaves(_skeleton(json.loads(call["out_spec"])[1]))]
    except (KeyError, IndexError, TypeError, ValueError, RecursionError):
        names = []
    if len(names) != len(entries):
        names = [name for name, _ in named_leaves([...] * len(entries))]
    return [name for name, entry in zip(names, entries, strict=True) if "as_tensor" in entry]


def _skeleton(tree: Mapping[str, Any]) -> Any:
    """The containers of a serialized `torch.utils._pytree.TreeSpec`, with `...` for the leaves."""
    if tree["type"] is None:
        return ...
    children = [_skeleton(child) for child in tree["children_spec"]]
    keys = json.loads(tree["context"])
    has_keys = isinstance(keys, list) and len(keys) == len(children)
    return dict(zip(keys, children, strict=True)) if has_keys else children


def _user_arguments(program: Mapping[str, Any], side: str) -> list[dict[str, Any]]:
    """What a program's caller gives (`side` is "input") or gets ("output"), in order."""
    specs = program["graph_module"]["signature"][f"{side}_specs"]
    return [spec[f"user_{side}"]["arg"] for spec in specs if f"user_{side}" in spec]


def _tensor_names(program: Mapping[str, Any], side: str) -> list[str]:
    """The graph's own names of the tensors among them."""
    arguments = _user_arguments(program, side)
    return [each["as_tensor"]["name"] for each in arguments if "as_tensor" in each]


def _ranges(path: Path, trust: bool) -> dict[str, tuple[int, int | None]]:
    """Least and greatest size of each named dynamic dimension."""
    program, _ = _read(path, trust)
    values = program["graph_module"]["graph"]["tensor_values"]
    names = _dimension_names(values, _tensor_names(program, "input"))
    return {
        names[symbol]: (max(limit.get("min_val") or 1, 1), limit.get("max_val"))
        for symbol, limit in program.get("range_constraints", {}).items()
        if symbol in names
    }
