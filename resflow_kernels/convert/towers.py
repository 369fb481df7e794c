"""Replaces the tower network inside a user's own ranker.

The model is traced with ``torch.fx``. Towers are read backwards from their heads (Linears of one output): layer by
layer down to the one node that feeds all first layers, noting where another tower's hidden output is added. Then the
logits are followed forwards through their own residual adds. The result is one :class:`ResFlow` around the user's own
layers; everything before and after it in the graph remains the user's.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ..core.plan import Plan
from ..nn import ResFlow
from ..nn.layers import TowerLayer
from . import patterns
from .names import OwnNames
from .patterns import CannotFuse

__all__ = ["CannotFuse", "fuse"]


@dataclass
class _Tower:
    """One task's layers as read from the graph, first layer first."""

    head: fx.Node
    layers: list[TowerLayer]
    own: list[fx.Node]  # f_k^l
    outputs: list[fx.Node]  # o_k^l: the same node where nothing is added
    residuals: list[fx.Node | None]  # the added node; None without a residual
    linears: list[fx.Node]
    input: fx.Node


@dataclass
class _Logit:
    """A task's logit at a node of the graph: its own logit r, or its final logit z."""

    task: int
    final: bool
    clamped: bool = False
    squeezed: bool = False  # [B] instead of [B, 1]


def fuse(model: nn.Module) -> nn.Module:
    """A module that scores like ``model`` with its tower network replaced by one :class:`ResFlow`.

    Towers are ``Linear``, ``BatchNorm1d``, activations and ``Dropout``, in ``nn.Sequential`` or called one by one;
    residual adds join hidden outputs, logits, or both; the topology is any forest. The replacement takes and
    returns what ``model`` does, shares its layers (so that training either trains both), and holds the ranker
    as ``.resflow``. It is in training or eval mode as ``model`` is, and loads state dicts of either.

    Args:
        model: a module ``torch.fx`` can trace, whose towers read ``[B, D]`` rows.

    Raises:
        CannotFuse: some part is not of this kind; the message names it and says why.
    """
    switches = _switches(model)
    try:
        traced = fx.symbolic_trace(model, switches)
    except Exception as error:
        raise CannotFuse(f"{type(model).__name__}: torch.fx cannot trace it: {error}") from error
    _keep_names(traced, switches)
    towers = _read_towers(traced)
    source = _one_input(towers)
    hidden_parents = _hidden_parents(towers)
    logits = _read_logits(traced, towers)
    logit_parents, clamped = _logit_parents(traced, towers, logits)
    parents, feature_residual, logit_residual = _agree(towers, hidden_parents, logit_parents)
    order = _parents_first(parents)
    _refuse_other_uses(towers, logits)

    place = {task: at for at, task in enumerate(order)}
    ordered = [towers[task] for task in order]
    input_norm = patterns.module(traced, source, nn.BatchNorm1d)
    plan = Plan(
        in_features=ordered[0].layers[0].linear.in_features,
        hidden=tuple(layer.linear.out_features for layer in ordered[0].layers),
        parents=tuple(place[parents[task]] if parents[task] >= 0 else -1 for task in order),
        activations=tuple(layer.activation_name for layer in ordered[0].layers),
        feature_residual=feature_residual,
        logit_residual=logit_residual,
        non_increasing=clamped,
        affine=any(layer.norm is not None and layer.norm_after_activation for t in ordered for layer in t.layers),
    )
    heads = [patterns.module(traced, tower.head, nn.Linear) for tower in ordered]
    names = [str(tower.head.target).replace(".", "_") for tower in ordered]
    ranker = ResFlow.from_layers(plan, names, [t.layers for t in ordered], [h for h in heads if h], input_norm)
    altered = ranker._altered()
    if altered is not None:
        raise CannotFuse(f"{type(model).__name__}: as plain towers nothing of it would run in the ops: {altered}")
    ranker.to(ordered[0].layers[0].linear.weight.dtype)  # its fusion weights are the one thing it brings itself
    rows = source.args[0] if input_norm is not None else source
    assert isinstance(rows, fx.Node)
    made = _rewrite(traced, ranker, rows, logits, place).train(model.training)
    made.register_load_state_dict_pre_hook(OwnNames(model, made))
    return made


