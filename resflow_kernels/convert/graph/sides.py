"""The part of a graph that computes one side's vectors, as a module of its own that shares the model's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..patterns import CannotFuse
from .dots import Vectors, is_tensor, kind_of, norm_of, seen_through
from .trace import Traced

_ATEN = torch.ops.aten


def read_parts(graph: fx.Graph) -> None:
    """Let what takes columns of joined tensors read the one tensor that they are of."""
    for node in list(graph.nodes):
        if kind_of(node) not in ("narrow", "slice") or kind_of(node.args[0]) != "cat":
            continue
        joined = node.args[0]
        parts, dim = joined.args[0], (joined.args[1] if len(joined.args) > 1 else 0)
        rank = len(joined.meta["val"].shape)
        own = node.args[1] if len(node.args) > 1 else 0
        start = node.args[2] if len(node.args) > 2 else 0
        length = node.meta["val"].shape[own]
        sizes = [part.meta["val"].shape[dim] for part in parts]
        if own % rank != dim % rank or not all(isinstance(one, int) for one in (start, length, *sizes)):
            continue
        for part, size in zip(parts, sizes, strict=True):
            if start >= 0 and start + length <= size and (kind_of(node) == "narrow" or len(node.args) < 5):
                with graph.inserting_before(node):
                    made = part
                    if (start, length) != (0, size):
                        made = graph.call_function(_ATEN.narrow.default, (part, own, start, length))
                        made.meta = dict(node.meta)
                node.replace_all_uses_with(made)
                break
            start -= size
    graph.eliminate_dead_code()


class SideWriter:
    """Adds to a graph what makes columns of a side's vectors out of nodes of it."""

    def __init__(self, graph: fx.Graph, side: str) -> None:
        self.graph, self.side = graph, side
        self.columns: list[fx.Node] = []  # [N, width] each

    def call(self, op: Any, *args: Any) -> fx.Node:
        with self.graph.inserting_before(next(iter(self.graph.find_nodes(op="output")))):
            return self.graph.call_function(op, args)

    def vectors(self, factor: Vectors, times: Sequence[Any], over: Sequence[fx.Node]) -> None:
        """Columns of a product's factor, one vector after another."""
        node, rank = factor.node, len(factor.node.meta["val"].shape)
        rest = []
        for one in over:
            if seen_through(norm_of(one)) is seen_through(factor.node):
                length = seen_through(one)
                least = length.args[1] if kind_of(length) in ("clamp", "clamp_min") else 0.0
                factor = Vectors(node, factor.dim, float(least))
            else:
                rest.append(one)
        made = node
        if factor.dim != rank - 1:
            order = [*(axis for axis in range(rank) if axis != factor.dim), factor.dim]
            made = self.call(_ATEN.permute.default, made, order)
        if rank != 2:
            made = self.call(_ATEN.reshape.default, made, [-1, factor.width])
        if factor.length is not None:
            length = self.call(_ATEN.linalg_vector_norm.default, made, 2, [1], True)
            made = self.call(_ATEN.div.Tensor, made, self.call(_ATEN.clamp_min.default, length, factor.length))
        self._add(made, times, rest)

    def number(self, node: fx.Node | None, times: Sequence[Any], over: Sequence[fx.Node]) -> None:
        """A column of a number of this side; of ones without a node."""
        self._add(self.one() if node is None else self.call(_ATEN.reshape.default, node, [-1, 1]), times, over)

    def one(self) -> fx.Node:
        like = self.columns[0]
        return self.call(_ATEN.ones_like.default, self.call(_ATEN.slice.Tensor, like, 1, 0, 1))

    def _add(self, made: fx.Node, times: Sequence[Any], over: Sequence[fx.Node]) -> None:
        for factor in times:
            made = self.call(_ATEN.mul.Tensor, made, self._column(factor))
        for factor in over:
            made = self.call(_ATEN.div.Tensor, made, self._column(factor))
        self.columns.append(made)

    def _column(self, factor: Any) -> Any:
        if not isinstance(factor, fx.Node) or not factor.meta["val"].shape:
            return factor
        return self.call(_ATEN.reshape.default, factor, [-1, 1])

    def joined(self) -> fx.Node:
        return self.columns[0] if len(self.columns) == 1 else self.call(_ATEN.cat.default, list(self.columns), 1)


class Side(nn.Module):
    """A graph of its own, called with the list of its tensors."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, tensors: list[Tensor]) -> Tensor:
        """The vectors ``[N, width]``."""
        vectors: Tensor = self.graph(*tensors)
        return vectors


def side_module(traced: Traced, tensors: Mapping[str, Tensor], wanted: fx.Node) -> tuple[Side, list[int]]:
    """A module of the tensors that a node needs, in the order of the call's leaves, and which leaves those are."""
    needed, sizes = _needed(traced, wanted)
    graph = fx.Graph()
    root: dict[str, Any] = {}
    made: dict[fx.Node, fx.Node] = {}
    leaves = [at for at, node in enumerate(traced.inputs) if node in needed]
    for at in leaves:
        node = traced.inputs[at]
        assert node is not None
        made[node] = graph.placeholder(node.name)
    for node in traced.graph.nodes:
        if node not in needed or node in made:
            continue
        if node in traced.constants:
            const = traced.constants[node]
            name = traced.tensors[const.args[0]] if const.op == "tensor" else f"constant_{node.name}"
            root[name] = tensors[name] if const.op == "tensor" else const.args[0]
            made[node] = graph.get_attr(name)
        elif node in sizes:
            leaf, dim = sizes[node]
            made[node] = graph.call_function(_ATEN.sym_size.int, (made[leaf], dim))
        else:
            made[node] = graph.node_copy(node, made.__getitem__)
    graph.output(made[wanted])
    return Side(fx.GraphModule(root, graph)).eval(), leaves


def _needed(traced: Traced, wanted: fx.Node) -> tuple[set[fx.Node], dict[fx.Node, tuple[fx.Node, int]]]:
    """Nodes that a node is computed from, and sizes of the other side's tensors that a tensor of this side has too."""
    needed: set[fx.Node] = set()
    sizes: dict[fx.Node, tuple[fx.Node, int]] = {}
    later: list[fx.Node] = []
    stack = [wanted]
    while stack or later:
        if not stack:
            node = later.pop()
            found = _same_size(node, [one for one in traced.inputs if one in needed])
            if found is not None:
                sizes[node] = found
            else:
                stack += node.all_input_nodes
            continue
        node = stack.pop()
        if node in needed:
            continue
        needed.add(node)
        if kind_of(node) == "sym_size":
            later.append(node)
        else:
            stack += node.all_input_nodes
    for node in [one for one in traced.inputs if one in needed]:
        if not is_tensor(node):
            raise CannotFuse(f"{node}: it is no tensor")
    return needed, sizes


def _same_size(node: fx.Node, inputs: Sequence[fx.Node | None]) -> tuple[fx.Node, int] | None:
    size = node.meta["val"]
    if node.args[0] in inputs:
        return None
    for one in inputs:
        assert one is not None
        for dim, own in enumerate(one.meta["val"].shape):
            if not isinstance(own, int) and not isinstance(size, int) and own.node.expr == size.node.expr:
                return one, dim
    return None
