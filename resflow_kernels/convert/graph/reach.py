"""What of a call's tensors each node of a graph reads, element by element, as seen in one call."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .dots import is_tensor, kind_of
from .trace import Traced

_MOVES = (
    "slice", "narrow", "select", "squeeze", "unsqueeze", "view", "reshape", "flatten", "unflatten", "split",
    "split_with_sizes", "chunk", "unbind", "permute", "transpose", "t", "to", "_to_copy", "cat", "stack",
    "index_select", "alias", "contiguous", "clone", "detach", "expand",
)  # fmt: skip


class Reach:
    """Which elements of the call's tensors each node reads, in one call of the model.

    Elements tell two sides apart that read columns of one matrix, or keys of one KeyedJaggedTensor. Sizes, and where
    the bags of a table begin, are not what a node reads.
    """

    def __init__(self, traced: Traced, tensors: Mapping[str, Tensor]) -> None:
        self.traced = traced
        self._sets: dict[fx.Node, int] = {}
        self._moved: dict[fx.Node, Any] = {}
        self.first: dict[fx.Node, int] = {}  # of the elements of an input
        with torch.no_grad():
            values = _Values(traced, tensors)
            values.run(*[leaf for leaf, node in zip(traced.example, traced.inputs, strict=True) if node is not None])
        self.values = values.known
        count = 0
        for node in traced.inputs:
            if node is not None:
                value = self.values[node]
                self.first[node] = count
                numbers = torch.arange(count, count + value.numel(), device=value.device)
                self._moved[node] = numbers.reshape(value.shape)
                count += value.numel()
        self._count = count
        for node in traced.graph.nodes:
            if node.op == "call_function":
                self._read(node)

    def of(self, node: fx.Node) -> int:
        """The elements that a node reads, as the bits of a number."""
        if node not in self._sets:
            read = np.zeros(self._count, bool)
            for one in pytree.tree_leaves(self._moved.get(node)):
                if isinstance(one, Tensor):
                    read[one.flatten().cpu().numpy()] = True
            self._sets[node] = int.from_bytes(np.packbits(read, bitorder="little").tobytes(), "little")
        return self._sets[node]

    def moved(self, node: fx.Node) -> Tensor | None:
        """The numbers of the elements that a node's tensor holds; ``None`` where it is computed from them."""
        found = self._moved.get(node)
        return found if isinstance(found, Tensor) else None

    def _read(self, node: fx.Node) -> None:
        if not is_tensor(node) and not isinstance(node.meta.get("val"), (list, tuple)):
            return  # a size
        sources = node.all_input_nodes
        moving = node.target is operator.getitem or kind_of(node) in _MOVES or self._is_shifted(node)
        if moving and any(one in self._moved for one in sources):
            try:
                self._moved[node] = self._move(node)
                return
            except Exception:  # an op that takes no numbers of that kind: what it reads is all of its inputs
                self._moved.pop(node, None)
        if kind_of(node) in ("embedding_bag", "_embedding_bag"):
            sources = [one for one in (*node.args[:2], *node.args[6:7]) if isinstance(one, fx.Node)]
        self._sets[node] = reduce(or_, (self.of(one) for one in sources), 0)

    def _is_shifted(self, node: fx.Node) -> bool:
        """Whether it adds constants to integers: where a feature's rows begin in a table of several."""
        if kind_of(node) != "add" or node.meta["val"].is_floating_point() or node.args[0] not in self._moved:
            return False
        return not isinstance(node.args[1], fx.Node) or not self.of(node.args[1])

    def _move(self, node: fx.Node) -> Any:
        """A node's own op, on the numbers of the elements instead of the elements."""

        def given(one: fx.Node) -> Any:
            if one in self._moved:
                return self._moved[one]
            if self.of(one) or kind_of(node) in ("cat", "stack"):  # a constant among what is joined is no element
                raise ValueError("it reads more than it moves")
            return self.values[one]

        args: Any = fx.node.map_arg(node.args, given)
        kwargs: Any = fx.node.map_arg(node.kwargs, given)
        if kind_of(node) in ("to", "_to_copy"):
            return args[0]
        if self._is_shifted(node):
            return args[0].broadcast_to(self.values[node].shape)
        assert callable(node.target)
        return node.target(*args, **kwargs)


class _Values(fx.Interpreter):
    """Runs a graph on its example and keeps all that it computes."""

    def __init__(self, traced: Traced, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(nn.Module(), garbage_collect_values=False, graph=traced.graph)
        self._traced, self._tensors = traced, tensors
        self.known: dict[fx.Node, Any] = {}
        self._given: Iterator[Any] = iter(())

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self._given = iter(args)
        return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "placeholder":
            const = self._traced.constants.get(n)
            if const is not None:
                made = self._tensors[self._traced.tensors[const.args[0]]] if const.op == "tensor" else const.args[0]
            else:
                made = next(self._given) if n in self._traced.inputs else None
        else:
            made = super().run_node(n)
        self.known[n] = made
        return made
