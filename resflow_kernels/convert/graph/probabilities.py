"""Reads a model's outputs as probabilities of tasks: sigmoids of logits, and products of them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import fx

from ..patterns import CannotFuse
from .dots import SAME, joined_dim, kind_of, seen_through, where

_PRODUCTS = ("mul", "multiply")
_DIVIDED = ("split", "split_with_sizes", "chunk", "unbind")


@dataclass(frozen=True)
class Column:
    """A logit: one column of a node's rows."""

    node: fx.Node
    column: int


Factors = tuple[Column, ...]  # the logits whose sigmoids are multiplied


@dataclass
class Tasks:
    """Each task's own logit, and the tasks whose probabilities theirs are multiplied with (-1: none)."""

    own: list[Column]
    parents: tuple[int, ...]

    @property
    def conditional(self) -> bool:
        return any(parent >= 0 for parent in self.parents)


def read_tasks(name: str, outputs: Sequence[Any]) -> Tasks:
    """The tasks of a model's outputs, in their order.

    Raises:
        CannotFuse: an output is neither a logit, nor its sigmoid, nor that times the probability of an earlier output.
    """
    found = [one for output in outputs for one in _outputs(name, output)]
    own: list[Column] = []
    parents: list[int] = []
    for task, factors in enumerate(found):
        parent = -1
        if len(factors) > 1:
            parent = next((at for at in range(task) if _is_one_more(factors, found[at])), -1)
            if parent < 0:
                raise CannotFuse(
                    f"{name}: its output {task} is a product of {len(factors)} probabilities; a bundle holds such a "
                    "one if all of them but one are the product of an earlier output (return that too, before it)"
                )
        rest = list(factors)
        for one in found[parent] if parent >= 0 else ():
            rest.remove(one)
        own.append(rest[0])
        parents.append(parent)
    return Tasks(own, tuple(parents))


def _is_one_more(factors: Factors, parent: Factors) -> bool:
    rest = list(factors)
    for one in parent:
        if one not in rest:
            return False
        rest.remove(one)
    return len(rest) == 1


def _outputs(name: str, node: Any) -> list[Factors]:
    if not isinstance(node, fx.Node):
        raise CannotFuse(f"{name}: its outputs must be tensors, got {node!r}")
    read = _probabilities(node)
    if read is not None:
        return read
    inner = seen_through(node, SAME)
    if kind_of(inner) in ("cat", "stack") and _along_columns(inner):
        return [one for part in inner.args[0] for one in _outputs(name, part)]
    if kind_of(inner) in ("linear", "addmm", "add"):
        return [(Column(inner, at),) for at in range(_columns(inner))]
    raise CannotFuse(
        f"{name}: its output ends in {where(inner) if inner.op == 'call_function' else inner.name}; a bundle holds "
        "logits, sigmoids of logits, and the products of those with an earlier output"
    )


def _probabilities(node: Any) -> list[Factors] | None:
    """A node's columns as products of sigmoids; ``None``: they are none."""
    node = seen_through(node, SAME)
    kind = kind_of(node)
    if kind == "sigmoid":
        logit = seen_through(node.args[0], SAME)
        return [(Column(logit, at),) for at in range(_columns(logit))]
    if kind in _PRODUCTS:
        first, second = (_probabilities(one) for one in node.args[:2])
        if first is None or second is None:
            return None
        count = max(len(first), len(second))
        if not all(len(one) in (1, count) for one in (first, second)):
            return None
        return [first[at % len(first)] + second[at % len(second)] for at in range(count)]
    if kind in ("cat", "stack") and _along_columns(node):
        parts = [_probabilities(part) for part in node.args[0]]
        return None if None in parts else [one for part in parts for one in part or ()]
    return _part(node, kind)


def _part(node: Any, kind: str) -> list[Factors] | None:
    """Columns cut out of others."""
    if isinstance(node, fx.Node) and node.target is operator.getitem:
        whole: Any = node.args[0]
        at: Any = node.args[1]
        if kind_of(whole) not in _DIVIDED or not _second(whole):
            return None
        inner = _probabilities(whole.args[0])
        sizes = [int(one.shape[1]) if one.dim() > 1 else 1 for one in whole.meta["val"]]
        return None if inner is None else inner[sum(sizes[:at]) : sum(sizes[: at + 1])]
    if kind not in ("slice", "narrow", "select") or not _second(node):
        return None
    inner = _probabilities(node.args[0])
    start = node.args[2] if len(node.args) > 2 else 0
    if inner is None or not isinstance(start, int) or (kind == "slice" and len(node.args) > 4):
        return None
    start %= len(inner)
    return inner[start : start + _columns(node)]


def _second(node: fx.Node) -> bool:
    """Whether an op that divides works on the second of two dimensions."""
    place = {"select": 1, "slice": 1, "narrow": 1, "unbind": 1}.get(kind_of(node), 2)
    dim = node.args[place] if len(node.args) > place else node.kwargs.get("dim", 0)
    return len(node.args[0].meta["val"].shape) == 2 and dim in (1, -1)  # type: ignore[union-attr]


def _along_columns(node: fx.Node) -> bool:
    return len(node.meta["val"].shape) == 2 and joined_dim(node) == 1


def _columns(node: fx.Node) -> int:
    return prod(int(size) for size in node.meta["val"].shape[1:])
