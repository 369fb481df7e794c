"""Detects changes of a module since the last call without walking it again.

A module tree is a set of dictionaries that PyTorch changes in place: children, parameters, buffers, hooks. Collected
once, they can be compared on every call in a few microseconds.
"""

from __future__ import annotations

from itertools import chain
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_version = attrgetter("_version")
_is_inference = Tensor.is_inference
_pointer = Tensor.data_ptr


class Watch:
    """The dictionaries of a module and its descendants, as they were when this object was made."""

    def __init__(self, module: nn.Module) -> None:
        modules = list(module.modules())
        self._children = [one._modules for one in modules]
        self._child_list = self._flat(self._children)
        self._tensors = [tensors for one in modules for tensors in (one._parameters, one._buffers)]
        self._hooks = [getattr(one, hooks) for one in modules if one is not module for hooks in HOOKS]
        self._attributes = [one.__dict__ for one in modules if one is not module]
        self._altered = self._is_altered()
        # Decisions about the module, by question; they hold until something above changes.
        self.answers: dict[Any, bool] = {}

    def changed(self) -> bool:
        """Whether modules were added, removed or replaced, or gained or lost hooks or their own ``forward``."""
        return self._flat(self._children) != self._child_list or self._is_altered() != self._altered

    def state(self) -> list[Any] | None:
        """A value that is equal exactly while no tensor is replaced or modified; ``None`` if that cannot be told."""
        tensors = [tensor for tensor in self._flat(self._tensors) if tensor is not None]
        if any(map(_is_inference, tensors)):  # inference tensors have no version counter
            return None
        return [*map(id, tensors), *map(_version, tensors), *map(_pointer, tensors)]

    @staticmethod
    def _flat(dictionaries: list[Any]) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, dictionaries)))

    def _is_altered(self) -> bool:
        return any(self._hooks) or any("forward" in attributes for attributes in self._attributes)


def why_altered(module: nn.Module) -> str | None:
    """Why an op that reads a module's parameters does not compute what it does: hooks, or a forward of its own."""
    name = type(module).__name__
    if any(getattr(module, hooks) for hooks in HOOKS):
        return f"its {name} has hooks"
    return f"its {name} has a forward of its own" if "forward" in module.__dict__ else None
