"""Imports a package without what it imports but may never use."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def deferred(*names: str) -> Iterator[None]:
    """Within, modules of these names are loaded only when something looks into them.

    Code that was imported here keeps a stand-in, which finds the real module from then on;
    code imported later gets the real one at once. Modules loaded already are left alone.
    """
    stand_ins = {name: _StandIn(name) for name in names if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for stand_in in stand_ins.values():
            stand_in.withdraw()


class _StandIn(ModuleType):
    """Stands for a module; loads it when asked for anything in it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.util.find_spec(name)
        if self.__spec__ is not None and self.__spec__.submodule_search_locations is not None:
            self.__path__ = list(self.__spec__.submodule_search_locations)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.withdraw()
        return getattr(importlib.import_module(self.__name__), name)

    def withdraw(self) -> None:
        """From now on an import gives the real module."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
