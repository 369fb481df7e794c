"""What is left of a graph as Python source: checks of the inputs, the user's own ops, and a call for each region.

Source, and a table of the names in it, can be pickled and are as fast as what torch.fx would write. ``t`` holds the
model's tensors, ``p`` the packed weights of the regions; a call of another kind than the one that was traced gives
``OTHER``.
"""

from __future__ import annotations

import operator
import re
import types
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from .calls import RegionCalls
from .constants import resolve
from .emit import Emitted
from .lowering import Lowering, name_of
from .regions import Cut
from .rows import Draft, shape_of
from .run import HELPERS
from .trace import Traced

Table = dict[str, tuple[str, Any]]  # a name in the source: what kind of thing it is, and which


class Other:
    """What a call gives that is of another kind than the traced one."""


def namespace(table: Table, runners: Sequence[Any]) -> dict[str, Any]:
    """What a source's names stand for."""
    made: dict[str, Any] = {"OTHER": Other, "Tensor": Tensor, **HELPERS}
    made |= {f"run{at}": runner for at, runner in enumerate(runners)}
    kinds = {
        "aten": resolve,
        "torch": lambda name: getattr(torch, name),
        "operator": lambda name: getattr(operator, name),
        "value": lambda value: value,
        "flatten": lambda kind: pytree.SUPPORTED_NODES[kind].flatten_fn,
        "unflatten": lambda spec: lambda leaves: pytree.tree_unflatten(leaves, spec),
    }
    return made | {name: kinds[kind](what) for name, (kind, what) in table.items()}


