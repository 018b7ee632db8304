"""Sources of library functions, gathered so that a generated module needs nothing but PyTorch.

A function is taken with everything of the library that it names, and so on; what each library
module imports from elsewhere is imported likewise.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_LIBRARY = "convkit.converters.onnx_to_torch."
_HEAD = """\"\"\"Operators of ONNX that are no single call in PyTorch.\"\"\"

from __future__ import annotations
"""


@dataclass(frozen=True)
class _Module:
    """A library module: what each of its names is."""

    name: str
    source: str
    definitions: Mapping[str, ast.stmt]
    own_imports: Mapping[str, tuple[str, str]]
    foreign_imports: Mapping[str, str]


@dataclass
class _Gathered:
    """Definitions found so far, in the order in which they were."""

    definitions: dict[tuple[str, str], ast.stmt] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)


def operators_source(functions: Iterable[Callable[..., Any]]) -> str:
    """The source of a module with these functions; "" for none."""
    gathered = _Gathered()
    for function in functions:
        _gather(function.__module__, function.__name__, gathered)
    if not gathered.definitions:
        return ""
    chunks = [_HEAD, "\n".join(_sorted_imports(gathered.imports)), ""]
    modules = dict.fromkeys(name for name, _ in gathered.definitions)
    renamed = _renamed(gathered)
    for module in modules:
        read = _module(module)
        found = [(k[1], s) for k, s in gathered.definitions.items() if k[0] == module]
        for _, statement in sorted(found, key=lambda item: item[1].lineno):
            chunks.append(_text(read, statement, renamed))
    return "\n".join(chunks) + "\n"


def _sorted_imports(lines: Iterable[str]) -> list[str]:
    return sorted(lines, key=lambda line: ("torch" in line, line.startswith("from"), line))


def _gather(module: str, name: str, gathered: _Gathered) -> None:
    read = _module(module)
    if name in read.own_imports:
        _gather(*read.own_imports[name], gathered)
    elif name in read.foreign_imports:
        gathered.imports.add(read.foreign_imports[name])
    elif name in read.definitions and (module, name) not in gathered.definitions:
        statement = read.definitions[name]
        gathered.definitions[module, name] = statement
        for used in _names_in(statement):
            _gather(module, used, gathered)


def _names_in(statement: ast.stmt) -> list[str]:
    return list(
        dict.fromkeys(node.id for node in ast.walk(statement) if isinstance(node, ast.Name))
    )


@functools.cache
def _module(name: str) -> _Module:
    source = inspect.getsource(sys.modules[name])
    definitions: dict[str, ast.stmt] = {}
    own: dict[str, tuple[str, str]] = {}
    foreign: dict[str, str] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            definitions[statement.name] = statement
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            definitions[statement.targets[0].id] = statement
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            definitions[statement.target.id] = statement
        elif isinstance(statement, ast.ImportFrom | ast.Import):
            _note_import(statement, own, foreign)
    return _Module(name, source, definitions, own, foreign)


def _note_import(
    statement: ast.ImportFrom | ast.Import,
    own: dict[str, tuple[str, str]],
    foreign: dict[str, str],
) -> None:
    for alias in statement.names:
        name = alias.asname or alias.name
        tail = f" as {alias.asname}" if alias.asname else ""
        if isinstance(statement, ast.Import):
            foreign[name.partition(".")[0]] = f"import {alias.name}{tail}"
        elif statement.module and statement.module.startswith(_LIBRARY):
            own[name] = (statement.module, alias.name)
        elif statement.module != "__future__":
            foreign[name] = f"from {statement.module} import {alias.name}{tail}"


def _renamed(gathered: _Gathered) -> dict[tuple[str, str], str]:
    """New names for definitions that modules have under the same name."""
    owner: dict[str, str] = {}
    renamed: dict[tuple[str, str], str] = {}
    for module, name in gathered.definitions:
        if owner.setdefault(name, module) != module:
            renamed[module, name] = f"{name}_{module.rpartition('.')[2]}"
    return renamed


def _text(module: _Module, statement: ast.stmt, renamed: Mapping[tuple[str, str], str]) -> str:
    """A definition's source, names replaced where they clash with another module's."""
    first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
    lines = module.source.splitlines()[first - 1 : statement.end_lineno]
    spots = []
    for node in ast.walk(statement):
        if isinstance(node, ast.Name):
            key = module.own_imports.get(node.id, (module.name, node.id))
            if key in renamed or key[1] != node.id:
                spots.append(
                    (node.lineno - first, node.col_offset, node.id, renamed.get(key, key[1]))
                )
    for row, column, old, new in sorted(set(spots), reverse=True):
        lines[row] = lines[row][:column] + new + lines[row][column + len(old) :]
    name = getattr(statement, "name", "")
    if (module.name, name) in renamed:
        row = statement.lineno - first
        lines[row] = lines[row].replace(f"def {name}(", f"def {renamed[module.name, name]}(", 1)
    is_block = isinstance(statement, ast.FunctionDef | ast.ClassDef)
    return ("\n\n" if is_block else "") + "\n".join(lines)
