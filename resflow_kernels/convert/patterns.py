"""The patterns that :mod:`resflow_kernels.convert.fuse` recognises in a traced graph, node by node."""

from __future__ import annotations

import operator
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..nn.layers import TowerLayer, activation_name
from ..reference import activations

GETITEM = operator.getitem
_Module = TypeVar("_Module", bound=nn.Module)

_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")


class CannotFuse(ValueError):
    """Some part of a model is not a residual tower network; the message names it."""


class ReadLayer(NamedTuple):
    """One tower layer found in the graph."""

    made: TowerLayer
    linear: fx.Node


def argument(node: fx.Node) -> fx.Node:
    """A node's first argument."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(first, fx.Node):
        raise CannotFuse(f"{node}: its input is not a tensor of the graph")
    return first


def module(traced: fx.GraphModule, node: fx.Node, kind: type[_Module]) -> _Module | None:
    """The module that a node calls, if it is of this kind."""
    if node.op != "call_module":
        return None
    found = traced.get_submodule(str(node.target))
    return found if isinstance(found, kind) else None


def added(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors a node adds."""
    if node.op in ("call_function", "call_method") and node.target in _ADDS and not node.kwargs and len(node.args) == 2:
        a, b = node.args
        if isinstance(a, fx.Node) and isinstance(b, fx.Node):
            return a, b
    return None


def squeezed(node: fx.Node) -> fx.Node | None:
    """The ``[B, 1]`` tensor that a node squeezes to ``[B]``."""
    if node.target in (torch.squeeze, "squeeze"):
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return argument(node) if dim in (1, -1) else None
    if node.target is GETITEM and node.args[1] in ((slice(None), 0), (slice(None, None, None), -1), (..., 0)):
        return argument(node)
    if node.target == "flatten" and len(node.args) == 1 and not node.kwargs:
        return argument(node)
    return None


def clamped_at_zero(traced: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """``v`` where the node is ``min(v, 0)`` in one of its forms."""
    if node.target in (torch.clamp, "clamp", torch.clamp_max, "clamp_max"):
        bounds = dict(zip(("min", "max"), node.args[1:], strict=False)) if "max" not in str(node.target) else {}
        if node.target in (torch.clamp_max, "clamp_max"):
            bounds = {"max": node.args[1]} if len(node.args) > 1 else {}
        bounds |= node.kwargs
        bounds.pop("input", None)
        if bounds.get("min") is None and bounds.get("max") == 0:
            return argument(node)
    if node.target in (operator.neg, torch.neg, "neg"):
        relu = argument(node)
        if relu.target in (F.relu, torch.relu, "relu") or module(traced, relu, nn.ReLU):
            negated = argument(relu)
            if negated.target in (operator.neg, torch.neg, "neg"):
                return argument(negated)
    return None


def clamp_parts(node: fx.Node) -> list[fx.Node]:
    """The nodes inside ``-relu(-v)``, if ``node`` is its end."""
    if node.target not in (operator.neg, torch.neg, "neg"):
        return []
    relu = argument(node)
    return [relu, argument(relu)]


def is_sigmoid(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a sigmoid of its input."""
    return node.target in (torch.sigmoid, F.sigmoid, "sigmoid") or module(traced, node, nn.Sigmoid) is not None


def is_layer_part(node: fx.Node) -> bool:
    """Whether a node may be between a Linear and the layer's output."""
    return node.op == "call_module" or node.target in activations.FUNCTIONS or node.target in (F.dropout,)


def activation(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """A node's activation as a module: the user's own, or a new one for a function call."""
    own = module(traced, node, nn.Module)
    if own is not None:
        return own if activations.resembles(own) else None
    if node.op in ("call_function", "call_method") and node.target in activations.FUNCTIONS:
        settings = {name: value for name, value in node.kwargs.items() if name not in ("input", "inplace")}
        return activations.FUNCTIONS[node.target](*node.args[1:], **settings)
    return None


def read_layer(traced: fx.GraphModule, output: fx.Node) -> ReadLayer | None:
    """The tower layer that ends in ``output``, a Linear and what follows it; ``None`` if there is none."""
    parts: list[tuple[fx.Node, nn.Module]] = []
    node = output
    while (linear := module(traced, node, nn.Linear)) is None:
        part = activation(traced, node) or module(traced, node, nn.BatchNorm1d) or module(traced, node, nn.Dropout)
        if part is None:
            return None
        parts.insert(0, (node, part))
        node = argument(node)
    for reader in [node, *(part for part, _ in parts)]:
        if reader is not output and len(reader.users) != 1:
            raise CannotFuse(f"{reader}: used more than once inside a tower layer")
    return ReadLayer(_make_layer(linear, parts, output), node)


def _make_layer(linear: nn.Linear, parts: list[tuple[fx.Node, nn.Module]], output: fx.Node) -> TowerLayer:
    act: nn.Module | None = None
    norm: nn.BatchNorm1d | None = None
    dropout: nn.Module | None = None
    norm_after = True
    for node, part in parts:
        if isinstance(part, nn.Identity):
            continue
        if isinstance(part, nn.Dropout):
            if part.p > 0 and dropout is not None:
                raise CannotFuse(f"{node.target}: a second Dropout in one layer")
            dropout = part if part.p > 0 else dropout
            continue
        if dropout is not None:
            raise CannotFuse(f"{node.target}: stands after a Dropout in the same layer; a Dropout must come last")
        if isinstance(part, nn.BatchNorm1d):
            if norm is not None:
                raise CannotFuse(f"{node.target}: a second BatchNorm in one layer")
            if part.running_mean is None:
                raise CannotFuse(f"{node.target}: a BatchNorm without running statistics")
            norm, norm_after = part, act is not None
        elif act is not None:
            raise CannotFuse(f"{node.target}: a second activation in one layer")
        else:
            act = part
            activation_name(part)  # raises for an activation that the plan cannot name
    return TowerLayer(linear, nn.Identity() if act is None else act, norm, norm_after, dropout)
