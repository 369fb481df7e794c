"""Reads an exported graph node by node into drafts of steps, and notes what stays the user's and why."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from .constants import Const
from .rows import Draft, Ids, NotLowered, Root, Rows, Size, ids_of, shape_of, size_of, values_of

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_MOST_COLUMNS = 1 << 16  # of a tensor that a region reads: wider ones are no candidate's row
_MOST_DRAFTS = 3000

Handler = Callable[["Lowering", fx.Node, dict[str, Any]], Any]
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register what lowers ATen ops of these names, whatever the overload."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


class Lowering:
    """Every node of a graph as rows, a constant or a value that stays the user's.

    Args:
        graph: of an exported program, without in-place ops.
        constants: the placeholders that stand for tensors of the model.
        left: nodes that are not to be lowered.
        static_batch: the batch size of a graph that was traced for one size alone.
    """

    def __init__(
        self, graph: fx.Graph, constants: Mapping[fx.Node, Const], left: Iterable[fx.Node], static_batch: int | None
    ) -> None:
        self.graph, self.left, self.static_batch = graph, set(left), static_batch
        self.values: list[Root | Draft] = []
        self.env: dict[fx.Node, Any] = dict(constants)
        self.reasons: dict[fx.Node, str] = {}
        self.drafts_of: dict[fx.Node, list[int]] = {}
        self.structure: list[Const] = []  # constants whose values are part of the program
        self._roots: dict[tuple[fx.Node, tuple[int, ...]], Rows] = {}
        self._node: fx.Node | None = None
        for node in graph.nodes:
            if node not in self.env:
                self.env[node] = self._read(node)

    def _read(self, node: fx.Node) -> Any:
        if node.op == "call_function":
            self._node = node
            for demote in (False, True):
                if demote and not self._demote_inputs(node):
                    break
                first = len(self.values)
                try:
                    return self._lower(node)
                except NotLowered as reason:
                    self.reasons[node] = str(reason)
                    self._forget_from(first, node)
        return self._root_of(node) if node.op in ("placeholder", "call_function") else None

    def _forget_from(self, first: int, node: fx.Node) -> None:
        del self.values[first:]
        self.drafts_of.pop(node, None)
        self._roots = {key: root for key, root in self._roots.items() if int(values_of(root.flat[:1])[0]) < first}

    def _demote_inputs(self, node: fx.Node) -> bool:
        """Let positions that became rows of their own be parts of a candidate's row again; whether there were any."""
        found = False
        for source in node.all_input_nodes:
            known = self.env.get(source)
            if isinstance(known, Rows) and len(known.batch) > 1 and isinstance(known.batch[-1], int):
                shape = shape_of(source)
                if shape is not None and all(isinstance(size, int) for size in shape[1:]):
                    self.env[source] = self.root(source, (0,))
                    found = True
        return found

    def _lower(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            made = self.env.get(source)
            if isinstance(made, list):
                return made[node.args[1]]  # type: ignore[index]
            raise NotLowered("")
        if not isinstance(node.target, torch._ops.OpOverload):
            raise NotLowered("it computes no tensor")
        name = name_of(node)
        arguments = self._bound(node)
        flat = list(_flatten(arguments.values()))
        if not any(isinstance(value, Rows) for value in flat):
            return self._constant(node, arguments)
        handler = HANDLERS.get(name.split(".")[0])
        if handler is None:
            raise NotLowered(f"{_spoken(name)} is no operation of the kernels")
        if node in self.left:
            raise NotLowered("too little of it is left to gain anything")
        dtype = _dtype(node)
        if dtype not in FLOATS:
            raise NotLowered(f"it computes in {str(dtype).removeprefix('torch.')}, the kernels in float32")
        if len(self.values) > _MOST_DRAFTS:
            raise NotLowered("the model is too large for one program")
        return handler(self, node, arguments)

    def _bound(self, node: fx.Node) -> dict[str, Any]:
        """All arguments by name, nodes replaced by what they are here."""
        schema = node.target._schema  # type: ignore[union-attr]
        bound: dict[str, Any] = {}
        for at, argument in enumerate(schema.arguments):
            if at < len(node.args):
                value: Any = node.args[at]
            elif argument.name in node.kwargs:
                value = node.kwargs[argument.name]
            else:
                value = argument.default_value if argument.has_default_value() else None
            bound[argument.name] = self._mapped(value)
        return bound

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            known = self.env.get(value)
            if known is not None:
                return known
            meta = value.meta.get("val")
            return size_of(meta) if isinstance(meta, (torch.SymInt, int)) else Opaque(value)
        if isinstance(value, (list, tuple)):
            return [self._mapped(one) for one in value]
        return value

    def _constant(self, node: fx.Node, arguments: Mapping[str, Any]) -> Const | list[Const]:
        """An op of constants, or one that fills; a batch dimension that it fills has size 1."""
        name = name_of(node)
        shape = shape_of(node)
        if shape is None:
            return _constant_parts(name.split(".")[0], node, arguments)
        values = list(_flatten(arguments.values()))
        if any(isinstance(value, Opaque) for value in values):
            raise NotLowered("")
        filled = _FILLS.get(name.split(".")[0])
        if filled is not None and _dtype(node) in FLOATS:
            value = filled if filled != "fill_value" else arguments["fill_value"]
            sizes = [size if isinstance(size, int) and size != self.static_batch else 1 for size in shape]
            if isinstance(value, (int, float)):
                return Const.literal(torch.full(sizes, float(value), dtype=_dtype(node)))
        if not all(isinstance(size, int) for size in shape) or name.startswith(("empty", "new_empty")):
            raise NotLowered("")
        if torch.Tag.nondeterministic_seeded in node.target.tags:  # type: ignore[union-attr]
            raise NotLowered("it is random")
        plain = node.target._schema.arguments  # type: ignore[union-attr]
        return Const.of(
            name,
            *(arguments[one.name] for one in plain if not one.kwarg_only),
            **{one.name: arguments[one.name] for one in plain if one.kwarg_only},
        )

    # What stays the user's

    def _root_of(self, node: fx.Node) -> Rows | None:
        shape = shape_of(node)
        if shape is None or _dtype(node) not in FLOATS:
            return None
        axes = self._batch_axes(shape)
        return None if axes is None else self.root(node, axes)

    def root(self, node: fx.Node, axes: tuple[int, ...]) -> Rows:
        """A node's tensor as an input of regions, with these batch dimensions."""
        key = (node, axes)
        if key not in self._roots:
            shape = shape_of(node)
            assert shape is not None
            if any(isinstance(size, str) for axis, size in enumerate(shape) if axis not in axes):
                raise NotLowered("a dimension besides the batch is dynamic")
            width = prod(int(size) for axis, size in enumerate(shape) if axis not in axes)
            if not 1 <= width <= _MOST_COLUMNS:
                raise NotLowered(f"a row of it has {width} numbers")
            batch = tuple(shape[axis] for axis in axes)
            self.values.append(Root(node, axes, batch, width))
            array = ids_of(len(self.values) - 1, width)
            ones = [1 if axis in axes else int(size) for axis, size in enumerate(shape)]
            self._roots[key] = Rows(array.reshape(ones), axes, batch)
        return self._roots[key]

    def _batch_axes(self, shape: tuple[Size, ...]) -> tuple[int, ...] | None:
        """The leading dynamic dimensions, or the first one if it has the size that the graph was traced for."""
        if self.static_batch is not None:
            return (0,) if shape and shape[0] == self.static_batch else None
        dynamic = tuple(axis for axis, size in enumerate(shape) if isinstance(size, str))
        width = prod(size for size in shape if isinstance(size, int))
        return dynamic if dynamic and dynamic == tuple(range(len(dynamic))) and width <= _MOST_COLUMNS else None

    # Making steps

    def emit(self, kind: str, width: int, inputs: Ids, batch: tuple[Size, ...], **fields: Any) -> Ids:
        """Append a draft; returns its columns."""
        assert self._node is not None
        draft = Draft(kind, width, inputs, batch, self._node, **fields)
        self.values.append(draft)
        place = len(self.values) - 1
        self.drafts_of.setdefault(self._node, []).append(place)
        return ids_of(place, width)

    def whole(self, ids: Ids) -> Draft | None:
        """The draft whose columns these are, all and in order."""
        place = int(values_of(ids[:1])[0])
        made = self.values[place]
        same = isinstance(made, Draft) and len(ids) == made.width and np.array_equal(ids, ids_of(place, made.width))
        return made if same and isinstance(made, Draft) else None

    def is_input(self, ids: Ids) -> bool:
        """Whether all columns are the user's own, with nothing computed yet."""
        return all(isinstance(self.values[int(place)], Root) for place in np.unique(values_of(ids)))


def _constant_parts(kind: str, node: fx.Node, arguments: Mapping[str, Any]) -> list[Const]:
    """What an op makes of a constant that gives a list."""
    whole = arguments.get("self")
    if not isinstance(whole, Const) or kind not in ("unbind", "split", "split_with_sizes", "chunk"):
        raise NotLowered("")
    dim = arguments["dim"] % len(whole.shape)
    if kind == "unbind":
        return [Const.of("select.int", whole, dim, at) for at in range(whole.shape[dim])]
    made, start = [], 0
    for part in node.meta["val"]:
        made.append(whole.part(dim, start, start + int(part.shape[dim])))
        start += int(part.shape[dim])
    return made


class Opaque:
    """An argument that is neither rows nor a constant."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node


def rows(value: Any) -> Rows:
    """An argument that has to be rows."""
    if isinstance(value, Rows):
        return value
    raise NotLowered("one of its inputs has no batch dimension of its own")


def name_of(node: fx.Node) -> str:
    """``"mul.Tensor"`` of ``aten.mul.Tensor``."""
    target = node.target
    return f"{target._opname}.{target._overloadname}" if isinstance(target, torch._ops.OpOverload) else str(target)


_FILLS: dict[str, Any] = {
    "zeros": 0.0, "new_zeros": 0.0, "zeros_like": 0.0, "ones": 1.0, "new_ones": 1.0, "ones_like": 1.0,
    "full": "fill_value", "new_full": "fill_value", "full_like": "fill_value",
}  # fmt: skip


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    return value.dtype if isinstance(value, Tensor) else None


def _flatten(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flatten(value)
        else:
            yield value


def _spoken(name: str) -> str:
    return name.split(".")[0].strip("_")