def _switches(model: nn.Module) -> dict[str, Any]:
    """Arguments left out that decide what is computed, by their defaults: a trace holds for these values alone.

    ``if mask is not None`` sees a proxy otherwise, which is never ``None``. A call with another value raises.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    return {one.name: one.default for one in parameters if one.default is None or isinstance(one.default, (bool, str))}


def _keep_names(traced: fx.GraphModule, switches: Mapping[str, Any]) -> None:
    """Give fixed arguments their names back: torch.fx numbers them."""
    names = list(switches)
    for node in traced.graph.nodes:
        if node.op == "placeholder" and (name := str(node.target).rpartition("_")[0]) in names:
            node.target = name
    traced.recompile()


def _read_towers(traced: fx.GraphModule) -> list[_Tower]:
    heads = [n for n in traced.graph.nodes if (m := patterns.module(traced, n, nn.Linear)) and m.out_features == 1]
    if not heads:
        raise CannotFuse("the model has no head: no nn.Linear with out_features=1")
    towers = [_read_tower(traced, head) for head in heads]
    owner: dict[fx.Node, int] = {}
    for task, tower in enumerate(towers):
        for linear in tower.linears:
            if owner.setdefault(linear, task) != task:
                raise CannotFuse(
                    f"{linear.target}: the towers of heads {heads[owner[linear]].target} and {tower.head.target} share "
                    "this layer (a shared bottom); a tower must start at its own Linear on the input"
                )
    first = towers[0]
    for tower in towers[1:]:
        for what, read in (
            ("widths", lambda t: [layer.linear.out_features for layer in t.layers]),
            ("activations", lambda t: [layer.activation_name for layer in t.layers]),
        ):
            if read(tower) != read(first):
                raise CannotFuse(
                    f"{tower.head.target}: its tower has {what} {read(tower)}, "
                    f"that of {first.head.target} {read(first)}"
                )
    return towers


def _read_tower(traced: fx.GraphModule, head: fx.Node) -> _Tower:
    tower = _Tower(head, [], [], [], [], [], head)
    node = patterns.argument(head)
    while True:
        residual: fx.Node | None = None
        own = node
        if pair := patterns.added(node):
            own, residual = _own_and_residual(traced, node, pair) or (node, None)
        layer = patterns.read_layer(traced, own)
        if layer is None:
            break
        tower.layers.insert(0, layer.made)
        tower.own.insert(0, own)
        tower.outputs.insert(0, node)
        tower.residuals.insert(0, residual)
        tower.linears.insert(0, layer.linear)
        node = patterns.argument(layer.linear)
    if not tower.layers:
        raise CannotFuse(f"{head.target}: the head reads {node.format_node() or node}, which is no tower layer")
    tower.input = node
    return tower


def _own_and_residual(
    traced: fx.GraphModule, add: fx.Node, pair: tuple[fx.Node, fx.Node]
) -> tuple[fx.Node, fx.Node] | None:
    """Tell which of two added hidden values is the tower's own: the layer that nothing else reads."""
    layers = [node for node in pair if patterns.read_layer(traced, node) is not None]
    if not layers:
        return None
    alone = [node for node in layers if len(node.users) == 1]
    if len(alone) != 1:
        raise CannotFuse(f"{add}: cannot tell the tower's own output from its parent's in {pair[0]} + {pair[1]}")
    return alone[0], pair[1] if alone[0] is pair[0] else pair[0]


def _one_input(towers: list[_Tower]) -> fx.Node:
    for tower in towers[1:]:
        if tower.input is not towers[0].input:
            raise CannotFuse(
                f"{tower.head.target}: its tower starts at {tower.input}, that of {towers[0].head.target} at "
                f"{towers[0].input}; all must read the same input"
            )
    return towers[0].input


