"""Reads what a graph ends in as dot products of a user's and an item's vectors.

A logit is followed backwards from the output, through a sigmoid or a softmax, sums, and factors, to the products where
what is computed of one side meets what is computed of the other. What is found are terms: products of vectors, and
numbers of one side alone (a bias of the user), each with its factors.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from ..patterns import CannotFuse
from .lowering import name_of
from .report import _modules

ENDINGS = ("sigmoid", "softmax", "_softmax", "log_softmax", "_log_softmax")
SAME = (
    "squeeze", "unsqueeze", "view", "reshape", "_unsafe_view", "flatten", "unflatten", "contiguous", "clone", "alias",
    "detach", "dropout", "to", "_to_copy",
)  # fmt: skip
_SPREAD = (*SAME, "expand", "expand_as", "broadcast_to")
_NEGLIGIBLE = 1e-6  # added to a product of two lengths, against a division by 0


@dataclass
class Vectors:
    """A factor of a product: a node's tensor, whose vectors lie along one dimension."""

    node: fx.Node
    dim: int  # counted from the front
    length: float | None = None  # brought to length 1, or divided by this if it is longer than that

    @property
    def width(self) -> int:
        return int(self.node.meta["val"].shape[self.dim])


@dataclass
class Term:
    """A product of two factors, or a number of one side, times and over what one side or none computes."""

    pair: tuple[Vectors, Vectors] | None
    number: fx.Node | None = None
    times: list[Any] = field(default_factory=list)
    over: list[fx.Node] = field(default_factory=list)
    outer: bool = False  # every first vector meets every second one

    def scaled(self, times: Sequence[Any] = (), over: Sequence[fx.Node] = ()) -> Term:
        return Term(self.pair, self.number, [*self.times, *times], [*self.over, *over], self.outer)


@dataclass
class Ending:
    """What an output is: a logit, the terms that it is the sum of, and what is done to it."""

    logit: fx.Node
    terms: list[Term]
    ending: str  # "", or one of ENDINGS


def where(node: fx.Node) -> str:
    """A node in the user's words: the module that it belongs to and what it is."""
    (module,) = _modules([node])
    name = "getitem" if node.target is operator.getitem else name_of(node).split(".")[0].strip("_")
    return f"{name} in {module}"


def kind_of(node: Any) -> str:
    """An ATen op's name; an empty text for what is none."""
    return name_of(node).split(".")[0] if isinstance(node, fx.Node) and node.op == "call_function" else ""


def read_endings(node: fx.Node) -> list[Ending]:
    """An output as logits; it is several where it joins one column for each task."""
    ending = ""
    inner = seen_through(node, SAME)
    if kind_of(inner) in ENDINGS:
        ending, node = kind_of(inner).strip("_"), _node(inner.args[0])
    joined = seen_through(node, SAME)
    if kind_of(joined) in ("cat", "stack") and _is_column_each(joined):
        return [made for part in joined.args[0] for made in read_endings(part)]
    return [Ending(node, _terms(node), ending)]


def _is_column_each(node: fx.Node) -> bool:
    shape = node.meta["val"].shape
    dim = joined_dim(node)
    return len(shape) == 2 and dim == 1 and shape[1] == len(node.args[0])  # type: ignore[arg-type]


def unscaled(node: fx.Node) -> fx.Node:
    """What numbers are multiplied with and added to, at the end of a graph."""
    while kind_of(node) in ("mul", "div", "add", "sub", *_SPREAD):
        sources = node.all_input_nodes
        if len(sources) != 1:
            break
        (node,) = sources
    return node


def joined_dim(node: fx.Node) -> int:
    """The dimension along which a ``cat`` or ``stack`` joins, counted from the front."""
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return int(dim) % len(node.meta["val"].shape)


def seen_through(node: Any, kinds: Sequence[str] = _SPREAD) -> Any:
    """What a node only shows in another shape."""
    while kind_of(node) in kinds or _is_whole(node):
        node = node.args[0]
    return node


def _is_whole(node: Any) -> bool:
    """Whether a slice takes all candidates."""
    if kind_of(node) != "slice":
        return False
    given: list[Any] = [*node.args[1:], *(0, None, None, 1)[len(node.args) - 1 :]]
    dim, start, end, step = given
    return dim == 0 and start in (0, None) and end in (None, sys.maxsize) and step == 1


