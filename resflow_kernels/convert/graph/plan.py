"""From a model and a call of it to what its fused module runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...core.program import Program
from ..patterns import CannotFuse
from . import elementwise, norms, products, views  # register what they lower
from .constants import Const, release
from .emit import Emitted, emit
from .lookups import look_up, scored
from .lowering import FLOATS, Lowering
from .pools import find_pools
from .regions import Cut, Cutter, Region
from .report import Report, make_report
from .rows import Draft, Root, values_of
from .source import Table, Writer
from .trace import Traced, trace

_ROUNDS = 6
# Positions of a candidate that are rows of their own are many: less than this a number, and moving them costs more than
# PyTorch's product does (an attention's projections).
_DENSE = 12


@dataclass
class FusedPlan:
    """What a fused module needs beside the model: it can be pickled and holds none of the model's tensors."""

    source: str
    table: Table
    programs: list[Program]
    weights: list[list[Const]]
    tensors: list[str]  # names of the parameters and buffers that the source and the weights read
    structure: list[tuple[Const, Tensor]]  # constants that the programs' structure was made from
    dtype: torch.dtype
    arguments: tuple[int, tuple[str, ...]]  # positional ones, and the names of the others
    guards: list[str]
    report: Report


def make_plan(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> FusedPlan:
    """Trace a model and lower what can be.

    Raises:
        CannotFuse: it cannot be traced, or nothing of it is gained by a program.
    """
    traced = trace(model, args, kwargs)
    if any(const.now.dtype == torch.float64 for const in traced.constants.values()):
        raise CannotFuse(
            f"{type(model).__name__}: it is in float64, the kernels compute in float32; fuse model.float()"
        )
    low, cut, emitted = _with_lookups(traced)
    report = make_report(model, traced, low, cut, [one.lookups for one in emitted])
    if not emitted:
        raise CannotFuse(f"{type(model).__name__}: no part of it fuses.\n{report.reasons()}")
    writer = Writer(traced, low, cut, emitted)
    source = writer.write()
    structure = [(const, const.now.clone()) for const in low.structure]
    # A watch of the model's tensors compares what others share by its bytes, in each call.
    release([const for one in emitted for const in one.weights] + low.structure + [*traced.constants.values()])
    return FusedPlan(
        source,
        writer.table,
        [one.program for one in emitted],
        [one.weights for one in emitted],
        traced.tensors,
        structure,
        _dtype(emitted, low),
        (len(args), tuple(kwargs)),
        traced.guards,
        report,
    )


def _with_lookups(traced: Traced) -> tuple[Lowering, Cut, list[Emitted]]:
    """Regions with the tables that they take in; the pooling of lists that none takes in is lowered like all else."""
    pools = find_pools(traced)
    while True:
        low, cut, emitted = _lowered(traced, pools)
        taken: set[fx.Node] = set()
        for at, one in enumerate(emitted):
            one.lookups = look_up(traced, low, one, pools)
            if any(one.lookups):
                emitted[at] = scored(one)
                taken.update(lookup.node for lookup in one.lookups if lookup is not None)
        if pools.keys() <= taken:
            return low, cut, emitted
        pools = {node: pool for node, pool in pools.items() if node in taken}


def _lowered(traced: Traced, inside: Iterable[fx.Node]) -> tuple[Lowering, Cut, list[Emitted]]:
    """Regions that are worth a call; what is not worth it becomes the user's own, and the rest is cut again.

    Args:
        inside: nodes that regions look up.
    """
    left = set(inside)
    for _ in range(_ROUNDS):
        low = Lowering(traced.graph, traced.constants, left, traced.static_batch)
        cut = Cutter(low).cut()
        poor = [region for region in cut.regions if not _pays(low, region)]
        if not poor:
            return low, cut, [emit(low, region) for region in cut.regions]
        for region in poor:
            left |= {_draft(low, place).node for place in region.drafts}
    low = Lowering(traced.graph, traced.constants, set(traced.graph.nodes), traced.static_batch)
    return low, Cutter(low).cut(), []


def _pays(low: Lowering, region: Region) -> bool:
    """Whether a call replaces more of the user's ops than it adds: joining the inputs, taking the result apart."""
    drafts = [_draft(low, place) for place in region.drafts]
    replaced = len({draft.node for draft in drafts})
    outputs = len(region.outputs) + len(region.exports)
    if len(region.batch) > 1 and isinstance(region.batch[-1], int) and _products_per_column(low, region) < _DENSE:
        return False
    gained = replaced >= max(2, outputs + (outputs > 2))
    return gained and any(draft.kind == "linear" for draft in drafts)


def _products_per_column(low: Lowering, region: Region) -> float:
    """Multiply-adds for each number that a region reads or gives."""
    drafts = [_draft(low, place) for place in region.drafts]
    products = sum(len(draft.inputs) * draft.width for draft in drafts if draft.kind == "linear")
    own = set(region.drafts)
    read = {int(one) for draft in drafts for ids in draft.reads() for one in ids if int(values_of(one)) not in own}
    given = sum(low.env[node].ids.size for node in region.outputs)
    return products / (len(read) + given)


def _draft(low: Lowering, place: int) -> Draft:
    made = low.values[place]
    assert isinstance(made, Draft)
    return made


def _dtype(emitted: list[Emitted], low: Lowering) -> torch.dtype:
    source = emitted[0].sources[0]
    value = low.values[source.value]
    node = value.node if isinstance(value, (Root, Draft)) else None
    dtype = node.meta["val"].dtype if node is not None else torch.float32
    return dtype if dtype in FLOATS else torch.float32


__all__ = ["FusedPlan", "elementwise", "make_plan", "norms", "products", "views"]
