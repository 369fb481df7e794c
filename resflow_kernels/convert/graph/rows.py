"""What a tensor of the graph is to a program: for each of its elements, a column of a value.

A tensor with a batch dimension is an array of ids of its shape, where the batch dimensions have size 1. An id is a
value's number and a column of it, so that views, concatenations and slices are NumPy's own on that array.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from .constants import Const

Ids = NDArray[np.int64]
Size = int | str  # of a dimension; a text is the expression of a dynamic one

_COLUMN_BITS = 32


class NotLowered(Exception):
    """A node has no steps; the text says why, in the user's words."""


@dataclass(eq=False)
class Root:
    """A value that the user's graph computes: a region's input."""

    node: fx.Node
    axes: tuple[int, ...]
    batch: tuple[Size, ...]
    width: int


@dataclass(eq=False)
class Draft:
    """A step in the making; fields as in :class:`~resflow_kernels.core.program.Step`, rows as flat ids."""

    kind: str
    width: int
    inputs: Ids
    batch: tuple[Size, ...]
    node: fx.Node
    activation: str = "identity"
    slope: Const | None = None
    scale: Const | None = None
    shift: Const | None = None
    weight: Const | None = None  # [inputs, width]
    bias: Const | None = None
    groups: int = 1
    epsilon: float = 0.0
    factors: list[Ids] = field(default_factory=list)
    addends: list[Ids] = field(default_factory=list)
    origin: tuple[Any, ...] = ()  # what patterns want to know of how it was made

    def reads(self) -> list[Ids]:
        return [self.inputs, *self.factors, *self.addends]

    @property
    def plain(self) -> bool:
        """Whether it only copies."""
        return self.kind == "copy" and self.activation == "identity" and self.scale is None and not self.factors


@dataclass(eq=False)
class Rows:
    """A tensor's elements; ``axes`` are where the dimensions of ``batch`` stand."""

    ids: Ids
    axes: tuple[int, ...]
    batch: tuple[Size, ...]

    @property
    def flat(self) -> Ids:
        return self.ids.reshape(-1)

    @property
    def row_shape(self) -> tuple[int, ...]:
        return tuple(size for axis, size in enumerate(self.ids.shape) if axis not in self.axes)

    def like(self, ids: Ids) -> Rows:
        return Rows(ids, self.axes, self.batch)


def ids_of(value: int, width: int) -> Ids:
    """All columns of a value."""
    return (np.int64(value) << _COLUMN_BITS) + np.arange(width, dtype=np.int64)


def values_of(ids: Ids) -> Ids:
    return ids >> _COLUMN_BITS


def columns_in(ids: Ids) -> Ids:
    return ids & ((1 << _COLUMN_BITS) - 1)


def runs(ids: Ids) -> list[tuple[int, int]]:
    """Places where consecutive columns of one value begin and end."""
    breaks = np.flatnonzero(np.diff(ids) != 1) + 1
    edges = [0, *breaks.tolist(), len(ids)]
    return list(pairwise(edges))


def shape_of(node: fx.Node) -> tuple[Size, ...] | None:
    """A node's shape, dynamic sizes as texts; ``None`` for what is no tensor."""
    if _SHAPE not in node.meta:
        value = node.meta.get("val")
        node.meta[_SHAPE] = tuple(size_of(size) for size in value.shape) if isinstance(value, Tensor) else None
    shape: tuple[Size, ...] | None = node.meta[_SHAPE]
    return shape


_SHAPE = "resflow_shape"


def unify_batches(graph: fx.Graph) -> None:
    """Give one name to dynamic sizes that are the same because an op joins tensors of them along other dimensions."""
    same: dict[Size, Size] = {}

    def name(size: Size) -> Size:
        while size in same:
            size = same[size]
        return size

    for node in graph.nodes:
        sizes = [shape[0] for one in node.all_input_nodes if (shape := shape_of(one)) and isinstance(shape[0], str)]
        if len(sizes) > 1 and _joins(node):
            for size in sizes[1:]:
                first, other = sorted((name(sizes[0]), name(size)), key=lambda one: (len(str(one)), str(one)))
                if first != other:
                    same[other] = first
    if same:
        for node in graph.nodes:
            shape = shape_of(node)
            if shape is not None:
                node.meta[_SHAPE] = tuple(name(size) for size in shape)


def _joins(node: fx.Node) -> bool:
    """Whether an op wants all its inputs to have one batch size."""
    kind = getattr(node.target, "_opname", "")
    shapes = [shape for one in node.all_input_nodes if (shape := shape_of(one))]
    if kind in ("cat", "stack"):
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        return kind == "stack" or (isinstance(dim, int) and dim % len(shapes[0]) != 0)
    return kind in ("add", "sub", "mul", "div", "bmm") and len({len(shape) for shape in shapes}) == 1


def size_of(size: Any) -> Size:
    """A size as a number, or the text of its expression."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_number else str(expression)
