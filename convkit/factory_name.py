"""How a user names the factory of a network, and the weights that go with it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

from convkit.errors import ModelError, UsageError

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def matches(text: str) -> bool:
    """Whether a text is of the form `package.module:factory`."""
    return _FACTORY.fullmatch(text) is not None


def split_weights(weights: str | Path | None) -> tuple[Path | None, str | None]:
    """`FILE` or `FILE:KEY` as (path, key); a colon inside an existing file's name is kept."""
    text = str(weights) if weights is not None else ""
    if not text:
        return None, None
    if Path(text).exists() or ":" not in text:
        return Path(text).expanduser(), None
    file, _, key = text.rpartition(":")
    return Path(file).expanduser(), key


def module_file(factory: str) -> Path:
    """The source file of a factory's module, found without importing the module itself.

    Raises:
        ModelError: there is no such module.
    """
    module = factory.partition(":")[0]
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        spec = importlib.util.find_spec(module)
    except ImportError as cause:
        raise _no_module(module) from cause
    if spec is None or spec.origin is None:
        raise _no_module(module)
    return Path(spec.origin)


def check_is_no_file(text: str) -> None:
    """Explains `nets.py:build`, where `nets:build` is meant. Raises UsageError."""
    file, _, factory = text.rpartition(":")
    if file.endswith(".py") and factory.isidentifier() and Path(file).is_file():
        raise UsageError(
            f"{text} names a factory by its file; it is named by its module.",
            hint=f"In the folder {Path(file).parent.absolute()}:  {Path(file).stem}:{factory}",
        )


def _no_module(module: str) -> ModelError:
    return ModelError(
        f"There is no Python module {module}.",
        why=f"Searched in {Path.cwd()} and the installed packages.",
        hint="Run from the folder that holds it, or set PYTHONPATH.",
    )
