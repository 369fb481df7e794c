"""A KeyedJaggedTensor whose lists a graph takes apart key by key: as the feature form has them already."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from .lowering import name_of
from .pools import Pool, arguments, dims, integers_of, same
from .rows import shape_of


@dataclass(frozen=True)
class Keyed:
    """All lists of a KeyedJaggedTensor, key by key: their ids and lengths, and the ids' weights."""

    values: fx.Node
    lengths: fx.Node
    weights: fx.Node | None


def keyed(pools: Sequence[Pool]) -> Keyed | None:
    """What lists were taken apart from, if they are all of a KeyedJaggedTensor's in their order."""
    values = _split_up([pool.values for pool in pools], "split_with_sizes")
    weights = _split_up([pool.mask.weights for pool in pools], "split_with_sizes")
    offsets = _split_up([pool.offsets for pool in pools], "unbind")
    weighted = any(pool.mask.weights is not None for pool in pools)
    if values is None or offsets is None or not all(pool.ends for pool in pools) or weighted != (weights is not None):
        return None
    lengths = _row_lengths(offsets.args[0])
    for split in (values, weights):
        if split is not None and (lengths is None or not _lengths_of(split, lengths, len(pools))):
            return None
    if lengths is None:
        return None
    whole = None if weights is None else weights.args[0]
    return Keyed(values.args[0], lengths.args[0], whole)  # type: ignore[arg-type]


def _split_up(parts: list[Any], how: str) -> fx.Node | None:
    """The node whose parts these are, all of them in order."""
    sources = {one.args[0] if isinstance(one, fx.Node) and one.target is operator.getitem else None for one in parts}
    if len(sources) != 1:
        return None
    (source,) = sources
    if not isinstance(source, fx.Node) or not name_of(source).startswith(how + "."):
        return None
    whole = [one.args[1] for one in parts] == list(range(len(source.meta["val"])))
    dim = arguments(source).get("dim", 0)
    return source if whole and dim == 0 else None


def _row_lengths(node: Any) -> fx.Node | None:
    """The lengths ``[keys, B]`` of which a node holds the sums from 0 on, row by row."""
    if not isinstance(node, fx.Node) or not name_of(node).startswith("cat.") or len(node.args[0]) != 2:  # type: ignore[arg-type]
        return None
    zeros, sums = _nodes(node.args[0])
    sums = integers_of(sums)
    shapes = [shape_of(one) for one in (node, zeros)]
    if name_of(zeros) not in ("new_zeros.default", "zeros.default", "zeros_like.default") or None in shapes:
        return None
    along = arguments(node)["dim"] in (-1, 1) and shapes[1][-1] == 1  # type: ignore[index]
    if name_of(sums) != "cumsum.default" or not along or sums.args[1] not in (-1, 1):
        return None
    view = sums.args[0]
    return view if _is_view_of_vector(view) else None  # type: ignore[return-value]


def _nodes(values: Any) -> list[fx.Node]:
    return list(values)


def _is_view_of_vector(node: Any) -> bool:
    if not isinstance(node, fx.Node) or name_of(node) not in ("view.default", "reshape.default"):
        return False
    return len(shape_of(node.args[0]) or ()) == 1 and len(shape_of(node) or ()) == 2  # type: ignore[arg-type]


def _lengths_of(split: fx.Node, lengths: fx.Node, keys: int) -> bool:
    """Whether a tensor was split by the sums of the lengths' rows."""
    sizes = split.args[1]
    if not isinstance(sizes, (list, tuple)) or len(sizes) != keys:
        return False
    rows = [one.args[0] if isinstance(one, fx.Node) and name_of(one) == "item.default" else None for one in sizes]
    unbound = _split_up(rows, "unbind")
    total = unbound.args[0] if unbound is not None else None
    if not isinstance(total, fx.Node) or name_of(total) != "sum.dim_IntList" or dims(total) != [1]:
        return False
    return same(total.args[0], lengths)