def _node(value: Any) -> fx.Node:
    if not isinstance(value, fx.Node):
        raise CannotFuse("its output is a number")
    return value


def _terms(node: fx.Node) -> list[Term]:
    node = seen_through(node)
    kind = kind_of(node)
    found = _product(node, kind)
    if found is not None:
        return [found]
    if kind in ("add", "sub"):
        return _sum(node, kind)
    if kind in ("mul", "div"):
        return _scaled(node, kind)
    if kind in ("clamp", "clip", "hardtanh") and _is_cosine(node):
        return _terms(_node(node.args[0]))
    return [Term(None, node)]


def _sum(node: fx.Node, kind: str) -> list[Term]:
    sign = -1.0 if kind == "sub" else 1.0
    alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
    first, second = node.args[:2]
    made = _terms(first) if isinstance(first, fx.Node) else [Term(None, None, [first])]
    other = _terms(second) if isinstance(second, fx.Node) else [Term(None, None, [second])]
    factor = sign * float(alpha)  # type: ignore[arg-type]
    return made + (other if factor == 1 else [term.scaled([factor]) for term in other])


def _scaled(node: fx.Node, kind: str) -> list[Term]:
    first, second = node.args[:2]
    if kind == "mul" and not (isinstance(first, fx.Node) and _has_product(first)):
        first, second = second, first
    if not isinstance(first, fx.Node) or not _has_product(first):
        return [Term(None, node)]
    if not isinstance(second, fx.Node):
        factor = float(second) if kind == "mul" else 1.0 / float(second)  # type: ignore[arg-type]
        return [term.scaled([factor]) for term in _terms(first)]
    if kind == "mul":
        return [term.scaled([second]) for term in _terms(first)]
    return [term.scaled((), _factors(second)) for term in _terms(first)]


def _factors(node: fx.Node) -> list[fx.Node]:
    """The factors of a denominator; what keeps it from being 0 is left out."""
    inner = seen_through(node)
    kind = kind_of(inner)
    if kind == "mul" and all(isinstance(one, fx.Node) for one in inner.args[:2]):
        return [factor for one in inner.args[:2] for factor in _factors(one)]
    least = inner.args[1] if kind in ("add", "clamp", "clamp_min", "clip") and len(inner.args) > 1 else None
    product = isinstance(inner, fx.Node) and inner.args and kind_of(seen_through(inner.args[0])) == "mul"
    if product and isinstance(least, (int, float)) and 0 <= least <= _NEGLIGIBLE and len(inner.args) == 2:
        return _factors(inner.args[0])
    return [node]


def _has_product(node: fx.Node) -> bool:
    return any(term.pair is not None for term in _terms(node))


def _is_cosine(node: fx.Node) -> bool:
    """Whether a clamp's bounds are beyond what a cosine can be."""
    least, most = (*node.args[1:3], *node.kwargs.values())[:2] if len(node.args) + len(node.kwargs) == 3 else (0, 0)
    if not all(isinstance(one, (int, float)) for one in (least, most)) or least > -1 or most < 1:  # type: ignore[operator]
        return False
    terms = _terms(_node(node.args[0]))
    if len(terms) != 1 or terms[0].pair is None or terms[0].times:
        return False
    (first, second), over = terms[0].pair, [norm_of(one) for one in terms[0].over]
    return all(
        one.length is not None or _is_unit(one.node) or any(seen_through(own) is seen_through(one.node) for own in over)
        for one in (first, second)
    )


def _is_unit(node: fx.Node) -> bool:
    node = seen_through(node)
    return kind_of(node) == "div" and seen_through(norm_of(node.args[1])) is seen_through(node.args[0])


def norm_of(node: Any) -> fx.Node | None:
    """What a node is the length of, through a clamp from below."""
    node = seen_through(node)
    if kind_of(node) in ("clamp", "clamp_min"):
        node = seen_through(node.args[0])
    if kind_of(node) not in ("linalg_vector_norm", "norm"):
        return None
    order = node.args[1] if len(node.args) > 1 else 2
    return node.args[0] if order in (None, 2) and len(node.args) > 2 else None


