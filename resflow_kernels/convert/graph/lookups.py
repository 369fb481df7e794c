"""Embedding tables in front of a region: their rows enter the region's tile without being written to memory.

A region that reads ``aten.embedding`` results, or pooled ones (``pools.py``), takes the ids instead, as the feature
form does (SPEC of the forms: README). What else it reads is one more table, of which candidate ``i`` reads row ``i``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ...contract import PLAN_LIMITS
from .emit import Emitted, Source
from .lowering import Lowering, name_of
from .pools import Pool
from .rows import Root, shape_of
from .trace import Traced

# Tables: one alone is as fast in front, unless it is pooled. A table of 32 columns before a tower of 64, one thread,
# medians in turns: an EmbeddingBag inside 27 us at one candidate and 543 at 4096, in front 28 and 579; the masked mean
# of 20 padded ids inside 22 and 888, in front 31 and 2730.
_FEWEST = 2


@dataclass(frozen=True)
class Lookup:
    """A source that is rows of a table: ``ids`` of shape ``[B]`` or ``[B, count]``."""

    node: fx.Node
    table: fx.Node
    ids: fx.Node
    count: int  # of ids per candidate, one feature each


@dataclass(frozen=True)
class Columns:
    """Columns of a matrix ``[B, n]`` of the call, as ids."""

    base: fx.Node
    columns: tuple[int, ...]


def look_up(
    traced: Traced, low: Lowering, emitted: Emitted, pools: Mapping[fx.Node, Pool]
) -> list[Lookup | Pool | None]:
    """Which of a region's sources are tables; none of them if the region cannot take ids, or does not gain by it."""
    none: list[Lookup | Pool | None] = [None] * len(emitted.sources)
    if emitted.program.output_columns > PLAN_LIMITS["max_tasks"] or traced.static_batch is not None:
        return none
    found = [_pool(low, source, pools) or _lookup(traced, low, source) for source in emitted.sources]
    if sum(one is not None for one in found) < _FEWEST and not any(isinstance(one, Pool) for one in found):
        return none
    rest = (source for source, one in zip(emitted.sources, found, strict=True) if one is None)
    return found if all(_is_matrix(low, source) for source in rest) else none


def scored(emitted: Emitted) -> Emitted:
    """The region with its output columns as logits of tasks, which the feature form has."""
    return replace(emitted, program=replace(emitted.program, parents=(-1,) * emitted.program.output_columns))


def _pool(low: Lowering, source: Source, pools: Mapping[fx.Node, Pool]) -> Pool | None:
    pool = None if source.node is None else pools.get(source.node)
    fits = pool is not None and _one_batch(low, source) and source.width == pool.table.meta["val"].shape[1]
    return pool if fits else None


def _lookup(traced: Traced, low: Lowering, source: Source) -> Lookup | None:
    node = source.node
    if (
        node is None
        or node.op != "call_function"
        or name_of(node) != "embedding.default"
        or not _one_batch(low, source)
    ):
        return None
    table, ids = node.args[:2]
    if not isinstance(table, fx.Node) or not isinstance(ids, fx.Node):
        return None
    const = traced.constants.get(table)
    shape = shape_of(ids)
    if const is None or const.op != "tensor" or shape is None or not 1 <= len(shape) <= 2:
        return None
    weight, index = table.meta["val"], ids.meta["val"]
    count = 1 if len(shape) == 1 else shape[1]
    if not isinstance(count, int) or count < 1 or source.width != count * weight.shape[1]:
        return None
    fits = weight.dtype == torch.float32 and weight.stride(1) == 1 and index.dtype in (torch.int64, torch.int32)
    return Lookup(node, table, ids, count) if fits else None


def _one_batch(low: Lowering, source: Source) -> bool:
    value = low.values[source.value]
    return not isinstance(value, Root) or (len(value.batch) == 1 and value.axes == (0,))


def _is_matrix(low: Lowering, source: Source) -> bool:
    return _one_batch(low, source) and (source.node is None or source.node.meta["val"].dtype == torch.float32)


def columns_of(node: Any) -> Columns | None:
    """Ids that are columns of a matrix of the call, through casts to integers, slices and axes of one."""
    if not isinstance(node, fx.Node):
        return None
    shape = shape_of(node)
    if node.op == "placeholder":
        if shape is None or len(shape) != 2 or not isinstance(shape[0], str) or not isinstance(shape[1], int):
            return None
        return Columns(node, tuple(range(shape[1])))
    if node.op != "call_function":
        return None
    name = name_of(node)
    inner = columns_of(node.args[0]) if node.args else None
    if inner is None:
        return None
    if name in ("to.dtype", "_to_copy.default", "to.dtype_layout", "alias.default"):
        return inner if node.meta["val"].dtype in (torch.int64, torch.int32) else None
    rest: list[Any] = list(node.args[1:])
    if name == "slice.Tensor":
        defaults: list[Any] = [0, None, None, 1]
        dim, start, end, step = rest + defaults[len(rest) :]
        if step != 1 or not all(one is None or isinstance(one, int) for one in (start, end)):
            return None
        if dim == 0:
            return inner if start in (0, None) and end in (None, 9223372036854775807) else None
        return replace(inner, columns=inner.columns[start:end]) if dim in (1, -1) else None
    if name == "select.int":
        dim, at = rest
        return replace(inner, columns=(inner.columns[at],)) if dim in (1, -1) and isinstance(at, int) else None
    if name in ("squeeze.dim", "unsqueeze.default", "squeeze.dims"):
        return inner if len(inner.columns) == 1 and shape is not None and len(shape) <= 2 else None
    return None


def one_base(lookups: Sequence[Lookup | Pool | None]) -> Columns | None:
    """The matrix of which all ids are columns, with those columns in order; ``None``: there is no such matrix."""
    base: fx.Node | None = None
    columns: list[int] = []
    for lookup in lookups:
        if not isinstance(lookup, Lookup):
            continue
        found = columns_of(lookup.ids)
        if found is None or len(found.columns) != lookup.count or base not in (None, found.base):
            return None
        base = found.base
        columns += found.columns
    return None if base is None else Columns(base, tuple(columns))
