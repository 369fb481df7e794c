"""Norms and sums over a candidate's own numbers, as ops of their own or written out."""

# mypy: allow-untyped-defs
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from .constants import Const, numbers
from .elementwise import affine, computed, group_order, grouped, product
from .lowering import Lowering, handles, name_of, rows
from .products import mixed
from .rows import Draft, Ids, NotLowered, Rows, runs

_MOST_FIELDS = 64  # that are added one after another


@handles("batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def _batch_norm(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value = rows(a["input"])
    mean, variance = a["running_mean"], a["running_var"]
    if a.get("training") or not isinstance(mean, Const) or not isinstance(variance, Const):
        raise NotLowered("it normalizes by the batch at hand: it keeps no running statistics")
    if value.ids.ndim < 2 or 1 in value.axes:
        raise NotLowered("it mixes candidates")
    scale = Const.of("rsqrt.default", variance.double() + float(a["eps"]))
    if a["weight"] is not None:
        scale = scale * a["weight"].double()
    shift = mean.double() * scale * -1.0
    if a["bias"] is not None:
        shift = shift + a["bias"].double()
    shape = (1, -1, *(1 for _ in range(value.ids.ndim - 2)))
    return affine(low, value, scale.reshape(*shape), shift.reshape(*shape))


@handles("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def _layer_norm(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Any:
    value = rows(a["input"])
    name = node.target._opname.lstrip("_")  # type: ignore[union-attr]
    kind = "rms_norm" if "rms" in name else "layer_norm"
    shape = a["normalized_shape"]
    epsilon = a["eps"]
    if epsilon is None:
        epsilon = torch.finfo(node.meta["val"].dtype).eps
    made = grouped(low, kind, value, list(range(-len(shape), 0)), epsilon=float(epsilon))
    weight, bias = a.get("weight"), a.get("bias")
    if weight is not None or bias is not None:
        made = affine(low, made, 1.0 if weight is None else weight, 0.0 if bias is None else bias)
    return [made] if name.startswith(("native", "fused")) else made


@handles("group_norm")
def _group_norm(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value = rows(a["input"])
    if value.axes != (0,) or value.ids.ndim < 2:
        raise NotLowered("it mixes candidates")
    shape = value.ids.shape
    split = Rows(value.ids.reshape(1, a["num_groups"], -1), (0,), value.batch)
    made = value.like(grouped(low, "layer_norm", split, [2], epsilon=float(a["eps"])).ids.reshape(shape))
    affines = [one if one is None else one.reshape(1, -1, *(1 for _ in shape[2:])) for one in (a["weight"], a["bias"])]
    return affine(low, made, 1.0 if affines[0] is None else affines[0], 0.0 if affines[1] is None else affines[1])


@handles("sum", "mean")
def _sum(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value = rows(a["self"])
    if not a.get("dim"):
        raise NotLowered("it mixes candidates")
    dims = [a["dim"]] if isinstance(a["dim"], int) else list(a["dim"])
    made = summed(low, value, dims, bool(a["keepdim"]))
    count = value.ids.size // made.ids.size
    return affine(low, made, 1.0 / count) if node.target._opname == "mean" else made  # type: ignore[union-attr]


def summed(low: Lowering, value: Rows, dims: list[int], keep: bool) -> Rows:
    """Sums along dimensions of a row."""
    order, count = group_order(value, dims)
    last = order[len(order) - len(dims) :]
    inputs = np.ascontiguousarray(value.ids.transpose(order)).reshape(-1, count)
    made = _sums(low, inputs, value)
    shape = [1 if axis in last else size for axis, size in enumerate(value.ids.shape)]
    ids, axes = made.reshape(shape), value.axes
    if not keep:
        ids = ids.reshape([size for axis, size in enumerate(shape) if axis not in last])
        axes = tuple(axis - sum(one < axis for one in last) for axis in axes)
    return Rows(ids, axes, value.batch)


def _sums(low: Lowering, inputs: Ids, like: Rows) -> Ids:
    """Of each row of ``inputs [width, count]``: a mix, a sum of fields, or a sum of groups."""
    width, count = inputs.shape
    if count == 1:
        return inputs[:, 0]
    fields = np.ascontiguousarray(inputs.T)
    gated = _gated(low, fields, like)
    if gated is not None:
        return gated
    if count <= _MOST_FIELDS and width > 1 and _segments(fields) <= len(runs(inputs.reshape(-1))):
        first, *others = fields
        return low.emit("copy", width, first, like.batch, addends=list(others), origin=("fields", fields))
    return low.emit("sum", width, inputs.reshape(-1), like.batch, groups=width, origin=("fields", fields))


def _segments(fields: Ids) -> int:
    return sum(len(runs(one)) for one in fields)


def _gated(low: Lowering, fields: Ids, like: Rows) -> Ids | None:
    """Values times a gate each, summed."""
    draft = low.whole(fields.reshape(-1))
    if draft is None or draft.kind != "copy" or draft.activation != "identity" or draft.scale or draft.addends:
        return None
    if len(draft.factors) != 1 or len(draft.factors[0]) != len(fields) or fields.shape[1] == 1:
        return None
    made = mixed(low, draft.factors[0], draft.inputs.reshape(fields.shape), like)
    mix = low.whole(made)
    assert mix is not None
    mix.origin = ("fields", fields)
    return made


@handles("cosine_similarity")
def _cosine(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    dim, epsilon = a["dim"], float(a["eps"])
    x, y = (grouped(low, "l2_norm", rows(a[name]), [dim], epsilon=epsilon) for name in ("x1", "x2"))
    return summed(low, product(low, x, y), [dim], False)


_VIEWS = ("unsqueeze", "expand", "expand_as", "view", "reshape", "squeeze", "clone", "contiguous")


def _seen_through(node: Any) -> Any:
    while isinstance(node, fx.Node) and name_of(node).split(".")[0] in _VIEWS:
        node = node.args[0]
    return node


def normalized(low: Lowering, node: fx.Node, value: Rows, by: Any) -> Rows | None:
    """``value / by`` where that is a norm written out."""
    denominator = _seen_through(node.args[1])
    if not isinstance(denominator, fx.Node):
        return None
    name = name_of(denominator).split(".")[0]
    if name in ("clamp_min", "clamp", "linalg_vector_norm", "norm"):
        return _l2(low, node, denominator, value)
    return _written_out(low, denominator, value) if name == "sqrt" else None


def _l2(low: Lowering, node: fx.Node, denominator: fx.Node, value: Rows) -> Rows | None:
    epsilon = 0.0
    if name_of(denominator).startswith("clamp"):
        bounds = denominator.args[1:] + tuple(denominator.kwargs.values())
        if len(bounds) != 1 or not isinstance(bounds[0], (int, float)):
            return None
        epsilon, denominator = float(bounds[0]), _seen_through(denominator.args[0])
    if not isinstance(denominator, fx.Node) or denominator.args[0] is not node.args[0]:
        return None
    bound = low._bound(denominator)
    order = bound.get("ord", bound.get("p", 2))
    dims = bound.get("dim")
    kept = bound.get("keepdim") or _seen_through(node.args[1]) is not node.args[1]
    if order != 2 or not dims or not kept or denominator.target._opname not in ("linalg_vector_norm", "norm"):  # type: ignore[union-attr]
        return None
    return grouped(low, "l2_norm", value, [dims] if isinstance(dims, int) else list(dims), epsilon=epsilon)


def _written_out(low: Lowering, root: fx.Node, value: Rows) -> Rows | None:
    """``(x - mean) / sqrt(factor * (variance + epsilon))``, or the same without the mean."""
    source = root.args[0]
    inner = low.env.get(source) if isinstance(source, fx.Node) else None
    read = _variance(low, inner.flat) if isinstance(inner, Rows) and inner.ids.size == 1 else None
    if read is None:
        return None
    of, factor, epsilon = read
    centered = _centered(low, of)
    if not np.array_equal(of, value.flat):
        other = _centered(low, value.flat)
        if centered is None or other is None or not np.array_equal(centered, other):
            return None
    inputs, kind = (of, "rms_norm") if centered is None else (centered, "layer_norm")
    made = low.emit(kind, len(inputs), inputs, value.batch, groups=1, epsilon=epsilon)
    return affine(low, value.like(made.reshape(value.ids.shape)), factor**-0.5)


def _variance(low: Lowering, ids: Ids) -> tuple[Ids, float, float] | None:
    """What ``factor * (mean(of ** 2) + epsilon)`` is of: ``of``, ``factor``, ``epsilon``."""
    scale, shift, made = 1.0, 0.0, low.whole(ids)
    while made is not None and made.origin[:1] == ("affine",) and None not in made.origin:
        scale, shift = scale * made.origin[1], shift + scale * made.origin[2]
        made = low.whole(made.inputs)
    if made is None or made.origin[:1] != ("fields",):
        return None
    summands = low.whole(made.origin[1].reshape(-1))
    count, each = made.origin[1].size, 0.0
    if summands is not None and summands.origin[:1] == ("affine",) and summands.origin[1] == 1.0 and summands.origin[2]:
        each, summands = summands.origin[2], low.whole(summands.inputs)
    if summands is None or summands.origin != ("square",):
        return None
    factor = scale * count
    return summands.inputs, factor, (shift + scale * count * each) / factor


def _centered(low: Lowering, ids: Ids) -> Ids | None:
    """``x`` of ``x - mean(x)``."""
    made = low.whole(ids)
    if made is None or made.origin[:1] != ("difference",):
        return None
    _, x, mean = made.origin
    mean_draft: Draft | None = low.whole(mean[:1]) if len(np.unique(mean)) == 1 else None
    if mean_draft is None or mean_draft.origin[:1] != ("affine",) or mean_draft.origin[1] != 1.0 / len(x):
        return None
    total = low.whole(mean_draft.inputs)
    known = total is not None and total.origin[:1] == ("fields",) and np.array_equal(total.origin[1].reshape(-1), x)
    return x if known else None


__all__ = ["computed", "normalized", "numbers", "summed"]
