"""Element-wise ops: activations, and arithmetic with constants and with other rows."""

# mypy: allow-untyped-defs
from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
from torch import fx

from ...contract import ACTIVATIONS
from .constants import Const, numbers
from .lowering import Lowering, Opaque, handles, rows
from .rows import Ids, NotLowered, Rows, ids_of, values_of
from .views import axis_of

_LARGEST_BOUND = 64.0  # of a clamp that is made of sums: beyond, their rounding would show


def computed(low: Lowering, value: Rows, **fields: Any) -> Rows:
    """A copy of rows with an activation, an affine, factors or addends."""
    made = low.emit("copy", value.ids.size, value.flat, value.batch, **fields)
    return value.like(made.reshape(value.ids.shape))


def activated(low: Lowering, value: Rows, activation: str, **fields: Any) -> Rows:
    if activation not in ACTIVATIONS:
        raise NotLowered(f"{activation} is no activation of the kernels")
    return computed(low, value, activation=activation, **fields)


def affine(low: Lowering, value: Rows, scale: Const | float = 1.0, shift: Const | float = 0.0) -> Rows:
    """``value * scale + shift`` with numbers, or with constants that broadcast to the rows."""
    if not isinstance(scale, Const) and not isinstance(shift, Const) and scale == 1.0 and shift == 0.0:
        return value
    value = _broadcast_to_constants(value, scale, shift)
    scalars = tuple(None if isinstance(one, Const) else float(one) for one in (scale, shift))
    vectors = [_per_column(value, one) for one in (scale, shift)]
    return computed(low, value, scale=vectors[0], shift=vectors[1], origin=("affine", *scalars))


def _broadcast_to_constants(value: Rows, *constants: Const | float) -> Rows:
    shape = value.ids.shape
    for one in constants:
        if isinstance(one, Const):
            if len(one.shape) > len(shape):
                raise NotLowered("a constant of more dimensions than the rows")
            shape = np.broadcast_shapes(shape, one.shape)
    if any(shape[axis] != 1 for axis in value.axes):
        raise NotLowered("a constant has a number for each candidate")
    return value.like(np.broadcast_to(value.ids, shape))


def _per_column(value: Rows, one: Const | float) -> Const:
    if not isinstance(one, Const):
        return numbers(float(one), value.ids.size)
    return one.double().expand(*value.ids.shape).reshape(value.ids.size)


def product(low: Lowering, a: Rows, b: Rows) -> Rows:
    a, b = together(low, a, b)
    return _multiplied(low, a, b)


def _multiplied(low: Lowering, a: Rows, b: Rows) -> Rows:
    first, second = _factor(a.flat), _factor(b.flat)
    if len(first) < len(second) or (len(first) == len(second) and low.is_input(a.flat) and not low.is_input(b.flat)):
        a, b, second = b, a, first
    square = ("square",) if np.array_equal(a.flat, b.flat) else ("product",)
    return computed(low, a, factors=[second], origin=square)


def _factor(ids: Ids) -> Ids:
    """Columns of which each stands for a block of consecutive ones, as few as there can be."""
    block = len(ids)
    for place in (np.flatnonzero(np.diff(ids)) + 1).tolist():
        block = gcd(block, place)
    return ids[::block]


def total(low: Lowering, a: Rows, b: Rows) -> Rows:
    a, b = together(low, a, b)
    if low.is_input(a.flat) and not low.is_input(b.flat):
        a, b = b, a
    return computed(low, a, addends=[b.flat], origin=("total",))


def together(low: Lowering, a: Rows, b: Rows) -> tuple[Rows, Rows]:
    """Rows of one shape, by broadcasting."""
    axes = [tuple(axis - one.ids.ndim for axis in one.axes) for one in (a, b)]
    if axes[0] != axes[1] or a.batch != b.batch:
        raise NotLowered("it joins rows of different batches")
    ids = np.broadcast_arrays(a.ids, b.ids)
    made = [Rows(one, tuple(one.ndim + axis for axis in axes[0]), a.batch) for one in ids]
    return made[0], made[1]


def _either(a: dict[str, Any]) -> tuple[Any, Any]:
    first, second = a["self"], a["other"]
    for one in (first, second):
        if isinstance(one, Opaque):
            raise NotLowered("one of its inputs has no batch dimension of its own")
    return first, second


