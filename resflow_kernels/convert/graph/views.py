"""Ops that only move elements: index bookkeeping, no step at all."""

# mypy: allow-untyped-defs
from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from torch import fx

from .constants import Const
from .lowering import Lowering, handles, rows
from .rows import Ids, NotLowered, Rows, Size, shape_of

_MIXES = "it moves numbers between candidates"


def axis_of(value: Rows, dim: int) -> int:
    """A dimension counted from the front, which must not be a batch dimension."""
    axis = dim % value.ids.ndim
    if axis in value.axes:
        raise NotLowered(_MIXES)
    return axis


@handles("alias", "contiguous", "clone", "detach", "lift_fresh_copy", "view_as", "feature_dropout")
def _same(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    return rows(a["self"] if "self" in a else a["input"])


@handles("dropout")
def _dropout(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    if a["train"] and a["p"]:
        raise NotLowered("its dropout is active in eval mode too")
    return rows(a["input"])


@handles("to", "_to_copy", "type_as")
def _to(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = source.meta["val"], node.meta["val"]
    if before.dtype != after.dtype or before.device != after.device:
        raise NotLowered("it converts numbers")
    return rows(a["self"])


@handles(
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "unsqueeze",
    "squeeze",
    "_unsafe_view",
    "expand",
    "expand_as",
    "broadcast_to",
)
def _reshape(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value = rows(a["self"])
    shape = shape_of(node)
    assert shape is not None
    if node.target._opname.startswith(("expand", "broadcast")):  # type: ignore[union-attr]
        return _expanded(value, shape)
    axes = _axes_after(value, shape)
    sizes = [1 if axis in axes else int(size) for axis, size in enumerate(shape)]
    return Rows(value.ids.reshape(sizes), axes, value.batch)


def _axes_after(value: Rows, shape: tuple[Size, ...]) -> tuple[int, ...]:
    """Where the batch dimensions are in a new shape: after as many of the row's elements as before."""
    if tuple(sorted(value.axes)) != value.axes:
        raise NotLowered(_MIXES)
    axes: list[int] = []
    for size, axis in zip(value.batch, value.axes, strict=True):
        before = prod(value.ids.shape[:axis])
        start = axes[-1] + 1 if axes else 0
        for at in range(start, len(shape)):
            others = [one for place, one in enumerate(shape[:at]) if place not in axes]
            if shape[at] == size and _product(others) == before:
                axes.append(at)
                break
        else:
            raise NotLowered(_MIXES)
    rest = [size for axis, size in enumerate(shape) if axis not in axes]
    if _product(rest) != value.ids.size:
        raise NotLowered(_MIXES)
    return tuple(axes)


def _product(sizes: list[Size]) -> int | None:
    """``None`` where one is dynamic."""
    return None if any(isinstance(size, str) for size in sizes) else prod(int(size) for size in sizes)


def _expanded(value: Rows, shape: tuple[Size, ...]) -> Rows:
    added = len(shape) - value.ids.ndim
    axes = tuple(axis + added for axis in value.axes)
    dynamic = any(isinstance(size, str) for axis, size in enumerate(shape) if axis not in axes)
    if dynamic or any(shape[axis] != size for axis, size in zip(axes, value.batch, strict=True)):
        raise NotLowered("it repeats rows")
    sizes = [1 if axis in axes else int(size) for axis, size in enumerate(shape)]
    return Rows(np.broadcast_to(value.ids, sizes), axes, value.batch)


@handles("transpose", "t", "permute", "movedim", "swapaxes", "numpy_T", "mT")
def _permute(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value = rows(a["self"])
    order = list(range(value.ids.ndim))
    if "dims" in a:
        order = [dim % len(order) for dim in a["dims"]]
    elif "dim0" in a:
        first, second = a["dim0"] % len(order), a["dim1"] % len(order)
        order[first], order[second] = second, first
    elif node.target._opname in ("t", "numpy_T"):  # type: ignore[union-attr]
        order.reverse()
    else:
        order[-1], order[-2] = order[-2], order[-1]
    axes = tuple(order.index(axis) for axis in value.axes)
    return Rows(value.ids.transpose(order), axes, value.batch)


@handles("slice")
def _slice(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value = rows(a["self"])
    axis = a["dim"] % value.ids.ndim
    start, end, step = a["start"] or 0, a["end"], a["step"] or 1
    if axis in value.axes:
        size = value.batch[value.axes.index(axis)]
        whole = end is None or end == size or (isinstance(end, int) and isinstance(size, str) and end > 1 << 62)
        if start == 0 and step == 1 and (whole or (isinstance(end, int) and isinstance(size, int) and end >= size)):
            return value
        raise NotLowered("it takes some of the candidates")
    return value.like(value.ids[(slice(None),) * axis + (slice(start, end, step),)])


@handles("narrow")
def _narrow(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value = rows(a["self"])
    axis = axis_of(value, a["dim"])
    return value.like(value.ids[(slice(None),) * axis + (slice(a["start"], a["start"] + a["length"]),)])


def _without(value: Rows, axis: int, ids: Ids) -> Rows:
    return Rows(ids, tuple(one - (one > axis) for one in value.axes), value.batch)


@handles("select")
def _select(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value = rows(a["self"])
    axis = axis_of(value, a["dim"])
    return _without(value, axis, value.ids[(slice(None),) * axis + (a["index"],)])


@handles("unbind")
def _unbind(low: Lowering, node: fx.Node, a: dict[str, Any]) -> list[Rows]:
    value = rows(a["self"])
    axis = axis_of(value, a["dim"])
    return [_without(value, axis, ids) for ids in np.moveaxis(value.ids, axis, 0)]


@handles("split", "split_with_sizes", "chunk")
def _split(low: Lowering, node: fx.Node, a: dict[str, Any]) -> list[Rows]:
    value = rows(a["self"])
    axis = axis_of(value, a["dim"])
    parts = node.meta["val"]
    edges = np.cumsum([int(part.shape[axis]) for part in parts])[:-1]
    return [value.like(ids) for ids in np.split(value.ids, edges, axis)]


@handles("cat", "concat", "concatenate", "stack")
def _join(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    parts = [rows(part) for part in a["tensors"] if not _empty(part)]
    first = parts[0]
    if any(part.axes != first.axes or part.batch != first.batch for part in parts):
        raise NotLowered("it joins tensors of different batch sizes")
    if node.target._opname != "stack":  # type: ignore[union-attr]
        return first.like(np.concatenate([part.ids for part in parts], axis_of(first, a["dim"])))
    axis = a["dim"] % (first.ids.ndim + 1)
    return Rows(
        np.stack([part.ids for part in parts], axis),
        tuple(one + (one >= axis) for one in first.axes),
        first.batch,
    )


def _empty(part: Any) -> bool:
    return isinstance(part, Const) and part.shape == (0,)


@handles("index", "index_select")
def _index(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value = rows(a["self"])
    if "indices" in a:
        wanted = list(a["indices"])
    else:
        wanted = [None] * value.ids.ndim
        wanted[a["dim"] % value.ids.ndim] = a["index"]
    wanted += [None] * (value.ids.ndim - len(wanted))
    if any(place is not None and not isinstance(place, Const) for place in wanted):
        raise NotLowered("what it takes depends on the input")
    if any(wanted[axis] is not None for axis in value.axes):
        raise NotLowered(_MIXES)
    at = [axis for axis, place in enumerate(wanted) if place is not None]
    if at != list(range(at[0], at[0] + len(at))) or any(axis > at[0] for axis in value.axes):
        raise NotLowered("it takes numbers by places of several dimensions")
    for place in wanted:
        if place is not None:
            low.structure.append(place)
    places = tuple(slice(None) if place is None else place.now.numpy() for place in wanted)
    return value.like(value.ids[places])


@handles("repeat", "tile")
def _repeat(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value = rows(a["self"])
    times = a["repeats"] if "repeats" in a else a["dims"]
    added = len(times) - value.ids.ndim
    axes = tuple(axis + added for axis in value.axes)
    if any(times[axis] != 1 for axis in axes) or not all(isinstance(one, int) for one in times):
        raise NotLowered("it repeats rows")
    return Rows(np.tile(value.ids, times), axes, value.batch)


@handles("flip")
def _flip(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value = rows(a["self"])
    return value.like(np.flip(value.ids, tuple(axis_of(value, dim) for dim in a["dims"])))