def _hidden_parents(towers: list[_Tower]) -> list[int | None]:
    """The task whose hidden outputs each task adds, -1 for none."""
    owner = {output: (task, level) for task, tower in enumerate(towers) for level, output in enumerate(tower.outputs)}
    parents: list[int | None] = []
    for tower in towers:
        found: set[int] = set()
        for level, residual in enumerate(tower.residuals):
            if residual is None:
                found.add(-1)
                continue
            if residual not in owner or owner[residual][1] != level:
                raise CannotFuse(
                    f"{tower.head.target}: layer {level} adds {residual}, which is not layer {level} of a tower"
                )
            found.add(owner[residual][0])
        if len(found) > 1:
            raise CannotFuse(
                f"{tower.head.target}: its layers add different parents; a feature residual must come from one tower "
                "at every layer, or none"
            )
        parents.append(found.pop())
    return parents


def _read_logits(traced: fx.GraphModule, towers: list[_Tower]) -> dict[fx.Node, _Logit]:
    """All nodes that hold a task's logit, own or final, in graph order."""
    logits: dict[fx.Node, _Logit] = {}
    head_of = {tower.head: task for task, tower in enumerate(towers)}
    for node in traced.graph.nodes:
        if node in head_of:
            logits[node] = _Logit(head_of[node], final=False)
        elif (inner := patterns.squeezed(node)) in logits:
            of = logits[inner]
            logits[node] = _Logit(of.task, of.final, of.clamped, True)
        elif (inner := patterns.clamped_at_zero(traced, node)) in logits and not logits[inner].final:
            of = logits[inner]
            logits[node] = _Logit(of.task, False, True, of.squeezed)
        elif (pair := patterns.added(node)) and pair[0] in logits and pair[1] in logits:
            own, _ = _own_logit(node, pair, logits)
            logits[node] = _Logit(logits[own].task, True, logits[own].clamped, logits[own].squeezed)
    return logits


def _own_logit(add: fx.Node, pair: tuple[fx.Node, fx.Node], logits: dict[fx.Node, _Logit]) -> tuple[fx.Node, fx.Node]:
    """Tell a logit residual's two sides apart: the task's own logit, which nothing else reads, and the parent's."""
    own = [node for node in pair if not logits[node].final and len(node.users) == 1]
    if len(own) == 2:  # a parent that nothing else reads has no output of its own: its head came first
        own = [max(own, key=lambda node: logits[node].task)]
    if len(own) != 1 or logits[pair[0]].squeezed != logits[pair[1]].squeezed:
        raise CannotFuse(f"{add}: cannot tell the task's own logit from its parent's in {pair[0]} + {pair[1]}")
    return own[0], pair[1] if own[0] is pair[0] else pair[0]


def _logit_parents(
    traced: fx.GraphModule, towers: list[_Tower], logits: dict[fx.Node, _Logit]
) -> tuple[list[int], bool]:
    parents = [-1] * len(towers)
    clamps = set()
    for node, logit in logits.items():
        pair = patterns.added(node)
        if pair and logit.final and pair[0] in logits:
            own, parent = _own_logit(node, pair, logits)
            parents[logit.task] = logits[parent].task
            clamps.add(logits[own].clamped)
    if len(clamps) > 1:
        raise CannotFuse("some logit residuals are non-increasing (clamped at 0) and others are not")
    for logit in logits.values():
        # Without a residual the own logit is the final one.
        logit.final = logit.final or (parents[logit.task] < 0 and not logit.clamped)
    return parents, clamps == {True}


