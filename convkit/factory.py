"""Finds and calls factories: `package.module:callable`, a user's function that builds a model.

SECURITY: this runs the user's own code, which he named on the command line.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convkit.errors import ModelError, UnknownNameError, UsageError


def find_factory(name: str) -> Any:
    """What `package.module:callable` names; its module is imported.

    Raises:
        ModelError: there is no such module, or importing it fails.
        UnknownNameError: the module has no such name.
        UsageError: it is not callable.
    """
    module_name, _, attribute = name.partition(":")
    with _working_folder_importable():
        try:
            found: Any = importlib.import_module(module_name)
        except (Exception, SystemExit) as cause:  # a script may end the process when imported
            raise _import_failure(module_name, cause) from cause
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [key for key in vars(found) if callable(vars(found)[key])]
            nearest = difflib.get_close_matches(part, known, n=8, cutoff=0.0)
            raise UnknownNameError(f"factory in {module_name}", part, nearest)
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(
            f"{name} is {kind_of(found)}; a factory must be callable.",
            hint="Name a class or a function that gives the network.",
        )
    return found


def _import_failure(module: str, cause: Exception | SystemExit) -> ModelError:
    missing = getattr(cause, "name", None) if isinstance(cause, ModuleNotFoundError) else None
    if missing and (module == missing or module.startswith(f"{missing}.")):
        return ModelError(
            f"There is no Python module {missing}.",
            why=f"Searched in {Path.cwd()} and the installed packages.",
            hint="Run from the folder that holds it, or set PYTHONPATH.",
        )
    hint = f"pip install {missing.partition('.')[0]}" if missing else ""
    return ModelError(
        f"Importing {module} failed.", why=f"{type(cause).__name__}: {cause}", hint=hint
    )


def call_factory(name: str, factory: Any) -> Any:
    """What a factory gives. Raises ModelError where the call fails."""
    try:
        return factory()
    except (Exception, SystemExit) as cause:
        hint = ""
        if isinstance(cause, TypeError) and "argument" in str(cause):
            hint = "A factory is called without arguments: write a function that gives them."
        raise ModelError(
            f"{name}() failed.", why=f"{type(cause).__name__}: {cause}", hint=hint
        ) from cause


@contextmanager
def _working_folder_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    added = folder not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        # It stays: a factory may import more of its package when it is called.
        importlib.invalidate_caches()


def kind_of(value: Any) -> str:
    """A value's type in words: `a dict`."""
    return f"a {type(value).__name__}"
