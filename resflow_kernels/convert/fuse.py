"""The drop-in replacement of a user's own ranker: a ResFlow for plain towers, or programs for what its graph allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import towers
from .graph.module import fused_copy, unfused
from .graph.packed import packed
from .graph.parts import fused_parts
from .graph.plan import make_plan
from .graph.report import Report
from .graph.trace import in_eval_mode, inner_model
from .graph.trial import tried
from .patterns import CannotFuse

__all__ = ["CannotFuse", "explain", "fuse", "packed"]


def fuse(model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """A module that scores like ``model`` with its dense part in one pass.

    With ``example_inputs`` the graph of ``torch.export`` is read, and all of it that works row by row on candidates
    becomes tile programs: towers, shared bottoms, experts and gates, cross layers, norms, interactions of fields. The
    result is a copy of the model, of a class derived from its own, that shares its parameters: in eval mode without
    gradients it runs the programs, otherwise the model's own forward. Tables that such a part reads are looked up
    inside; attention stays as it is. ``fuse.packed(fused)`` is the form for torch.export, torch.compile and serving.

    Without them a network of plain residual towers becomes a :class:`ResFlow`, held as ``.resflow``, and a model of
    one ``[B, D]`` tensor is read as above.

    Args:
        model: the ranker.
        example_inputs: its positional arguments as a tuple, or its one argument; a few rows will do.

    Raises:
        CannotFuse: nothing of the model fuses; the message names the parts and says why.

    Example:
        >>> class Ranker(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.click = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
        ...         self.order = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
        ...         self.heads = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])
        ...     def forward(self, x):
        ...         click = self.click(x)
        ...         order = self.order(x) + click
        ...         logit = self.heads[0](click)
        ...         return torch.sigmoid(logit), torch.sigmoid(self.heads[1](order) + logit)
        >>> fuse(Ranker()).resflow.plan.parents
        (-1, 0)
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.Mish(), nn.Linear(4, 3), nn.Sigmoid()).eval()
        >>> isinstance(fuse(model, torch.randn(2, 8)), nn.Sequential)
        True
    """
    model = unfused(inner_model(model))
    if example_inputs is not None:
        return _by_programs(model, *_call_of(example_inputs))
    try:
        return towers.fuse(model)
    except CannotFuse as refusal:
        drawn = _drawn_inputs(model)
        if drawn is None:
            raise CannotFuse(
                f"{type(model).__name__}: pass example_inputs, the arguments of a call, so that more than plain towers "
                f"can be read. As plain towers: {refusal}"
            ) from refusal
        return _by_programs(model, drawn, {})


def explain(model: nn.Module, inputs: Any) -> Report:
    """What ``fuse(model, inputs)`` does: regions, their share of the multiply-adds, and what is left out and why.

    Args:
        model: as for :func:`fuse`.
        inputs: as ``example_inputs`` there.

    Returns:
        The report: ``regions``, ``left`` and ``share_inside``; ``str()`` is a table.

    Raises:
        CannotFuse: as :func:`fuse`.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
        >>> explain(model, torch.randn(2, 8)).share_inside
        1.0
    """
    return _plan_and_module(unfused(inner_model(model)), *_call_of(inputs))[1]


fuse.explain = explain  # type: ignore[attr-defined]
fuse.packed = packed  # type: ignore[attr-defined]


def _by_programs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> nn.Module:
    return _plan_and_module(model, args, kwargs)[0]


def _plan_and_module(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[nn.Module, Report]:
    """The fused model: as a whole where torch.export has its graph for any batch, else the modules inside."""
    try:
        plan = make_plan(model, args, kwargs)
    except CannotFuse as refusal:
        parts = None if isinstance(model, torch.jit.ScriptModule) else fused_parts(model, args, kwargs)
        if parts is None:
            raise
        parts[1].remarks.append(f"modules inside, because of the whole: {refusal}")
        return parts
    if plan.report.remarks:  # for one batch size alone
        parts = fused_parts(model, args, kwargs)
        if parts is not None:
            return parts
    made = fused_copy(model, plan)
    with in_eval_mode(model), in_eval_mode(made), torch.no_grad():
        return tried(model, made, args, kwargs), plan.report


def _call_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (inputs, {}) if isinstance(inputs, tuple) else ((inputs,), {})


def _drawn_inputs(model: nn.Module) -> tuple[Tensor] | None:
    """Rows for a model of one tensor, as wide as its first Linear."""
    linear = next((module for module in model.modules() if isinstance(module, nn.Linear)), None)
    if linear is None:
        return None
    rows = torch.randn(4, linear.in_features, dtype=linear.weight.dtype, device=linear.weight.device)
    try:
        with in_eval_mode(model), torch.no_grad():
            model(rows)
    except Exception:
        return None
    return (rows,)
