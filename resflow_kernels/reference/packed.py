"""The forms by the plain PyTorch reference on packed weights: ``backend="reference"`` of :mod:`resflow_kernels.ops`.

Slow, and on any device; weights are unpacked each call. Computes in float32 and rounds where the plan's precision does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..contract import PRECISION_ROWS
from ..core import checks
from ..core.plan import Plan, padded
from . import Scores, TopK, int8_rows
from .unpack import unpack_towers

_ROWS = checks.row_dtypes("cuda")


def dense_scores(
    x: Tensor, packed: Tensor, plan: Plan, fusion_weights: Tensor, fusion: int, weights_per: int
) -> Scores:
    """:func:`resflow_kernels.ops.dense_scores`."""
    return _dense("dense_scores", x, None, packed, plan, fusion_weights, fusion, weights_per)


def dense_topk(
    x: Tensor,
    offsets: Tensor,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int,
    weights_per: int,
    k: int,
) -> TopK:
    """:func:`resflow_kernels.ops.dense_topk`."""
    checks.positive("dense_topk", "k", k)
    scores = _dense("dense_topk", x, offsets, packed, plan, fusion_weights, fusion, weights_per)
    return reference.topk(scores.score, offsets, k)


def request_scores(
    user: Tensor,
    item: Tensor,
    offsets: Tensor,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int,
    weights_per: int,
    op: str = "request_scores",
) -> Scores:
    """:func:`resflow_kernels.ops.request_scores`."""
    count = item.shape[0]
    checks.matrix(op, "user", user, None, *_ROWS)
    checks.matrix(op, "item", item, None, *_ROWS)
    checks.columns_sum(op, user, item, plan)
    _check_requests(op, user, offsets, count, packed, plan, fusion_weights, fusion, weights_per)
    weights = unpack_towers(packed, plan)
    rows = (user.float(), item.float(), offsets)
    return reference.request_scores(*rows, weights, plan, fusion_weights, fusion, weights_per)


def request_topk(
    user: Tensor,
    item: Tensor,
    offsets: Tensor,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int,
    weights_per: int,
    k: int,
) -> TopK:
    """:func:`resflow_kernels.ops.request_topk`."""
    op = "request_topk"
    checks.positive(op, "k", k)
    scores = request_scores(user, item, offsets, packed, plan, fusion_weights, fusion, weights_per, op)
    return reference.topk(scores.score, offsets, k)


def catalog_rows(item: Tensor, packed: Tensor, plan: Plan, element: str) -> tuple[Tensor, Tensor]:
    """:func:`resflow_kernels.ops.catalog_rows`."""
    checks.side("catalog_rows", "item", item, plan, *_ROWS)
    checks.packed("catalog_rows", packed, plan)
    products = reference.catalog_rows(item.float(), unpack_towers(packed, plan), plan)
    columns = padded(plan.hidden[0]) - plan.hidden[0]
    rows = torch.nn.functional.pad(products, (0, columns)).reshape(len(item), plan.table_width)
    dtype = checks.ELEMENT_DTYPES[PRECISION_ROWS[element].code]
    if dtype == torch.int8:
        return int8_rows(rows)
    return rows.to(dtype), rows.new_empty((0,))


def catalog_scores(
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int,
    weights_per: int,
    op: str = "catalog_scores",
) -> Scores:
    """:func:`resflow_kernels.ops.catalog_scores`."""
    checks.side(op, "user", user, plan, *_ROWS)
    checks.table(op, table, scales, plan)
    checks.ids(op, ids)
    _check_requests(op, user, offsets, ids.shape[0], packed, plan, fusion_weights, fusion, weights_per)
    checks.id_values(op, ids, table.shape[0])
    rows = table[ids].float()
    if table.dtype == torch.int8:
        rows = rows * scales[ids, None]
    products = rows.reshape(len(ids), plan.tasks, -1)[..., : plan.hidden[0]]
    weights = unpack_towers(packed, plan)
    return reference.catalog_scores(user.float(), products, offsets, weights, plan, fusion_weights, fusion, weights_per)


def catalog_topk(
    user: Tensor,
    ids: Tensor,
    offsets: Tensor,
    table: Tensor,
    scales: Tensor,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int,
    weights_per: int,
    k: int,
) -> TopK:
    """:func:`resflow_kernels.ops.catalog_topk`."""
    op = "catalog_topk"
    checks.positive(op, "k", k)
    catalogue = (user, ids, offsets, table, scales)
    scores = catalog_scores(*catalogue, packed, plan, fusion_weights, fusion, weights_per, op)
    return reference.topk(scores.score, offsets, k)


def _dense(
    op: str,
    x: Tensor,
    offsets: Tensor | None,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int,
    weights_per: int,
) -> Scores:
    count = x.shape[0]
    checks.matrix(op, "x", x, plan.in_features, *_ROWS)
    requests = None
    if offsets is not None:
        checks.offsets(op, offsets, None)
        checks.offset_values(op, offsets, count)
        requests = offsets.shape[0] - 1
    checks.fusion(op, fusion_weights, fusion, weights_per, plan.tasks, count, requests, torch.float32)
    checks.packed(op, packed, plan)
    owner = None if offsets is None else reference.request_of_candidates(offsets, count)
    weights = reference.spread_weights(fusion_weights, weights_per, owner)
    per = 2 if weights.dim() == 2 else 0  # spread: a row a candidate
    return reference.dense_scores(x.float(), unpack_towers(packed, plan), plan, weights, fusion, per)


def _check_requests(
    op: str,
    user: Tensor,
    offsets: Tensor,
    count: int,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int,
    weights_per: int,
) -> None:
    checks.offsets(op, offsets, user.shape[0])
    checks.fusion(op, fusion_weights, fusion, weights_per, plan.tasks, count, user.shape[0], torch.float32)
    checks.packed(op, packed, plan)
    checks.offset_values(op, offsets, count)


FUNCTIONS: dict[str, Any] = {
    function.__name__: function
    for function in (
        dense_scores, dense_topk, request_scores, request_topk, catalog_rows, catalog_scores, catalog_topk
    )
}  # fmt: skip