# Products


def _product(node: Any, kind: str) -> Term | None:
    if kind in ("sum", "mean"):
        return _summed(node, kind)
    if kind in ("matmul", "mm", "bmm"):
        return _matmul(*node.args[:2])
    if kind == "einsum":
        return _einsum(node)
    if kind in ("cosine_similarity", "linalg_vecdot"):
        named = {argument.name: argument.default_value for argument in node.target._schema.arguments}
        given = dict(zip(named, node.args, strict=False)) | dict(node.kwargs)
        cosine = kind == "cosine_similarity"
        epsilon = float(given.get("eps", named["eps"])) if cosine else None
        first, second = (given["x1"], given["x2"]) if cosine else (given["x"], given["y"])
        return _joined(first, second, given.get("dim", named["dim"]), len(node.meta["val"].shape) + 1, epsilon)
    return None


def _summed(node: fx.Node, kind: str) -> Term | None:
    inner = node.args[0]
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if kind_of(inner) not in ("mul", "multiply") or not isinstance(dims, (list, tuple)) or len(dims) != 1:
        return None
    assert isinstance(inner, fx.Node)
    if not all(isinstance(one, fx.Node) for one in inner.args[:2]):
        return None
    first, second = inner.args[:2]
    term = _joined(first, second, dims[0], len(inner.meta["val"].shape), None)
    if term is None or kind == "sum":
        return term
    assert term.pair is not None
    return term.scaled([1.0 / term.pair[0].width])


def _joined(first: Any, second: Any, dim: Any, rank: int, length: float | None) -> Term | None:
    """The product of two tensors that broadcast to ``rank`` dimensions, along one of them."""
    place = int(dim) % rank
    pair: list[Vectors] = []
    across: list[set[int]] = []  # the other dimensions in which each has more than one
    for one in (first, second):
        while kind_of(one) in ("expand", "expand_as"):  # the same vectors for each of several
            if len(one.args[0].meta["val"].shape) != rank:
                break
            one = one.args[0]
        shape = one.meta["val"].shape
        at = place - rank + len(shape)
        if at < 0 or not isinstance(shape[at], int):
            return None
        pair.append(Vectors(one, at, length))
        others = (axis for axis, size in enumerate(shape, start=rank - len(shape)) if size != 1)
        across.append({axis for axis in others if axis != place})
    if pair[0].width != pair[1].width:
        return None
    return Term((pair[0], pair[1]), outer=bool(across[0] and across[1]) and not across[0] & across[1])


def _matmul(first: Any, second: Any) -> Term | None:
    if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)):
        return None
    a, b = len(first.meta["val"].shape), len(second.meta["val"].shape)
    if a != b or a not in (2, 3):
        return None
    if second.op == "placeholder" or not isinstance(first.meta["val"].shape[-1], int):
        return None
    return Term((Vectors(first, a - 1), Vectors(second, b - 2)), outer=a == 2)


def _einsum(node: fx.Node) -> Term | None:
    equation, operands = node.args[:2]
    inputs, _, output = str(equation).replace(" ", "").partition("->")
    names = inputs.split(",")
    if "." in inputs or not output or len(names) != 2 or not isinstance(operands, (list, tuple)):
        return None
    summed = set(names[0] + names[1]) - set(output)
    if len(summed) != 1 or any(len(set(name)) != len(name) for name in names):
        return None
    (index,) = summed
    if not all(index in name for name in names) or not _in_order(names, output, index):
        return None
    first, second = operands
    assert isinstance(first, fx.Node) and isinstance(second, fx.Node)
    outer = not (set(names[0]) & set(names[1]) - {index})
    return Term((Vectors(first, names[0].index(index)), Vectors(second, names[1].index(index))), outer=outer)


def _in_order(names: Sequence[str], output: str, index: str) -> bool:
    """Whether the results stand in the order of the first operand's vectors, then the second's."""
    first, second = ("".join(name.split(index)) for name in names)
    if not set(first) & set(second):
        return output == first + second
    short, long = sorted((first, second), key=len)
    return output == long and output.startswith(short)


def is_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor)
