"""A user's model as a call shows it: its graph, its tensors by the names that the user knows, and what a side reads."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .graph.module import unfused
from .graph.reach import Reach
from .graph.sides import read_parts
from .graph.trace import Traced, inner_model, trace


@dataclass(frozen=True)
class TracedModel:
    """A user's own model, without wrappers, and its graph in one call."""

    model: nn.Module
    name: str  # of its class
    traced: Traced
    tensors: dict[str, Tensor]  # parameters and buffers, under every name
    names: list[str]  # of the call's leaves

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Any) -> TracedModel:
        """Trace a model.

        Args:
            model: the user's, also compiled, wrapped or fused.
            example_inputs: its positional arguments as a tuple, or its one argument.

        Raises:
            CannotFuse: torch.export cannot trace it.
        """
        model = unfused(inner_model(model))
        args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        traced = trace(model, args, {})
        read_parts(traced.graph)
        tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        tensors |= dict(model.named_buffers(remove_duplicate=False))
        return cls(model, type(model).__name__, traced, tensors, leaf_names(model, args))

    def reach(self) -> Reach:
        """What each node reads of the call's tensors. It runs the model once."""
        return Reach(self.traced, self.tensors)


def leaf_names(model: nn.Module, args: tuple[Any, ...]) -> list[str]:
    """A call's leaves in the user's words: ``user``, ``x['age']``."""
    given = inspect.signature(model.forward).bind(*args).arguments.items()
    return [name + pytree.keystr(path) for name, value in given for path, _ in pytree.tree_flatten_with_path(value)[0]]


def words_of(name: str) -> list[str]:
    """The names in a leaf's name: ``x`` and ``age`` of ``x['age']``."""
    return name.replace("[", ".").replace("]", "").replace("'", "").split(".")


class SideArguments:
    """Picks a side's tensors out of what its caller gives.

    Args:
        side: its name, for messages.
        spec: of all positional arguments of the model.
        chosen: which leaves of the call the side reads.
        names: of all leaves of the call.
    """

    def __init__(self, side: str, spec: pytree.TreeSpec, chosen: Sequence[int], names: Sequence[str]) -> None:
        self.side, self.chosen = side, list(chosen)
        self._names = list(names)
        self._specs: list[tuple[pytree.TreeSpec, int]] = []  # of the arguments with leaves of this side
        first = 0
        for child in spec.children():
            if any(first <= at < first + child.num_leaves for at in self.chosen):
                self._specs.append((child, first))
            first += child.num_leaves
        self.plain = all(_is_plain(child) for child, _ in self._specs)

    def leaves(self, given: Any) -> list[Any]:
        """The side's tensors, in order.

        Raises:
            ValueError: an argument or a key is missing.
        """
        values = given if isinstance(given, tuple) and not self._takes_one_tuple() else (given,)
        if len(values) != len(self._specs):
            wanted = ", ".join(self._names[first].split("[")[0] for _, first in self._specs)
            raise ValueError(f"{self.side} must be {len(self._specs)} arguments ({wanted}), got {len(values)}")
        found: list[Any] = []
        for (spec, first), value in zip(self._specs, values, strict=True):
            found += self._picked(spec, first, value)
        return found

    def _takes_one_tuple(self) -> bool:
        return len(self._specs) == 1 and self._specs[0][0].type is tuple

    def _picked(self, spec: pytree.TreeSpec, first: int, value: Any) -> Iterator[Any]:
        inside = [at - first for at in self.chosen if first <= at < first + spec.num_leaves]
        if not inside:
            return
        if spec.is_leaf():
            yield value
            return
        if spec.type not in (dict, list, tuple):
            leaves = pytree.tree_leaves(value)
            if len(leaves) != spec.num_leaves:
                raise ValueError(f"{self._names[first]}: it must be of {spec.num_leaves} parts, got {len(leaves)}")
            yield from (leaves[at] for at in inside)
            return
        children = spec.children()
        for key, child in zip(spec.context if spec.type is dict else range(len(children)), children, strict=True):
            if any(first <= at < first + child.num_leaves for at in self.chosen):
                yield from self._picked(child, first, self._entry(value, key, first))
            first += child.num_leaves

    def _entry(self, value: Any, key: Any, first: int) -> Any:
        try:
            return value[key]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{self.side} must have {self._names[first]}, got none") from None


def _is_plain(spec: pytree.TreeSpec) -> bool:
    return spec.is_leaf() or (spec.type in (dict, list, tuple) and all(map(_is_plain, spec.children())))
