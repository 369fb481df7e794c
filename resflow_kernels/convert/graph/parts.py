"""Where a model cannot be traced as a whole: the modules inside that can, each fused by the call that it gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..patterns import CannotFuse
from .module import fused_copy
from .plan import make_plan
from .report import Report
from .trace import in_eval_mode
from .trial import tried

Call = tuple[tuple[Any, ...], dict[str, Any]]


def fused_parts(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[nn.Module, Report] | None:
    """A copy of a model with fused modules inside, and what they are; ``None`` if there are none."""
    calls = _recorded(model, args, kwargs)
    report = Report(type(model).__name__)
    made = _with_fused(model, "", calls, report)
    return None if made is model else (made, report)


def _recorded(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[nn.Module, Call]:
    """How each module is called: the only call, since a module called twice may be called in two ways."""
    calls: dict[nn.Module, Call] = {}
    again: set[nn.Module] = set()

    def record(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        again.update([module] if module in calls else [])
        calls[module] = (given, named)

    handles = [one.register_forward_pre_hook(record, with_kwargs=True) for one in model.modules() if one is not model]
    try:
        with in_eval_mode(model), torch.no_grad():
            model(*args, **kwargs)
    except Exception:
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return {module: call for module, call in calls.items() if module not in again}


def _with_fused(module: nn.Module, path: str, calls: dict[nn.Module, Call], report: Report) -> nn.Module:
    """The module itself, or a shallow copy in which some descendants are fused."""
    changed: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        own = f"{path}.{name}" if path else name
        made = _fused(child, own, calls, report) or _with_fused(child, own, calls, report)
        if made is not child:
            changed[name] = made
    if not changed:
        return module
    made = object.__new__(type(module))
    made.__dict__.update(module.__dict__)
    made.__dict__["_modules"] = {**module._modules, **changed}
    return made


def _fused(module: nn.Module, path: str, calls: dict[nn.Module, Call], report: Report) -> nn.Module | None:
    if module not in calls or next(module.children(), None) is None:
        return None
    args, kwargs = calls[module]
    try:
        plan = make_plan(module, args, kwargs)
        made = fused_copy(module, plan)
        with in_eval_mode(module), in_eval_mode(made), torch.no_grad():
            tried(module, made, args, kwargs)
    except CannotFuse:
        return None
    for part in plan.report.regions:
        part.modules = [f"{path}.{one}" for one in part.modules]
    for part in plan.report.left:
        part.modules = [f"{path}.{one}" for one in part.modules]
    report.regions += plan.report.regions
    report.left += plan.report.left
    return made
