"""Empty outputs of the ops, with their shapes and dtypes: kernels fill them, fake kernels return them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import STATISTICS
from ..contract.results import Scores, TopK
from . import checks
from .plan import Plan, padded

# Registered so that an exported program can describe its results.
for _result in (Scores, TopK):
    torch.utils._pytree._register_namedtuple(_result, serialized_type_name=f"resflow_kernels.{_result.__name__}")


def empty_scores(like: Tensor, candidates: int, tasks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of an op that ends in scores."""
    both = (candidates, tasks)
    shapes = (both, both, (candidates,))
    logits, probs, score = (like.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return logits, probs, score


def empty_topk(like: Tensor, requests: int, k: int) -> tuple[Tensor, Tensor]:
    """Outputs of an op that ends in top-k."""
    shape = (requests, k)
    return like.new_empty(shape, dtype=torch.float32), like.new_empty(shape, dtype=torch.int64)


def empty_table(like: Tensor, rows: int, columns: int, dtype: int, tasks: int | None = None) -> tuple[Tensor, Tensor]:
    """A table, and its scales if it is int8: one per row, or with ``tasks`` one per row and task."""
    stored = checks.TABLE_DTYPES[dtype]
    count = rows if stored == torch.int8 else 0
    scales = (count,) if tasks is None else (count, tasks)
    return like.new_empty((rows, columns), dtype=stored), like.new_empty(scales, dtype=torch.float32)


def pre_activation_count(plan: Plan, rows: int) -> int:
    """Number of floats of all pre-activations."""
    return rows * plan.tasks * sum(padded(width) for width in plan.hidden)


def _channels(plan: Plan, statistics: int) -> int:
    return plan.tasks * sum(plan.hidden) if plan.affine and STATISTICS[statistics] != "given" else 0


def _check(op: str, x: Tensor, weights: list[Tensor], plan: Sequence[int], statistics: int) -> Plan:
    decoded = Plan.decode(plan)
    checks.matrix(op, "x", x, decoded.in_features, torch.float32)
    checks.weights(op, weights, decoded, transposed=True)
    checks.code_of(op, "statistics", statistics, len(STATISTICS))
    return decoded


def forward_outputs(
    x: Tensor, weights: list[Tensor], plan: Sequence[int], statistics: int, eps: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Uncomputed outputs of ``train_forward``, whose inputs are checked."""
    decoded = _check("train_forward", x, weights, plan, statistics)
    rows, channels = x.shape[0], _channels(decoded, statistics)
    logits = x.new_empty((rows, decoded.tasks))
    pre_activations = x.new_empty((pre_activation_count(decoded, rows) if keep else 0,))
    return logits, torch.empty_like(logits), pre_activations, x.new_empty((channels,)), x.new_empty((channels,))


def backward_outputs(
    logit_gradients: Tensor,
    x: Tensor,
    weights: list[Tensor],
    task_logits: Tensor,
    pre_activations: Tensor,
    mean: Tensor,
    variance: Tensor,
    plan: Sequence[int],
    statistics: int,
    eps: float,
    x_needed: bool,
) -> tuple[Tensor, Tensor]:
    """Uncomputed outputs of ``train_backward``, whose inputs are checked."""
    decoded = _check("train_backward", x, weights, plan, statistics)
    rows, channels = x.shape[0], _channels(decoded, statistics)
    checks.contiguous("train_backward", "logit_gradients", logit_gradients, (rows, decoded.tasks))
    checks.contiguous("train_backward", "task_logits", task_logits, (rows, decoded.tasks))
    if pre_activations.shape[0] > 0:
        checks.contiguous("train_backward", "pre_activations", pre_activations, (pre_activation_count(decoded, rows),))
    checks.contiguous("train_backward", "mean", mean, (channels,))
    checks.contiguous("train_backward", "variance", variance, (channels,))
    x_gradients = x.new_empty((rows if x_needed else 0, decoded.in_features))
    return x_gradients, x.new_empty((sum(weight.numel() for weight in weights),))
