"""Lists of ids that a graph pools: EmbeddingBags, and sums or means over the masked rows of padded ids ``[B, L]``."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from .constants import Const
from .lowering import name_of
from .rows import Size, shape_of
from .trace import Traced

_INTEGERS = (torch.int64, torch.int32)
_CASTS = ("to.dtype", "_to_copy.default", "type_as.default", "to.dtype_layout")
_VIEWS = (
    "unsqueeze.default", "squeeze.dim", "squeeze.dims", "squeeze.default", "view.default", "reshape.default",
    "transpose.int", "permute.default", "alias.default",
    "lift_fresh_copy.default", "contiguous.default", "clone.default", "detach.default",
    "flatten.using_ints",
)  # fmt: skip
_REPEATS = ("expand.default", "expand_as.default", "repeat_interleave.self_int", "repeat.default")
# What users add to a count against division by zero: it does not change a sum over a count of 1 or more.
_LARGEST_EPSILON = 1e-6


@dataclass(frozen=True)
class Mask:
    """Which ids of ``[B, L]`` count: all but a padding id (-1: all), or as much as their weights say."""

    padding: int = -1
    weights: fx.Node | None = None
    zero_one: bool = True  # the weights are 0 or 1


@dataclass(frozen=True)
class Pool:
    """A node ``[B, width]`` that is pooled rows of a table.

    ``values`` are ids ``[B, L]`` and there are no ``offsets``, or ids one list after another: ``offsets`` are where the
    lists begin, with the end of the last if ``ends``.
    """

    node: fx.Node
    table: fx.Node
    values: fx.Node
    offsets: fx.Node | None
    ends: bool
    mode: str  # "sum" or "mean"
    mask: Mask
    covered: tuple[fx.Node, ...]  # look-ups that the graph does not need beside it
    divisor: fx.Node | None = None  # [B, 1], by which a candidate's sum is divided

    @property
    def length(self) -> int | None:
        """The number of ids of each list, if it is the same."""
        shape = shape_of(self.values)
        return int(shape[1]) if self.offsets is None and shape is not None else None


def find_pools(traced: Traced) -> dict[fx.Node, Pool]:
    """All nodes of a graph that are pooled rows, without the sums inside of means."""
    found: dict[fx.Node, Pool] = {}
    for node in traced.graph.nodes:
        pool = _bag(node) or _masked_mean(node, found, traced.constants) or _masked_sum(node)
        if pool is not None and _fits(traced, pool):
            found[node] = pool
    return found


def _fits(traced: Traced, pool: Pool) -> bool:
    const = traced.constants.get(pool.table)
    if const is None or const.op != "tensor" or pool.values.meta["val"].dtype not in _INTEGERS:
        return False
    weights = pool.mask.weights
    if weights is not None and weights.meta["val"].dtype not in (torch.float32, torch.bool):
        return False
    weight = pool.table.meta["val"]
    return bool(weight.dtype == torch.float32 and weight.stride(1) == 1)


# EmbeddingBag


def _bag(node: fx.Node) -> Pool | None:
    if node.target is not operator.getitem or node.args[1] != 0 or not isinstance(node.args[0], fx.Node):
        return None
    bag = node.args[0]
    if not isinstance(bag.target, torch._ops.OpOverload) or bag.target._opname not in _BAGS:
        return None
    given = arguments(bag)
    if given["mode"] not in (0, 1):
        return None
    padding = given.get("padding_idx")
    values, offsets, ends = given["indices"], given["offsets"], bool(given["include_last_offset"])
    even = _even_ids(values, offsets) if not ends else None
    mask = Mask(-1 if padding is None else padding, given["per_sample_weights"], False)
    if mask.weights is not None and given["mode"] == 1:
        return None
    mode = ("sum", "mean")[given["mode"]]
    if even is not None:
        return Pool(node, given["weight"], even, None, False, mode, mask, (bag,))
    return Pool(node, given["weight"], values, offsets, ends, mode, mask, (bag,))


_BAGS = ("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")


def _even_ids(values: fx.Node, offsets: fx.Node) -> fx.Node | None:
    """The ids ``[B, L]`` that an EmbeddingBag of two-dimensional input flattens."""
    if name_of(offsets) != "arange.start_step" or name_of(values) not in ("reshape.default", "view.default"):
        return None
    ids = values.args[0]
    shape = shape_of(ids) if isinstance(ids, fx.Node) else None
    begin, _, step = offsets.args[:3]
    even = shape is not None and len(shape) == 2 and begin == 0 and step == shape[1]
    return ids if even and isinstance(ids, fx.Node) else None


def arguments(node: fx.Node) -> dict[str, Any]:
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((one.name for one in schema), node.args, strict=False)) | dict(node.kwargs)
    return {one.name: one.default_value if one.has_default_value() else None for one in schema} | given


# Masked rows


def _masked_sum(node: fx.Node) -> Pool | None:
    """``sum(rows * mask, 1)``, ``mask @ rows``, or the mean of all rows."""
    name = name_of(node)
    if name in ("sum.dim_IntList", "mean.dim") and dims(node) == [1] and len(node.args) < 4:
        rows, mask = _masked_rows(node.args[0])
        if rows is None or (name == "mean.dim" and mask != Mask()):
            return None
        return _pool_of(node, rows, mask, "sum" if name == "sum.dim_IntList" else "mean")
    if name in ("bmm.default", "matmul.default"):
        factor, factored = node.args
        shape = shape_of(factor) if isinstance(factor, fx.Node) else None
        if (
            _is_rows(factored)
            and isinstance(factor, fx.Node)
            and shape is not None
            and len(shape) == 3
            and shape[1] == 1
        ):
            return _pool_of(node, factored, _mask_of(factor, factored.args[1]), "sum")  # type: ignore[union-attr]
    return None


def _pool_of(node: fx.Node, rows: Any, mask: Mask | None, mode: str) -> Pool | None:
    if mask is None:
        return None
    table, ids = rows.args[:2]
    covered = (rows,) if len(rows.users) == 1 else ()
    return Pool(node, table, ids, None, False, mode, mask, covered)


def _masked_rows(node: Any) -> tuple[fx.Node | None, Mask | None]:
    """Rows ``[B, L, width]`` of a table, and which of them count."""
    if _is_rows(node):
        return node, Mask()
    name = name_of(node)
    if name == "mul.Tensor":
        for rows, mask in (node.args, node.args[::-1]):
            if _is_rows(rows) and isinstance(mask, fx.Node):
                alike = (shape_of(mask) or ())[:2] == (shape_of(rows) or ())[:2]
                return rows, _mask_of(mask, rows.args[1]) if alike else None
    if name == "masked_fill.Scalar" and node.args[2] == 0 and _is_rows(node.args[0]):
        padding = _padding_of(_bare(node.args[1], _CASTS), node.args[0].args[1], negated=True)
        return node.args[0], None if padding is None else Mask(padding)
    return None, None


def _is_rows(node: Any) -> bool:
    """Whether a node is the rows of ids ``[B, L]``."""
    if not isinstance(node, fx.Node) or name_of(node) != "embedding.default":
        return False
    shape = shape_of(node)
    if shape is None or len(shape) != 3 or not isinstance(node.args[1], fx.Node):
        return False
    return isinstance(shape[0], str) and isinstance(shape[1], int) and shape[1] > 0


def _mask_of(node: fx.Node, ids: Any) -> Mask | None:
    """What a factor of rows, with one number for each of the ids ``[B, L]``, is."""
    core = _bare(node, _CASTS)
    padding = _padding_of(core, ids)
    if padding is not None:
        return Mask(padding)
    zero_one = core.meta["val"].dtype == torch.bool
    weights, shape = core if zero_one else _bare(node), shape_of(ids)
    own = shape_of(weights)
    if own is None or shape is None or _long(own) != _long(shape) or len(_long(shape)) != 2:
        return None
    return Mask(-1, weights, zero_one)


def _padding_of(node: fx.Node, ids: Any, negated: bool = False) -> int | None:
    """The one id that a comparison of the ids leaves out, -1 if it leaves out none; ``None``: something else."""
    name = name_of(node)
    if name in ("logical_not.default", "bitwise_not.default"):
        return _padding_of(node.args[0], ids, not negated)  # type: ignore[arg-type]
    if not node.args or not isinstance(node.args[0], fx.Node) or not same(node.args[0], ids):
        return None
    if name in _CASTS:
        return 0 if node.meta["val"].dtype == torch.bool and not negated else None
    bound = node.args[1] if len(node.args) == 2 else None
    if not isinstance(bound, (int, float)) or bound != int(bound):
        return None
    meaning = {("ne.Scalar", False): 0, ("eq.Scalar", True): 0}.get((name, negated))
    if meaning is not None:
        return max(int(bound), -1)
    # Ids are not negative: they are above p where they are no p or below.
    above = {("gt.Scalar", False): 0, ("ge.Scalar", False): -1, ("le.Scalar", True): 0, ("lt.Scalar", True): -1}
    most = above.get((name, negated))
    return max(int(bound) + most, -1) if most is not None and bound + most <= 0 else None


# Means


def _masked_mean(node: fx.Node, sums: dict[fx.Node, Pool], constants: Mapping[fx.Node, Const]) -> Pool | None:
    """A masked sum over how many rows it counts, or over any other number of the candidate."""
    if name_of(node) != "div.Tensor" or not all(isinstance(one, fx.Node) for one in node.args):
        return None
    dividend, divisor = _nodes(node.args)
    total = _bare(dividend)
    pool = sums.get(total)
    if pool is None or pool.mode != "sum" or pool.offsets is not None or pool.divisor is not None:
        return None
    made, above, below = (shape_of(one) or () for one in (node, dividend, divisor))
    if made != above or len(below) != len(above) or _long(below) != [above[0]]:
        return None
    count, least = _positive(divisor, constants)
    if count is not None and least <= 1 and pool.mask.zero_one and _counts(count, pool):
        pool = replace(pool, node=node, mode="mean")
    elif count is not None or pool.mask.padding < 0:  # a list of the padding alone would be 0 / 0
        pool = replace(pool, node=node, divisor=divisor)
    else:
        return None
    if all(_leads_to(user, node) for user in total.users):
        sums.pop(total)
    return pool


def _nodes(values: Any) -> list[fx.Node]:
    return list(values)


def _leads_to(node: fx.Node, end: fx.Node) -> bool:
    """Whether a chain of single readers ends in a node."""
    while node is not end:
        if len(node.users) != 1:
            return False
        node = next(iter(node.users))
    return True


def _positive(node: fx.Node, constants: Mapping[fx.Node, Const]) -> tuple[fx.Node | None, float]:
    """What a node is before it is kept from being 0, and how: by a least value, or a trace of a number added."""
    node = _bare(node, _CASTS)
    name = name_of(node)
    bound = _number(node.args[1] if len(node.args) > 1 else node.kwargs.get("min"), constants)
    if bound is None or bound <= 0:
        return None, 0.0
    if name in ("clamp.default", "clamp_min.default", "clip.default"):
        safe = len(node.args) < 3 and "max" not in node.kwargs
    else:
        safe = name in ("add.Tensor", "add.Scalar") and bound <= _LARGEST_EPSILON and not node.kwargs
    return (_nodes(node.args)[0], bound) if safe else (None, 0.0)


def _number(value: Any, constants: Mapping[fx.Node, Const]) -> float | None:
    if isinstance(value, fx.Node):
        const = constants.get(_bare(value, _CASTS))
        return float(const.now) if const is not None and const.op == "literal" and const.now.numel() == 1 else None
    return float(value) if isinstance(value, (int, float)) else None


def _counts(node: fx.Node, pool: Pool) -> bool:
    """Whether a node is the number of ids that count."""
    count = _bare(node, _CASTS)
    if name_of(count) != "sum.dim_IntList" or not isinstance(count.args[0], fx.Node):
        return False
    shape, axes = shape_of(count.args[0]), dims(count)
    along = shape is not None and len(axes) == 1 and shape[axes[0]] == pool.length
    mask = _mask_of(count.args[0], pool.values)
    if not along or mask is None:
        return False
    return mask == pool.mask or (mask.weights is not None and _same_mask(mask, pool.mask))


def _same_mask(a: Mask, b: Mask) -> bool:
    if a.weights is None or b.weights is None or not (a.zero_one and b.zero_one):
        return False
    return same(_bare(a.weights, _CASTS), _bare(b.weights, _CASTS))


# Nodes that are the same numbers


def _bare(node: fx.Node, also: tuple[str, ...] = ()) -> fx.Node:
    """What a node is made of by views that keep the order of its numbers, repeats of a column, and ``also``."""
    while isinstance(node, fx.Node) and node.op == "call_function" and node.args:
        name = name_of(node)
        inner = node.args[0]
        if name.startswith(("cat.", "concat.", "stack.")) and isinstance(inner, (list, tuple)) and len(inner) == 1:
            node = inner[0]  # type: ignore[assignment]
            continue
        if not isinstance(inner, fx.Node):
            break
        before, after = shape_of(inner), shape_of(node)
        if before is None or after is None:
            break
        view = name in _VIEWS and _long(before) == _long(after)
        repeat = name in _REPEATS and len(before) == len(after) and before[-1] == 1 and before[:-1] == after[:-1]
        cast = name in also and node.meta["val"].dtype != torch.bool
        if not (view or repeat or cast):
            break
        node = inner
    return node


def _long(shape: tuple[Size, ...]) -> list[Size]:
    """The sizes of a shape that are not 1."""
    return [size for size in shape if size != 1]


def same(a: Any, b: Any) -> bool:
    """Whether two nodes hold the same numbers, as integers of any width."""
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return type(a) is type(b) and bool(a == b)
    a, b = integers_of(a), integers_of(b)
    if a is b:
        return True
    if a.op != "call_function" or a.target is not b.target or a.kwargs != b.kwargs or len(a.args) != len(b.args):
        return False
    if isinstance(a.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in a.target.tags:
        return False
    return all(same(one, other) for one, other in zip(a.args, b.args, strict=True))


def integers_of(node: fx.Node) -> fx.Node:
    while node.op == "call_function" and name_of(node) in _CASTS and isinstance(node.args[0], fx.Node):
        before, after = node.args[0].meta["val"].dtype, node.meta["val"].dtype
        if before not in _INTEGERS or after not in _INTEGERS:
            break
        node = node.args[0]
    return node


def dims(node: fx.Node) -> list[int]:
    """The dimensions of a reduction, from the front."""
    source, dims = node.args[0], node.args[1] if len(node.args) > 1 else None
    shape = shape_of(source) if isinstance(source, fx.Node) else None
    if shape is None or not isinstance(dims, (list, tuple)):
        return []
    return [int(dim) % len(shape) for dim in dims]  # type: ignore[arg-type]
