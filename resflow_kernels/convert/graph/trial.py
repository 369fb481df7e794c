"""A fused model is tried beside its original before it is given to the user: on the example, and on one row of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..patterns import CannotFuse
from .module import STATE

# Far above what rounding does to an ordinary model, far below what a wrong step does.
_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 2e-2}


def tried(model: nn.Module, fused: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> nn.Module:
    """``fused``, if it gives what ``model`` does.

    torch.export takes it for granted that a batch has more than one row; whether the graph holds for one is seen here.

    Raises:
        CannotFuse: it gives something else.
    """
    gap = _gap(model, fused, args, kwargs)
    if gap is not None and gap > 1:
        raise CannotFuse(
            f"{type(model).__name__}: fused it gives other numbers on the example; please report the model"
        )
    one = _one_row(args, kwargs)
    if one is not None:
        gap = _gap(model, fused, *one)
        if gap is None or gap > 1:
            fused.__dict__[STATE].refuse_one_row()
    return fused


def _gap(model: nn.Module, fused: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float | None:
    """The largest difference over what is tolerated; ``None``: the original's own calls do not agree or fail."""
    try:
        want, again = _outputs(model, args, kwargs), _outputs(model, args, kwargs)
    except Exception:
        return None
    if any(not torch.equal(a, b) for a, b in zip(want, again, strict=True)) or any(a.isnan().any() for a in want):
        return None
    try:
        got = _outputs(fused, args, kwargs)
    except Exception:
        return float("inf")
    if [a.shape for a in want] != [b.shape for b in got]:
        return float("inf")
    return max((_relative(a, b) for a, b in zip(want, got, strict=True) if a.numel()), default=0.0)


def _relative(want: Tensor, got: Tensor) -> float:
    scale = max(1.0, float(want.double().abs().max()))
    return float((want.double() - got.double()).abs().max()) / scale / _TOLERANCE.get(want.dtype, 2e-3)


def _outputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    return list(_tensors(model(*args, **kwargs)))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


def _one_row(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The example's first candidate, where every tensor has a row per candidate."""
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    sizes = {leaf.shape[0] if leaf.dim() else None for leaf in leaves if isinstance(leaf, Tensor)}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        return None
    made = pytree.tree_unflatten([leaf[:1] if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)
    return made[0], made[1]