class Writer(RegionCalls):
    """Writes the function ``call(args, kwargs, t, p)``."""

    def __init__(self, traced: Traced, low: Lowering, cut: Cut, emitted: Sequence[Emitted]) -> None:
        self.traced, self.low, self.cut, self.emitted = traced, low, cut, emitted
        self.lines: list[str] = []
        self.table: Table = {}
        self._names: dict[fx.Node, str] = {}
        self._drafts: dict[int, str] = {}
        self._tensor_at = {node: at for at, node in enumerate(n for n in traced.constants if _is_live(traced, n))}
        self._count = 0

    def write(self) -> str:
        self._inputs()
        regions = {id(one.region): (at, one) for at, one in enumerate(self.emitted)}
        for level in range(max([*self.cut.kept.values(), *(one.region.level for one in self.emitted)], default=0) + 1):
            for node, depth in self.cut.kept.items():
                if depth == level:
                    self._node(node)
            for region in self.cut.regions:
                if region.level == level:
                    self._region(*regions[id(region)])
        self._output()
        body = "\n".join(f"    {line}" for line in _freed(_read(self.lines)))
        return f"def call(args, kwargs, t, p):\n{body}\n"

    def _new(self, prefix: str = "v") -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    def _add(self, line: str) -> None:
        self.lines.append(line)

    # The call

    def _inputs(self) -> None:
        read = {node for node in self.cut.kept if node.op == "placeholder"}
        self._leaf = 0
        self._sizes: dict[str, str] = {}
        args, kwargs = self.traced.in_spec.children()
        self._container("args", args, read, checked=True)
        self._container("kwargs", kwargs, read, checked=True)
        if self._sizes:
            self._add(f"sizes = ({', '.join(self._sizes.values())},)")
            self._add("if sizes not in known and not allowed(sizes, args, kwargs): return OTHER")

    def _container(self, name: str, spec: pytree.TreeSpec, read: set[fx.Node], checked: bool = False) -> None:
        if spec.is_leaf():
            self._one_leaf(name, read)
            return
        if spec.type not in (tuple, list, dict):
            self._foreign(name, spec, read)
            return
        children = spec.children()
        if checked or spec.type is not dict:
            self._add(f"if len({name}) != {len(children)}: return OTHER")
        keys = spec.context if spec.type is dict else range(len(children))
        for key, child in zip(keys, children, strict=True):
            own = self._new("i")
            at = len(self.lines)
            self._container(own, child, read)
            if len(self.lines) > at:
                if spec.type is dict:
                    self.lines.insert(at, f"if {own} is OTHER: return OTHER")
                    self.lines.insert(at, f"{own} = {name}.get({key!r}, OTHER)")
                else:
                    self.lines.insert(at, f"{own} = {name}[{key!r}]")

    def _foreign(self, name: str, spec: pytree.TreeSpec, read: set[fx.Node]) -> None:
        """A container of the user's own, such as a KeyedJaggedTensor: what pytree knows of it takes it apart."""
        leaves, context = self._new("i"), self._new("i")
        flat = all(child.is_leaf() for child in spec.children())
        if flat and spec.type in pytree.SUPPORTED_NODES:
            kind = self._named("value", spec.type, "c")
            self._add(f"if type({name}) is not {kind}: return OTHER")
            self._add(f"{leaves}, {context} = {self._named('flatten', spec.type, 'f')}({name})")
            self._add(f"if {context} != {self._named('value', spec.context, 'c')}: return OTHER")
        else:
            self._add(f"{leaves}, {context} = {self._named('value', pytree.tree_flatten, 'f')}({name})")
            self._add(f"if {context} != {self._named('value', spec, 'c')}: return OTHER")
        for at in range(spec.num_leaves):
            own = self._new("i")
            self._add(f"{own} = {leaves}[{at}]")
            self._one_leaf(own, read)

    def _one_leaf(self, name: str, read: set[fx.Node]) -> None:
        node, example = self.traced.inputs[self._leaf], self.traced.example[self._leaf]
        self._leaf += 1
        if node is None:
            literal = self._literal(example)
            self._add(
                f"if {name} is not {literal}: return OTHER"
                if example is None
                else f"if {name} != {literal}: return OTHER"
            )
        elif node in read or any(user in self.cut.kept for user in node.users):
            self._names[node] = name
            self._check(name, node)

    def _check(self, name: str, node: fx.Node) -> None:
        shape = shape_of(node)
        assert shape is not None
        dtype = self._literal(node.meta["val"].dtype)
        self._add(f"if not isinstance({name}, Tensor) or {name}.dtype is not {dtype}: return OTHER")
        size = self._new("s")
        self._add(f"{size} = {name}.shape")
        checks = [f"len({size}) != {len(shape)}"]
        for axis, one in enumerate(shape):
            if isinstance(one, int):
                checks.append(f"{size}[{axis}] != {one}")
            elif one in self._sizes:
                checks.append(f"{size}[{axis}] != {self._sizes[one]}")
            elif one.isidentifier():
                self._sizes[one] = f"{size}[{axis}]"
            else:
                checks += self._multiple(one, f"{size}[{axis}]")
        self._add(f"if {' or '.join(checks)}: return OTHER")

    def _multiple(self, expression: str, size: str) -> list[str]:
        """Checks of a size that is a multiple of another one, which it tells where that is not known yet."""
        match = re.fullmatch(r"(\d+)\*(\w+)", expression)
        if match is None:
            return []
        times, symbol = match.groups()
        if symbol in self._sizes:
            return [f"{size} != {times} * {self._sizes[symbol]}"]
        self._sizes[symbol] = f"{size} // {times}"
        return [f"{size} % {times}"]

    # The user's own ops

    def _node(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if node in self._tensor_at:
                self._names[node] = f"t[{self._tensor_at[node]}]"
            elif node in self.traced.constants:
                self._names[node] = self._named("value", self.traced.constants[node].args[0], "c")
            return
        if node.op != "call_function":
            return
        name = self._names[node] = self._new()
        self._add(f"{name} = {self._called(node)}")

    def _called(self, node: fx.Node) -> str:
        target = node.target
        args = [self._literal(argument) for argument in node.args]
        kwargs = [f"{key}={self._literal(value)}" for key, value in node.kwargs.items()]
        if target is operator.getitem:
            return f"{args[0]}[{args[1]}]"
        if not isinstance(target, torch._ops.OpOverload):
            known = _operator_name(target)
            function = self._named("operator", known, "f") if known else self._named("value", target, "f")
            return f"{function}({', '.join([*args, *kwargs])})"
        short = _SHORT.get(name_of(node))
        if short is not None and not kwargs:
            made = short(*args)
            if made is not None:
                return made
        name = {"view": "reshape"}.get(target._opname, target._opname)
        own = getattr(torch, name, None)
        if target.namespace == "aten" and isinstance(own, types.BuiltinFunctionType) and not _renamed(target):
            return f"{self._named('torch', name, 'f')}({', '.join([*args, *kwargs])})"
        if target.namespace != "aten":
            return f"{self._named('value', target, 'f')}({', '.join([*args, *kwargs])})"
        full = f"{name}.{target._overloadname if name == target._opname else 'default'}"
        return f"{self._named('aten', full, 'f')}({', '.join([*args, *kwargs])})"

    def _named(self, kind: str, what: Any, prefix: str) -> str:
        if kind != "value":
            for name, known in self.table.items():
                if known == (kind, what):
                    return name
        name = self._new(prefix)
        self.table[name] = (kind, what)
        return name

    def _literal(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self._names[value]
        if value is None or isinstance(value, (bool, int, str)):
            return repr(value)
        if isinstance(value, (list, tuple)):
            inside = ", ".join(self._literal(one) for one in value)
            return f"[{inside}]"
        if isinstance(value, float) and value == value and abs(value) != float("inf"):
            return repr(value)
        for name, (kind, what) in self.table.items():
            if kind == "value" and type(what) is type(value) and not isinstance(what, Tensor) and what == value:
                return name
        return self._named("value", value, "c")

    def _output(self) -> None:
        (values,) = next(iter(self.traced.graph.find_nodes(op="output"))).args
        leaves = [self._literal(value) for value in values]  # type: ignore[union-attr]
        self._add(f"return {self._structured(self.traced.out_spec, leaves)}")

    def _structured(self, spec: pytree.TreeSpec, leaves: list[str]) -> str:
        if spec.is_leaf():
            return leaves[0]
        if spec.type not in (tuple, list, dict):
            return f"{self._named('unflatten', spec, 'u')}([{', '.join(leaves)}])"
        made, at = [], 0
        for child in spec.children():
            made.append(self._structured(child, leaves[at : at + child.num_leaves]))
            at += child.num_leaves
        if spec.type is dict:
            return "{" + ", ".join(f"{key!r}: {one}" for key, one in zip(spec.context, made, strict=True)) + "}"
        inside = ", ".join(made)
        return f"[{inside}]" if spec.type is list else f"({inside},)" if made else "()"


def _read(lines: Sequence[str]) -> list[str]:
    """The lines without assignments that no later line reads: every op of an exported graph is pure."""
    kept: list[str] = []
    read: set[str] = set()
    for line in reversed(lines):
        match = re.match(r"((?:[vrx]\d+, )*[vrx]\d+) = ", line)
        if match is None or read.intersection(match[1].split(", ")):
            kept.append(line)
            read.update(re.findall(r"\b[vrx]\d+\b", line[match.end() :] if match else line))
    return kept[::-1]


def _is_live(traced: Traced, node: fx.Node) -> bool:
    return traced.constants[node].op == "tensor"


def _operator_name(target: Any) -> str | None:
    name = target.__name__.strip("_")
    return name if getattr(operator, name, None) is target else None


def _renamed(target: torch._ops.OpOverload) -> bool:
    """Whether Python's binding of an op takes other arguments than the op."""
    return target._opname in ("to", "tensor", "arange", "full", "zeros", "ones", "empty", "sym_size")


def _whole_slice(value: str, dim: str = "0", start: str = "None", end: str = "None", step: str = "1") -> str | None:
    if step != "1" or not dim.isdecimal() or int(dim) > 2:
        return None
    if start in ("0", "None") and end in ("9223372036854775807", "None"):
        return value
    before = ":, " * int(dim)
    return (
        f"{value}[{before}{'' if start == 'None' else start}:{'' if end in ('None', '9223372036854775807') else end}]"
    )


_SHORT: dict[str, Any] = {
    "slice.Tensor": _whole_slice,
    "sym_size.int": lambda value, dim: f"{value}.shape[{dim}]",
    "to.dtype": lambda value, dtype, *rest: f"{value}.to({dtype})" if not rest else None,
    "select.int": lambda value, dim, index: f"{value}.select({dim}, {index})",
    "unsqueeze.default": lambda value, dim: f"{value}.unsqueeze({dim})",
    "view.default": lambda value, shape: f"{value}.reshape({shape})",
    "expand.default": lambda value, shape: f"{value}.expand({shape})",
}


def _freed(lines: list[str]) -> Iterable[str]:
    """The lines, each variable dropped after its last use."""
    last: dict[str, int] = {}
    for at, line in enumerate(lines):
        for name in re.findall(r"\b[vrx]\d+\b", line):
            last[name] = at
    for at, line in enumerate(lines):
        yield line
        dead = [name for name, when in last.items() if when == at]
        if dead and at < len(lines) - 1:
            yield " = ".join(dead) + " = None"


__all__ = ["Draft", "Other", "Table", "Writer", "namespace"]
