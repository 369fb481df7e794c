"""Imports packages without the libraries that they name at their top and that no model here uses."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


@contextmanager
def stand_ins(*names: str, always: bool = False) -> Iterator[None]:
    """In this block modules of these names are empty, unless they are installed; ``always``: even then.

    Any attribute of such a module is a class that does nothing.
    """
    finder = _Finder(names)
    sys.meta_path.insert(0 if always else len(sys.meta_path), finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in finder.made:  # others that look for the library later should not find it
            sys.modules.pop(name, None)


class _Finder(MetaPathFinder, Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.made: list[str] = []

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        wanted = any(name == own or name.startswith(f"{own}.") for own in self._names)
        return ModuleSpec(name, self, is_package=True) if wanted else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.made.append(spec.name)
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


class _Empty(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": _do_nothing})


def _do_nothing(self: object, *args: Any, **kwargs: Any) -> None:
    pass
