"""Matrix products: with constants they are linear steps, of rows with rows mixes and dot products."""

# mypy: allow-untyped-defs
from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from .constants import Const
from .elementwise import affine, computed, total
from .lowering import Lowering, Opaque, handles, rows
from .rows import Ids, NotLowered, Rows, runs

_MOST_COPIES = 16  # of one linear layer, for the fields or experts that share it
_MOST_PRODUCTS = 4096  # of an outer product of a row's numbers
_MOST_MIXED = 256  # segments that all mixes of a matrix product read: attention reads many narrow ones


@handles("linear")
def _linear(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    weight, bias = a["weight"], a["bias"]
    if not isinstance(weight, Const) or not (bias is None or isinstance(bias, Const)):
        raise NotLowered("its weights depend on the input")
    value = _shared(low, node, "input", rows(a["input"]))
    if value.ids.ndim - 1 in value.axes:
        raise NotLowered("it mixes candidates")
    columns = weight.permute(1, 0) if len(weight.shape) == 2 else weight.reshape(-1, 1)
    made = _times_constant(low, value, columns, bias)
    return made if len(weight.shape) == 2 else made.like(made.ids[..., 0])


def _shared(low: Lowering, node: fx.Node, argument: str, value: Rows) -> Rows:
    """Rows of few copies: where many positions share a layer, each becomes a row of its own."""
    axes = [axis for axis in range(value.ids.ndim - 1) if axis not in value.axes]
    copies = int(np.prod([value.ids.shape[axis] for axis in axes], dtype=np.int64))
    if copies == 1 or (copies <= 4 and not low.is_input(value.flat)):
        return value
    source = node.args[0]
    plain = isinstance(source, fx.Node) and value.axes == (0,) and value.ids.ndim == 3 and low.env[source] is value
    if plain and (low.is_input(value.flat) or copies > _MOST_COPIES):
        assert isinstance(source, fx.Node)
        return low.root(source, (0, 1))
    if copies > _MOST_COPIES:
        raise NotLowered(f"{copies} positions of a candidate share it")
    return value


def _times_constant(low: Lowering, value: Rows, weight: Const, bias: Const | None) -> Rows:
    """The last dimension times ``weight [n, m]``, a step for each of the others' positions."""
    n, m = weight.shape
    places = value.ids.reshape(-1, n)
    made = [_linear_step(low, place, value, weight, bias) for place in places]
    shape = (*value.ids.shape[:-1], m)
    return value.like(np.concatenate(made).reshape(shape))


def _linear_step(low: Lowering, inputs: Ids, value: Rows, weight: Const, bias: Const | None) -> Ids:
    width = weight.shape[1]
    own = None if bias is None else bias.double().expand(width)
    return low.emit("linear", width, np.ascontiguousarray(inputs), value.batch, weight=weight.double(), bias=own)


@handles("addmm", "addbmm", "baddbmm")
def _addmm(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    second = a["mat2"] if "mat2" in a else a["batch2"]
    made = multiplied(low, node, a["mat1"] if "mat1" in a else a["batch1"], second)
    made, other = affine(low, made, float(a["alpha"])), a["self"]
    beta = float(a["beta"])
    if isinstance(other, Rows):
        return total(low, made, affine(low, other, beta))
    if not isinstance(other, Const):
        raise NotLowered("what it adds has no batch dimension")
    return affine(low, made, 1.0, other if beta == 1 else other * beta)


@handles("matmul", "mm", "bmm", "mv", "dot")
def _matmul(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    second = next(a[name] for name in ("other", "mat2", "vec", "tensor") if name in a)
    return multiplied(low, node, a["self"], second)


def multiplied(low: Lowering, node: fx.Node, first: Any, second: Any) -> Rows:
    """A matrix product of rows and constants in either order, or of rows."""
    if isinstance(first, Rows) and isinstance(second, Const):
        return _rows_by_constant(low, node, first, second)
    if isinstance(first, Const) and isinstance(second, Rows):
        return _constant_by_rows(low, first, second)
    if isinstance(first, Opaque) or isinstance(second, Opaque):
        raise NotLowered("one of its inputs has no batch dimension of its own")
    return rows_by_rows(low, rows(first), rows(second))


def _rows_by_constant(low: Lowering, node: fx.Node, value: Rows, weight: Const) -> Rows:
    if value.ids.ndim - 1 in value.axes:
        raise NotLowered("it mixes candidates")
    if len(weight.shape) == 1:
        made = _times_constant(low, value, weight.reshape(-1, 1), None)
        return Rows(made.ids[..., 0], made.axes, made.batch)
    if len(weight.shape) == 2:
        return _times_constant(low, _shared(low, node, "self", value), weight, None)
    # A weight of its own for each of the leading positions.
    n, m = weight.shape[-2:]
    lead = np.broadcast_shapes(value.ids.shape[:-2], weight.shape[:-2])
    ndim = len(lead) + 2
    axes = tuple(axis + ndim - value.ids.ndim for axis in value.axes)
    if any(axis < len(lead) and lead[axis] != 1 for axis in axes):
        raise NotLowered("a weight for each candidate")
    ids = np.broadcast_to(value.ids, (*lead, value.ids.shape[-2], n)).reshape(-1, value.ids.shape[-2], n)
    own = weight.expand(*lead, n, m).reshape(len(ids), n, m)
    return Rows(_each(low, ids, own, value).reshape(*lead, -1, m), axes, value.batch)


def _each(low: Lowering, ids: Ids, weights: Const, value: Rows) -> Ids:
    """``[s, p, n]`` by ``[s, n, m]``."""
    if ids.shape[0] * ids.shape[1] > 512:
        raise NotLowered(f"{ids.shape[0] * ids.shape[1]} products of a candidate")
    made = []
    for at, places in enumerate(ids):
        weight = Const.of("select.int", weights, 0, at)
        made.append(np.concatenate([_linear_step(low, place, value, weight, None) for place in places]))
    return np.concatenate(made)


def _constant_by_rows(low: Lowering, weight: Const, value: Rows) -> Rows:
    """``weight [m, n]`` times rows ``[.., n, k]``."""
    if value.ids.ndim == 1 or len(weight.shape) != 2 or value.ids.ndim - 2 in value.axes:
        raise NotLowered("it mixes candidates")
    swapped = Rows(value.ids.swapaxes(-1, -2), _swapped_axes(value), value.batch)
    if swapped.ids.size // swapped.ids.shape[-1] > _MOST_COPIES:
        raise NotLowered("many positions of a candidate share it")
    made = _times_constant(low, swapped, weight.permute(1, 0), None)
    return Rows(made.ids.swapaxes(-1, -2), value.axes, value.batch)


def _swapped_axes(value: Rows) -> tuple[int, ...]:
    last, before = value.ids.ndim - 1, value.ids.ndim - 2
    return tuple({last: before, before: last}.get(axis, axis) for axis in value.axes)


def rows_by_rows(low: Lowering, a: Rows, b: Rows) -> Rows:
    """``[.., n, k]`` by ``[.., k, m]``: mixes of values, or dot products."""
    if a.ids.ndim < 3 or b.ids.ndim < 3 or a.ids.ndim != b.ids.ndim or a.axes != b.axes or a.batch != b.batch:
        raise NotLowered("it mixes candidates")
    if a.ids.ndim - 1 in a.axes or a.ids.ndim - 2 in a.axes:
        raise NotLowered("it mixes candidates")
    lead = np.broadcast_shapes(a.ids.shape[:-2], b.ids.shape[:-2])
    (n, k), m = a.ids.shape[-2:], b.ids.shape[-1]
    first = np.broadcast_to(a.ids, (*lead, n, k)).reshape(-1, n, k)
    second = np.broadcast_to(b.ids, (*lead, k, m)).reshape(-1, k, m)
    made = [_pair(low, x, y, a) for x, y in zip(first, second, strict=True)]
    return a.like(np.stack(made).reshape(*lead, n, m))


def _pair(low: Lowering, x: Ids, y: Ids, like: Rows) -> Ids:
    """``[n, k]`` by ``[k, m]``."""
    (n, k), m = x.shape, y.shape[1]
    if n == m and n > 2 and np.array_equal(x, y.T):
        return _gram(low, x, like)
    if k == 1 and n * m <= _MOST_PRODUCTS:
        return _outer(low, x[:, 0], y[0], like)
    gates, values = (x, y) if n <= m else (y.T, x.T)
    if len(gates) * sum(len(runs(one)) for one in values) > _MOST_MIXED:
        raise NotLowered("every position of a candidate meets every other, as in attention")
    return np.stack([mixed(low, one, values, like) for one in gates], 0 if n <= m else 1)


def mixed(low: Lowering, gates: Ids, values: Ids, like: Rows) -> Ids:
    """``sum_e gates[e] * values[e]``."""
    width = values.shape[1]
    if width == 1:
        return dotted(low, gates, values[:, 0], like)
    inputs = np.concatenate([gates, values.reshape(-1)])
    return low.emit("mix", width, inputs, like.batch, groups=len(gates))


def dotted(low: Lowering, x: Ids, y: Ids, like: Rows) -> Ids:
    products = computed(low, Rows(x, (), like.batch), factors=[np.ascontiguousarray(y)], origin=("product",))
    return low.emit("sum", 1, products.flat, like.batch)


def _outer(low: Lowering, x: Ids, y: Ids, like: Rows) -> Ids:
    wide = np.ascontiguousarray(np.broadcast_to(y, (len(x), len(y)))).reshape(-1)
    made = low.emit("copy", wide.size, wide, like.batch, factors=[np.ascontiguousarray(x)], origin=("product",))
    return made.reshape(len(x), len(y))


def _gram(low: Lowering, fields: Ids, like: Rows) -> Ids:
    """All dot products of fields with each other; those that nobody reads are dropped later."""
    count = len(fields)
    pairs = low.emit("dot", count * (count - 1) // 2, fields.reshape(-1), like.batch, groups=count)
    flat = np.ascontiguousarray(fields).reshape(-1)
    squares = computed(low, Rows(flat, (), like.batch), factors=[flat], origin=("square",))
    lengths = low.emit("sum", count, squares.flat, like.batch, groups=count)
    made = np.zeros((count, count), np.int64)
    upper = np.triu_indices(count, 1)
    made[upper] = pairs
    made.T[upper] = pairs
    np.fill_diagonal(made, lengths)
    return made


@handles("tensordot")
def _tensordot(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    value, weight = a["self"], a["other"]
    dims, others = a["dims_self"], a["dims_other"]
    if not isinstance(value, Rows) or not isinstance(weight, Const) or len(dims) != 1:
        raise NotLowered("it multiplies rows with rows")
    axis = dims[0] % value.ids.ndim
    if axis in value.axes or len(weight.shape) != 2:
        raise NotLowered("it mixes candidates")
    columns = weight if others[0] % 2 == 0 else weight.permute(1, 0)
    if axis == value.ids.ndim - 1:
        return _rows_by_constant(low, node, value, columns)
    moved = Rows(np.moveaxis(value.ids, axis, -1), tuple(one - (one > axis) for one in value.axes), value.batch)
    if moved.ids.size // moved.ids.shape[-1] > _MOST_COPIES:
        raise NotLowered("many positions of a candidate share it")
    return _times_constant(low, moved, columns, None)


@handles("conv1d")
def _conv1d(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    """A convolution over single positions is a linear layer on the channels."""
    value, weight = rows(a["input"]), a["weight"]
    plain = a["stride"] in ([1], 1) and a["padding"] in ([0], 0, "valid") and a["groups"] == 1
    if not isinstance(weight, Const) or weight.shape[2] != 1 or not plain or value.ids.ndim != 3:
        raise NotLowered("it is a convolution over several positions")
    source = node.args[0]
    if value.axes == (0,) and isinstance(source, fx.Node) and value.ids.shape[2] > 4:
        value = low.root(source, (0, 2))
    if 1 in value.axes:
        raise NotLowered("it mixes candidates")
    moved = Rows(value.ids.swapaxes(1, 2), _swapped_axes(value), value.batch)
    made = _times_constant(low, moved, weight.reshape(*weight.shape[:2]).permute(1, 0), a["bias"])
    return Rows(made.ids.swapaxes(1, 2), value.axes, value.batch)


@handles("einsum")
def _einsum(low: Lowering, node: fx.Node, a: dict[str, Any]) -> Rows:
    terms, _, output = a["equation"].replace(" ", "").partition("->")
    names = terms.split(",")
    operands = a["tensors"]
    if len(names) != 2 or not output or "." in a["equation"] or any(len(set(n)) != len(n) for n in (*names, output)):
        raise NotLowered("it is an einsum of a kind the kernels do not know")
    if isinstance(operands[0], Const):
        names, operands = names[::-1], operands[::-1]
    if not isinstance(operands[0], Rows):
        raise NotLowered("one of its inputs has no batch dimension of its own")
    if isinstance(operands[1], Const):
        return _einsum_with_constant(low, node, names, output, operands)
    return _einsum_of_rows(
        low, names, output, _positions_as_rows(low, node, names, output, [rows(one) for one in operands])
    )


def _positions_as_rows(low: Lowering, node: fx.Node, names: list[str], output: str, values: list[Rows]) -> list[Rows]:
    """Where each position of both has all products of its own, positions become rows."""
    shared = [c for c in names[0] if c in names[1] and c in output]
    sources = node.args[1]
    if any(c in names[1] and c not in output for c in names[0]) or len(shared) != 2 or output[0] not in shared:
        return values
    made = []
    for name, value, source in zip(names, values, sources, strict=True):  # type: ignore[arg-type]
        axes = tuple(sorted(name.index(c) for c in shared))
        made.append(value if value.axes == axes else low.root(source, axes))  # type: ignore[arg-type]
    return made


def _einsum_with_constant(low: Lowering, node: fx.Node, names: list[str], output: str, operands: list[Any]) -> Rows:
    value, weight = operands
    batch = "".join(names[0][axis] for axis in value.axes)
    shared = [c for c in names[0] if c in names[1] and c in output]
    summed = [c for c in names[0] if c in names[1] and c not in output]
    own, free = (
        [c for c in names[0] if c not in names[1] and c not in batch],
        [c for c in names[1] if c not in names[0]],
    )
    if set(batch) & set(names[1]) or not set(own) | set(free) | set(batch) <= set(output):
        raise NotLowered("it mixes candidates")
    sizes = dict(zip(names[1], weight.shape, strict=True)) | dict(zip(names[0], value.ids.shape, strict=True))

    def count(letters: list[str]) -> int:
        return int(np.prod([sizes[c] for c in letters], dtype=np.int64))

    ids = value.ids.transpose([names[0].index(c) for c in [*batch, *shared, *own, *summed]])
    ids = ids.reshape(count(shared), count(own), count(summed))
    columns = weight.permute(*(names[1].index(c) for c in [*shared, *summed, *free]))
    columns = columns.reshape(count(shared), count(summed), count(free))
    made = _each(low, ids, columns, value).reshape([1] * len(batch) + [sizes[c] for c in [*shared, *own, *free]])
    order = [*batch, *shared, *own, *free]
    return Rows(made.transpose([order.index(c) for c in output]), tuple(output.index(c) for c in batch), value.batch)


def _einsum_of_rows(low: Lowering, names: list[str], output: str, values: list[Rows]) -> Rows:
    a, b = values
    batch = [names[0][axis] for axis in a.axes]
    if [names[1][axis] for axis in b.axes] != batch or a.batch != b.batch or not set(batch) <= set(output):
        raise NotLowered("it mixes candidates")
    shared = [c for c in names[0] if c in names[1] and c in output and c not in batch]
    summed = [c for c in names[0] if c in names[1] and c not in output]
    mine, other = [c for c in names[0] if c not in names[1]], [c for c in names[1] if c not in names[0]]
    if not set(mine) | set(other) <= set(output):
        raise NotLowered("it is an einsum of a kind the kernels do not know")
    sizes = dict(zip(names[0], a.ids.shape, strict=True)) | dict(zip(names[1], b.ids.shape, strict=True))

    def arranged(value: Rows, name: str, letters: list[str], ends: tuple[list[str], list[str]]) -> Rows:
        ids = value.ids.transpose([name.index(c) for c in letters])
        counts = [int(np.prod([sizes[c] for c in end], dtype=np.int64)) for end in (shared, *ends)]
        return Rows(ids.reshape(1, *counts), (0,), value.batch)

    first = arranged(a, names[0], [*batch, *shared, *mine, *summed], (mine, summed))
    second = arranged(b, names[1], [*batch, *shared, *summed, *other], (summed, other))
    made = rows_by_rows(low, first, second) if summed else _all_pairs(low, first, second)
    order = [*batch, *shared, *mine, *other]
    ids = made.ids.reshape([1] * len(batch) + [sizes[c] for c in [*shared, *mine, *other]])
    return Rows(ids.transpose([order.index(c) for c in output]), tuple(output.index(c) for c in batch), a.batch)


def _all_pairs(low: Lowering, a: Rows, b: Rows) -> Rows:
    """``[.., n, 1]`` by ``[.., 1, m]``."""
    x, y = a.ids.reshape(-1, a.ids.shape[-2]), b.ids.reshape(-1, b.ids.shape[-1])
    if x.shape[0] * x.shape[1] * y.shape[1] > 4 * _MOST_PRODUCTS:
        raise NotLowered("every position of a candidate meets every other")
    made = [_outer(low, one, other, a) for one, other in zip(x, y, strict=True)]
    return a.like(np.stack(made).reshape(*a.ids.shape[:-1], y.shape[1]))
