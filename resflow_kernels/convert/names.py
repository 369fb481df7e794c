"""Checkpoints of a user's model for the module that replaces it, in which the model's modules have other places."""

from __future__ import annotations

from typing import Any

from torch import nn


class OwnNames:
    """A hook of ``load_state_dict`` that takes a model's own names for those of the module made of it.

    Args:
        model: the user's.
        made: which shares the model's modules, in other places.
    """

    def __init__(self, model: nn.Module, made: nn.Module) -> None:
        self._places: dict[str, list[str]] = {}
        there: dict[int, list[str]] = {}
        for name, tensor in _tensors(made):
            there.setdefault(id(tensor), []).append(name)
        for name, tensor in _tensors(model):
            self._places[name] = there.get(id(tensor), [])

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, places in self._places.items():
            if prefix + name not in state:
                continue
            for place in places:
                state.setdefault(prefix + place, state[prefix + name])
            if name not in places:
                del state[prefix + name]


def _tensors(module: nn.Module) -> list[tuple[str, Any]]:
    parameters = list(module.named_parameters(remove_duplicate=False))
    return [*parameters, *module.named_buffers(remove_duplicate=False)]