def _agree(towers: list[_Tower], hidden: list[int | None], logit: list[int]) -> tuple[list[int], bool, bool]:
    """Return the topology that both residuals agree on, and which of the residuals exist."""
    feature_residual, logit_residual = any(p != -1 for p in hidden), any(p != -1 for p in logit)
    parents = [int(p if p is not None else -1) for p in hidden] if feature_residual else list(logit)
    if feature_residual and logit_residual:
        for tower, by_hidden, by_logit in zip(towers, hidden, logit, strict=True):
            if by_hidden != by_logit:
                names = [
                    towers[p].head.target if p is not None and p >= 0 else "nothing" for p in (by_hidden, by_logit)
                ]
                raise CannotFuse(
                    f"{tower.head.target}: its hidden layers add those of {names[0]}, its logit that of {names[1]}"
                )
    return parents, feature_residual, logit_residual


def _parents_first(parents: list[int]) -> list[int]:
    order: list[int] = []
    while len(order) < len(parents):
        order += [task for task, p in enumerate(parents) if task not in order and (p < 0 or p in order)]
    return order


def _refuse_other_uses(towers: list[_Tower], logits: dict[fx.Node, _Logit]) -> None:
    """Refuse models that use hidden outputs or own logits elsewhere: they exist only inside the fused op."""
    inside = {node for tower in towers for node in (*tower.own, *tower.outputs, *tower.linears, tower.head)}
    for tower in towers:
        for output in (*tower.own, *tower.outputs):
            for user in output.users:
                known = user in inside or patterns.is_layer_part(user)
                if not known:
                    raise CannotFuse(f"{user}: reads the hidden output {output}, which the fused op does not return")
    inside_clamps = {part for node in logits for part in patterns.clamp_parts(node)}
    for node, logit in logits.items():
        for user in node.users:
            if not logit.final and user not in logits and user not in inside_clamps:
                raise CannotFuse(
                    f"{user}: reads the own logit {node} of a task with a logit residual, "
                    "which the fused op does not return"
                )


def _rewrite(
    traced: fx.GraphModule, ranker: ResFlow, rows: fx.Node, logits: dict[fx.Node, _Logit], place: dict[int, int]
) -> fx.GraphModule:
    """Replace every use of a final logit by a column of the ranker's logits, or of its probabilities."""
    name = "resflow"
    if hasattr(traced, name):
        raise CannotFuse(f"{name}: the model already has an attribute of this name")
    traced.add_module(name, ranker)
    graph = traced.graph
    with graph.inserting_after(rows):
        scores = graph.call_module(name, (rows,))
    with graph.inserting_after(scores):
        probs = graph.call_function(getattr, (scores, "probs"))
        own = graph.call_function(getattr, (scores, "logits"))

    def column(of: fx.Node, logit: _Logit) -> fx.Node:
        at = place[logit.task]
        index = at if logit.squeezed else slice(at, at + 1)
        with graph.inserting_after(max(probs, own)):
            return graph.call_function(patterns.GETITEM, (of, (slice(None), index)))

    for node, logit in logits.items():
        if not logit.final:
            continue
        for user in list(node.users):
            if user in logits:
                continue
            if patterns.is_sigmoid(traced, user):
                user.replace_all_uses_with(column(probs, logit))
            else:
                user.replace_input_with(node, column(own, logit))
    graph.eliminate_dead_code(lambda node: node.is_impure() or "_assert" in str(node.target))
    ranker.continued = _continued(traced, [probs, own])
    traced.delete_all_unused_submodules()
    graph.lint()
    traced.recompile()
    return traced


_NAMES = ("squeeze", "unsqueeze", "view", "reshape", "flatten", "cat", "stack", "getitem", "contiguous", "clone", "to")


def _continued(traced: fx.GraphModule, results: list[fx.Node]) -> str | None:
    """What is computed of a ranker's results before they are returned; ``None``: nothing but their shape."""
    pending, seen = list(results), set(results)
    while pending:
        for user in pending.pop().users:
            target = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
            if user.op == "output" or user in seen:
                continue
            if target not in _NAMES and not patterns.is_sigmoid(traced, user):
                return f"{user.name} ({target})"
            seen.add(user)
            pending.append(user)
    return None
