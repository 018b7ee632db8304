"""Imports a transformers network class without what only training and serving need.

Importing any network of transformers 5 loads torch's compiler (`torch._dynamo`), its distributed
tensors, scipy and scikit-learn where they are installed: 1300 modules, 110 MB and 1.5 s that
running a model on the CPU never touches. Here they are left out, and loaded after all if something
does ask for them. Only a process of our own does this: in a user's program, transformers stays as
it is.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

_DYNAMO = "torch._dynamo"
_CONTEXT = "get_init_context"
_ITEM_TO_INDEX = f"{_DYNAMO}._trace_wrapped_higher_order_op"
_DECORATORS = frozenset({"disable", "assume_constant_result", "allow_in_graph"})
"""What transformers takes from the compiler while it is imported: marks that eager code ignores."""
_OPTIONAL = (
    "is_torch_distributed_available",
    "is_accelerate_available",
    "is_scipy_available",
    "is_sklearn_available",
)


def network_class(name: str) -> Any:
    """`transformers.NAME`, or None where there is no such class."""
    import transformers

    if "transformers.modeling_utils" in sys.modules:
        return getattr(transformers, name, None)
    before = set(sys.modules)
    try:
        with without_compiler(), _without_extras(), _read_once():
            return getattr(transformers, name, None)
    except Exception:  # another version of transformers may need what was left out
        for module in set(sys.modules) - before:
            if module.startswith("transformers."):
                del sys.modules[module]
        return getattr(importlib.reload(transformers), name, None)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Within, `torch._dynamo` is not loaded for a mark that eager code ignores."""
    import torch

    if not _is_our_process() or _DYNAMO in sys.modules:
        yield
        return
    compiler = _DeferredCompiler()
    item = ModuleType(_ITEM_TO_INDEX)
    vars(item)["TransformGetItemToIndex"] = _ItemToIndex
    sys.modules[_DYNAMO] = compiler
    sys.modules[_ITEM_TO_INDEX] = item
    vars(torch)["_dynamo"] = compiler
    try:
        yield
    finally:
        _withdraw()


@contextmanager
def without_meta_device() -> Iterator[None]:
    """Within, `from_pretrained` makes networks on the CPU, of tensors that hold nothing yet.

    On the meta device, where transformers makes them, torch computes ranges and random numbers in
    Python, which loads sympy and 480 other modules.
    """
    try:
        from transformers import initialization
        from transformers.modeling_utils import PreTrainedModel

        before = PreTrainedModel.__dict__[_CONTEXT]
        leave_values_out = initialization.no_init_weights
    except (ImportError, AttributeError, KeyError):  # another version of transformers
        yield
        return
    if not _is_our_process():
        yield
        return

    def on_cpu(kind: Any, *arguments: Any, **named: Any) -> list[Any]:
        import torch

        made = before.__get__(None, kind)(*arguments, **named)
        kept = [context for context in made if not isinstance(context, torch.device)]
        return [*kept, leave_values_out()] if len(kept) < len(made) else kept

    setattr(PreTrainedModel, _CONTEXT, classmethod(on_cpu))
    try:
        yield
    finally:
        setattr(PreTrainedModel, _CONTEXT, before)


class _DeferredCompiler(ModuleType):
    """Stands for `torch._dynamo`: its marks do nothing, anything else loads the real one."""

    def __init__(self) -> None:
        super().__init__(_DYNAMO)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _DECORATORS and sys.modules.get(_DYNAMO) is self:
            return _unmarked
        _withdraw()
        return getattr(importlib.import_module(_DYNAMO), name)


class _ItemToIndex:
    """Stands for `TransformGetItemToIndex`: making one gives the real one, compiler and all."""

    def __new__(cls) -> Any:
        _withdraw()
        return importlib.import_module(_ITEM_TO_INDEX).TransformGetItemToIndex()


def _unmarked(function: Any = None, *_: Any, **__: Any) -> Any:
    return function if callable(function) else _unmarked


@contextmanager
def _without_extras() -> Iterator[None]:
    """Within, transformers takes packages that only training and serving need for absent."""
    import transformers.utils as names
    from transformers.utils import import_utils

    known = [(place, name) for place in (names, import_utils) for name in _OPTIONAL]
    before = [(place, name, getattr(place, name)) for place, name in known if hasattr(place, name)]
    if not _is_our_process():
        before = []
    for place, name, _ in before:
        setattr(place, name, _not_available)
    try:
        yield
    finally:
        for place, name, real in before:
            setattr(place, name, real)


@contextmanager
def _read_once() -> Iterator[None]:
    """Within, transformers does not look a second time for what its thousands of files define.

    It does so when it is imported, and again when `transformers.models` is.
    """
    import transformers
    from transformers.utils import import_utils

    real = import_utils.define_import_structure
    folder = Path(transformers.__file__).parent / "models"

    def known(path: Any, prefix: str | None = None) -> Any:
        if prefix is not None or Path(path).parent != folder:
            return real(path, prefix)
        found = real(folder, prefix="models")  # it was kept, and what lies beside models added
        return {
            needs: {
                name.removeprefix("models."): defined
                for name, defined in files.items()
                if name.startswith("models.")
            }
            for needs, files in found.items()
        }

    if _is_our_process():
        setattr(import_utils, real.__name__, known)
    try:
        yield
    finally:
        setattr(import_utils, real.__name__, real)


def _withdraw() -> None:
    """Takes the stand-ins away, so that the next import of the compiler is a real one."""
    import torch

    if isinstance(sys.modules.get(_DYNAMO), _DeferredCompiler):
        del sys.modules[_DYNAMO]
        sys.modules.pop(_ITEM_TO_INDEX, None)
        vars(torch).pop("_dynamo", None)


def _not_available(*_: Any, **__: Any) -> bool:
    return False


def _is_our_process() -> bool:
    return "CONVKIT_PROCESS" in os.environ
