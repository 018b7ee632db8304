"""Sees to it that an exported program, `.pt2`, holds no code before PyTorch reads it.

PyTorch's own loader evaluates the symbolic sizes and guards in the file as Python, writes its names
into generated source, resolves call targets by attribute from `torch` (so `torch.os.system` would
do), falls back to full unpickling, and loads compiled libraries. Each of these is checked here
against what real programs hold; anything else is refused.

Source: `torch._export.serde.serialize` and `torch.export._unlift` of PyTorch 2.13.
"""

from __future__ import annotations

import ast
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convkit.errors import ModelError, UnsafeError
from convkit.formats.torch_pickle import read_pickled_stream

_TARGETS = re.compile(
    r"torch\.ops(\.\w+){2,3}|_operator\.[a-z]\w*|math\.[a-z]\w*|torch\.sym_\w+|torch\._sym_\w+"
)
_FILE_OPERATORS = re.compile(r"torch\.ops\.\w+\.(save|from_file|load)\b.*")
_NAMES = re.compile(r"[\w.\-/]*")
_COMPILED = re.compile(r"(.*/)?data/aotinductor/.*|.*\.(so|pyd|dll|dylib|cpp|cubin|py)")
_PLAIN_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp,
    ast.UnaryOp, ast.operator, ast.unaryop, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop,
    ast.Tuple,
)  # fmt: skip
_GUARD_NODES = (*_PLAIN_NODES, ast.Subscript, ast.Attribute, ast.IfExp)
_GUARD_CALLS = frozenset({"size", "stride", "storage_offset", "numel", "dim"})
_EXPRESSION_CALLS = frozenset(
    [
        "Symbol",
        "Integer",
        "Float",
        "Rational",
        "Add",
        "Mul",
        "Pow",
        "Mod",
        "Max",
        "Min",
        "Abs",
        "Eq",
        "Ne",
        "Lt",
        "Le",
        "Gt",
        "Ge",
        "And",
        "Or",
        "Not",
        "StrictLessThan",
        "LessThan",
        "StrictGreaterThan",
        "GreaterThan",
        "Equality",
        "Unequality",
        "Piecewise",
        "ExprCondPair",
        "floor",
        "ceiling",
        "FloorDiv",
        "ModularIndexing",
        "Where",
        "PythonMod",
        "CleanDiv",
        "CeilDiv",
        "CeilToInt",
        "FloorToInt",
        "TruncToInt",
        "TruncToFloat",
        "RoundToInt",
        "RoundDecimal",
        "ToFloat",
        "Identity",
        "FloatPow",
        "PowByNatural",
        "FloatTrueDiv",
        "IntTrueDiv",
        "IsNonOverlappingAndDenseIndicator",
        "LShift",
        "RShift",
        "BitwiseFn_bitwise_and",
        "BitwiseFn_bitwise_or",
        "BitwiseFn_bitwise_xor",
        "OpaqueUnaryFn_sqrt",
        "OpaqueUnaryFn_log2",
        "sqrt",
        "log",
        "exp",
        "min",
        "max",
        "math",
        "floor",
    ]
)


def check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuses compiled libraries, and pickles that hold more than tensors.

    Raises:
        UnsafeError: there is one.
    """
    for name in archive.namelist():
        if _COMPILED.fullmatch(name):
            raise _refusal(path, f"it holds compiled or source code, {name}", name)
        with archive.open(name) as entry:
            start = entry.read(2)
        is_pickle = start == b"PK" or (start[:1] == b"\x80" and start[1:] in (b"\2", b"\3", b"\4"))
        if is_pickle and "/weights/weight_" not in f"/{name}":  # raw tensor bytes may look alike
            read_pickled_stream(io.BytesIO(archive.read(name)), path)


def check_program(path: Path, program: Any) -> None:
    """Refuses call targets, sizes, guards and names that are not what a program needs.

    Raises:
        UnsafeError: one would run code.
        ModelError: a size is no expression.
    """
    for target in strings_under(program, "target"):
        if not _TARGETS.fullmatch(target) or _FILE_OPERATORS.fullmatch(target):
            raise _refusal(path, f"it calls {target}, which is no tensor operator", target)
    for text in strings_under(program, "expr_str"):
        _check_expression(path, text, _PLAIN_NODES)
    for text in program.get("guards_code") or ():
        _check_expression(path, str(text), _GUARD_NODES)
    for name in strings_under(program, "name"):
        if not _NAMES.fullmatch(name):
            raise _refusal(path, f"a value is named {name[:80]!r}", name[:200])
    for text in (*strings_under(program, "in_spec"), *strings_under(program, "out_spec")):
        if "defaultdict" in text or "__enum__" in text:
            raise _refusal(path, "its argument tree imports modules", text[:200])
    if next(strings_under(program, "class_fqn"), None):
        raise _refusal(path, "it holds a custom class", "custom_obj")


def strings_under(node: Any, key: str) -> Iterator[str]:
    """Every string under `key`, anywhere in a JSON document."""
    pending = [node]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if isinstance(node.get(key), str):
                yield node[key]
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)


def _check_expression(path: Path, text: str, allowed: tuple[type[ast.AST], ...]) -> None:
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as cause:
        raise ModelError(f"{path} is damaged: '{text[:60]}' is no size expression.") from cause
    for node in ast.walk(tree):
        harmless = isinstance(node, allowed)
        if isinstance(node, ast.Call):
            harmless = harmless and _is_harmless_call(node.func)
        elif isinstance(node, ast.Attribute):
            harmless = harmless and node.attr in _GUARD_CALLS | {"shape", "floor", "ceil", "trunc"}
        if not harmless:
            raise _refusal(path, f"where a size is due it has {text[:80]!r}", text[:200])


def _is_harmless_call(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id in _EXPRESSION_CALLS
    return isinstance(function, ast.Attribute)  # the attribute itself is checked as a node


def _refusal(path: Path, reason: str, found: str) -> UnsafeError:
    return UnsafeError(
        f"{path} holds code: {reason}.",
        why="PyTorch would run it on loading. Nothing of it was run.",
        hint="If you trust where the file comes from:  --trust",
        found=found,
    )
