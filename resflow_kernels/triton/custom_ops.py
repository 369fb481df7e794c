"""The forms as ``torch.library.triton_op`` in ``torch.ops.resflow_triton``, so that compilers see the kernels.

``torch.compile`` and ``torch.export`` trace through them: Inductor compiles the kernels into its own code. Results for
fake tensors follow from the same functions. Eager calls go past them, which saves the dispatcher.
"""

from __future__ import annotations

from functools import lru_cache
from typing import cast

from torch import Tensor
from torch.library import triton_op, wrap_triton

from ..core.plan import Plan
from . import scoring
from .launch import Launch


def record(launch: Launch) -> None:
    """Puts a launch into the graph that is being traced."""
    if scoring.INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET=1: kernels of the interpreter cannot be traced")
    options = cast(dict[str, object], launch.options)
    wrap_triton(launch.kernel)[launch.grid](**launch.arguments, **launch.constants, **options)


@lru_cache(maxsize=256)
def _plan(encoded: tuple[int, ...]) -> Plan:
    return Plan.decode(encoded)


@triton_op("resflow_triton::dense_scores", mutates_args={})
def dense_scores(
    x: Tensor,
    packed: Tensor,
    fusion_weights: Tensor,
    plan: list[int],
    fusion: int,
    weights_per: int,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    decoded = _plan(tuple(plan))
    return scoring.dense_scores(x, packed, decoded, fusion_weights, fusion, weights_per, offsets=offsets, run=record)


@triton_op("resflow_triton::request_scores", mutates_args={})
def request_scores(
    user: Tensor,
    item: Tensor,
    offsets: Tensor,
    packed: Tensor,
    fusion_weights: Tensor,
    plan: list[int],
    fusion: int,
    weights_per: int,
) -> tuple[Tensor, Tensor, Tensor]:
    decoded = _plan(tuple(plan))
    return scoring.request_scores(user, item, offsets, packed, decoded, fusion_weights, fusion, weights_per, run=record)


@triton_op("resflow_triton::catalog_scores", mutates_args={})
def catalog_scores(
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    packed: Tensor,
    fusion_weights: Tensor,
    plan: list[int],
    fusion: int,
    weights_per: int,
) -> tuple[Tensor, Tensor, Tensor]:
    decoded = _plan(tuple(plan))
    catalogue = (user, ids, offsets, table, scales)
    return scoring.catalog_scores(*catalogue, packed, decoded, fusion_weights, fusion, weights_per, run=record)
