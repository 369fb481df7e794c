"""What :mod:`resflow_kernels.ops` calls: each form, eager or while PyTorch traces, and the k best of its scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..contract import PRECISION_ROWS
from ..core import checks
from ..core.plan import Plan
from . import custom_ops, scoring, tuning


def dense_scores(
    x: Tensor, packed: Tensor, plan: Plan, fusion_weights: Tensor, fusion: int, weights_per: int
) -> tuple[Tensor, Tensor, Tensor]:
    if torch.compiler.is_compiling():
        return custom_ops.dense_scores(x, packed, fusion_weights, list(plan.encoded), fusion, weights_per)
    tuning.tune_if_asked(plan, packed.device)
    return scoring.dense_scores(x, packed, plan, fusion_weights, fusion, weights_per)


def dense_topk(
    x: Tensor,
    offsets: Tensor,
    packed: Tensor,
    plan: Plan,
    fusion_weights: Tensor,
    fusion: int,
    weights_per: int,
    k: int,
) -> tuple[Tensor, Tensor]:
    checks.positive("dense_topk", "k", k)
    if torch.compiler.is_compiling():
        scores = custom_ops.dense_scores(x, packed, fusion_weights, list(plan.encoded), fusion, weights_per, offsets)
    else:
        tuning.tune_if_asked(plan, packed.device)
        scores = scoring.dense_scores(x, packed, plan, fusion_weights, fusion, weights_per, "dense_topk", offsets)
    return scoring.topk(scores[2], offsets, k)


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
) -> tuple[Tensor, Tensor, Tensor]:
    rows = (user, item, offsets)
    if torch.compiler.is_compiling():
        return custom_ops.request_scores(*rows, packed, fusion_weights, list(plan.encoded), fusion, weights_per)
    tuning.tune_if_asked(plan, packed.device)
    return scoring.request_scores(*rows, packed, plan, fusion_weights, fusion, weights_per, op)


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
) -> tuple[Tensor, Tensor]:
    op = "request_topk"
    checks.positive(op, "k", k)
    scores = request_scores(user, item, offsets, packed, plan, fusion_weights, fusion, weights_per, op)
    return scoring.topk(scores[2], offsets, k)


def catalog_rows(item: Tensor, packed: Tensor, plan: Plan, element: str) -> tuple[Tensor, Tensor]:
    return scoring.catalog_rows(item, packed, plan, PRECISION_ROWS[element].code)


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
) -> tuple[Tensor, Tensor, Tensor]:
    catalogue = (user, ids, offsets, table, scales)
    if torch.compiler.is_compiling():
        return custom_ops.catalog_scores(*catalogue, packed, fusion_weights, list(plan.encoded), fusion, weights_per)
    tuning.tune_if_asked(plan, packed.device)
    return scoring.catalog_scores(*catalogue, packed, plan, fusion_weights, fusion, weights_per, op)


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
) -> tuple[Tensor, Tensor]:
    op = "catalog_topk"
    checks.positive(op, "k", k)
    catalogue = (user, ids, offsets, table, scales)
    scores = catalog_scores(*catalogue, packed, plan, fusion_weights, fusion, weights_per, op)
    return scoring.topk(scores[2], offsets, k)


FORMS: dict[str, Any] = {
    function.__name__: function
    for function in (
        dense_scores, dense_topk, request_scores, request_topk, catalog_rows, catalog_scores, catalog_topk
    )
}  # fmt: skip