@handles("mul", "multiply")
def _mul(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    first, second = _either(a)
    if isinstance(first, Rows) and isinstance(second, Rows):
        return product(low, first, second)
    value, other = (first, second) if isinstance(first, Rows) else (second, first)
    return affine(low, rows(value), scale=_number(other))


@handles("add", "sub", "rsub", "subtract")
def _add(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    first, second = _either(a)
    name = node.target._opname  # type: ignore[union-attr]
    if name == "rsub":
        first, second = second, first
    sign = 1.0 if name == "add" else -1.0
    alpha = a.get("alpha", 1)
    signs = (sign * alpha, 1.0) if name == "rsub" else (1.0, sign * alpha)
    if name == "rsub":
        signs = (1.0, -float(alpha))
    return _weighted_total(low, first, second, *signs)


def _weighted_total(low: Lowering, first: Any, second: Any, p: float, q: float) -> Rows:
    if isinstance(first, Rows) and isinstance(second, Rows):
        if p == 1.0 and q == -1.0:
            known = _second_order(low, first, second)
            if known is not None:
                return known
        made = total(low, affine(low, first, p), affine(low, second, q))
        if p == 1.0 and q == -1.0:
            draft = low.whole(made.flat)
            assert draft is not None
            wide = together(low, first, second)
            draft.origin = ("difference", wide[0].flat, wide[1].flat)
        return made
    if isinstance(first, Rows):
        return affine(low, first, p, _scaled(_number(second), q))
    return affine(low, rows(second), q, _scaled(_number(first), p))


def _second_order(low: Lowering, a: Rows, b: Rows) -> Rows | None:
    """``(sum of fields)^2 - sum of fields^2`` is twice a factorization machine's term."""
    if a.ids.size != b.ids.size or a.axes != b.axes:
        return None
    square, of_squares = low.whole(a.flat), low.whole(b.flat)
    if square is None or of_squares is None or square.origin != ("square",) or of_squares.origin[:1] != ("fields",):
        return None
    summed = low.whole(square.inputs)
    squares = low.whole(of_squares.origin[1].reshape(-1))
    if summed is None or squares is None or summed.origin[:1] != ("fields",) or squares.origin != ("square",):
        return None
    fields = summed.origin[1]
    if not np.array_equal(fields.reshape(-1), squares.inputs) or len(fields) < 2 or fields.shape[1] < 4:
        return None
    made = low.emit("fm", a.ids.size, fields.reshape(-1), a.batch, groups=len(fields), **_twice(a.ids.size))
    return a.like(made.reshape(a.ids.shape))


def _twice(width: int) -> dict[str, Const]:
    return {"scale": numbers(2.0, width), "shift": numbers(0.0, width)}


def _number(value: Any) -> Const | float:
    if isinstance(value, (Const, int, float)):
        return value
    raise NotLowered("one of its inputs has no batch dimension of its own")


def _scaled(value: Const | float, by: float) -> Const | float:
    return value if by == 1.0 else value * by


@handles("div", "divide", "true_divide")
def _div(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    from .norms import normalized

    first, second = _either(a)
    if a.get("rounding_mode"):
        raise NotLowered("it rounds")
    if isinstance(first, Rows) and not isinstance(second, Rows):
        return affine(
            low,
            first,
            1.0 / second if not isinstance(second, Const) else Const.of("reciprocal.default", second.double()),
        )
    made = normalized(low, node, first, second) if isinstance(first, Rows) else None
    if made is None:
        raise NotLowered("it divides by numbers of the candidate")
    return made


@handles("neg", "negative")
def _neg(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    return affine(low, rows(a["self"]), -1.0)


@handles("pow", "square")
def _pow(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value = rows(a["self"])
    exponent = a.get("exponent", 2)
    if exponent not in (1, 2, 3):
        raise NotLowered("it is a power that the kernels do not know")
    made = value
    for _ in range(int(exponent) - 1):
        made = product(low, made, value)
    return made


@handles("addcmul")
def _addcmul(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    made = _mul(low, node, {"self": a["tensor1"], "other": a["tensor2"]})
    return _weighted_total(low, a["self"], made, 1.0, float(a.get("value", 1)))


@handles("lerp")
def _lerp(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    change = _weighted_total(low, a["end"], a["self"], 1.0, -1.0)
    weight = a["weight"]
    scaled = product(low, change, weight) if isinstance(weight, Rows) else affine(low, change, _number(weight))
    return _weighted_total(low, a["self"], scaled, 1.0, 1.0)


for _plain in ("relu", "sigmoid", "tanh", "silu"):

    @handles(_plain)
    def _activation(low: Lowering, node: fx.Node, a: dict[str, Any], name: str = _plain) -> Rows:
        return activated(low, rows(a["self"]), name)


@handles("mish")
def _mish(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value = rows(a["self"])
    return product(low, activated(low, activated(low, value, "softplus"), "tanh"), value)


@handles("selu")
def _selu(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    return _elu_of(low, rows(a["self"]), 1.6732632423543772, 1.0507009873554805)


@handles("relu6")
def _relu6(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    return _between(low, rows(a["self"]), 0.0, 6.0)


@handles("hardsigmoid")
def _hardsigmoid(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    return _between(low, affine(low, rows(a["self"]), 1 / 6, 0.5), 0.0, 1.0)


@handles("hardswish")
def _hardswish(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    return product(low, _hardsigmoid(low, node, a), rows(a["self"]))


@handles("glu")
def _glu(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value = rows(a["self"])
    axis = axis_of(value, a["dim"])
    first, second = np.split(value.ids, 2, axis)
    return product(low, activated(low, value.like(second), "sigmoid"), value.like(first))


@handles("gelu")
def _gelu(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    return activated(low, rows(a["self"]), "gelu" if a["approximate"] == "none" else "gelu_tanh")


@handles("leaky_relu")
def _leaky_relu(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value = rows(a["self"])
    return activated(low, value, "prelu", slope=numbers(float(a["negative_slope"]), value.ids.size))


@handles("prelu", "_prelu_kernel")
def _prelu(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value, weight = rows(a["self"]), a["weight"]
    if not isinstance(weight, Const):
        raise NotLowered("its slopes depend on the input")
    if len(weight.shape) == 1 and weight.shape[0] > 1:
        if 1 in value.axes:
            raise NotLowered("its slopes differ by candidate")
        weight = weight.reshape(1, -1, *(1 for _ in range(value.ids.ndim - 2)))
    return activated(low, value, "prelu", slope=weight.double().expand(*value.ids.shape).reshape(value.ids.size))


@handles("elu")
def _elu(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    if float(a["input_scale"]) != 1:
        raise NotLowered("it is an ELU of a scale of its own")
    return _elu_of(low, rows(a["self"]), float(a["alpha"]), float(a["scale"]))


def _elu_of(low: Lowering, value: Rows, alpha: float, scale: float) -> Rows:
    """``scale * v`` above 0, ``scale * alpha * (exp(v) - 1)`` below."""
    made = activated(low, value, "elu")
    if alpha == 1:
        return affine(low, made, scale)
    return total(low, affine(low, made, scale * alpha), affine(low, activated(low, value, "relu"), scale * (1 - alpha)))


@handles("celu")
def _celu(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    alpha = float(a["alpha"])
    value = rows(a["self"])
    return affine(low, activated(low, affine(low, value, 1 / alpha), "elu"), alpha)


@handles("softplus")
def _softplus(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    beta = float(a["beta"])
    if a["threshold"] != 20:
        raise NotLowered("it is a softplus of a threshold of its own")
    return affine(low, activated(low, affine(low, rows(a["self"]), beta), "softplus"), 1 / beta)


@handles("log_sigmoid")
def _log_sigmoid(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    return affine(low, activated(low, affine(low, rows(a["self"]), -1.0), "softplus"), -1.0)


@handles("clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "maximum", "minimum")
def _clamp(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value = rows(a["self"])
    name = node.target._opname  # type: ignore[union-attr]
    least = a.get("min", a.get("min_val", a.get("other") if name == "maximum" else None))
    most = a.get("max", a.get("max_val", a.get("other") if name == "minimum" else None))
    if not all(one is None or isinstance(one, (int, float)) for one in (least, most)):
        raise NotLowered("its bounds are no numbers")
    if any(one is not None and abs(one) > _LARGEST_BOUND for one in (least, most)):
        raise NotLowered("its bounds are too large to be exact")
    return _between(low, value, least, most)


def _between(low: Lowering, value: Rows, least: float | None, most: float | None) -> Rows:
    """``min(max(v, least), most)`` by ReLUs."""
    if least is not None:
        value = affine(low, activated(low, affine(low, value, 1.0, -float(least)), "relu"), 1.0, float(least))
    if most is not None:
        value = affine(low, activated(low, affine(low, value, -1.0, float(most)), "relu"), -1.0, float(most))
    return value


@handles("softmax", "_softmax")
def _softmax(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value = rows(a["self"])
    return grouped(low, "softmax", value, [a["dim"]])


def grouped(low: Lowering, kind: str, value: Rows, dims: list[int], **fields: Any) -> Rows:
    """A step whose groups are what lies along some dimensions, which stay."""
    order, sizes = group_order(value, dims)
    inputs = value.ids.transpose(order)
    made = low.emit(kind, value.ids.size, inputs.reshape(-1), value.batch, groups=value.ids.size // sizes, **fields)
    return value.like(made.reshape(inputs.shape).transpose(np.argsort(order)))


def group_order(value: Rows, dims: list[int]) -> tuple[list[int], int]:
    """An order of the dimensions with some of them last, and how many elements those hold."""
    last = [dim % value.ids.ndim for dim in dims]
    if any(axis in value.axes for axis in last):
        raise NotLowered("it mixes candidates")
    order = [axis for axis in range(value.ids.ndim) if axis not in last] + last
    return order, int(np.prod([value.ids.shape[axis] for axis in last], dtype=np.int64))


__all__ = ["activated", "affine", "computed", "group_order", "grouped", "ids_of", "product", "total", "values_of"]
