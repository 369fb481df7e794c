"""The dense and the request form around any function from rows to logits, for training and for what ops do not serve.

Differentiable, in any floating dtype and on any device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..contract import FUSIONS, WEIGHTS_PER
from ..core import checks
from ..core.forms import check_dense, check_request, form_of
from ..core.plan import Plan
from .towers import finish, request_of_candidates, spread_weights, topk


def run(
    op: str,
    logits_of: Callable[[Tensor], Tensor],
    inputs: tuple[Tensor, ...],
    plan: Plan,
    fusion_weights: Tensor,
    fusion: str,
    weights_per: str,
    k: int | None = None,
) -> Any:
    """Compute an op of the dense or the request form, with logits from ``logits_of``.

    Args:
        op: ``"dense_scores"``, ``"dense_topk"``, ``"request_scores"`` or ``"request_topk"``.
        logits_of: from rows ``[B, D]`` to logits ``[B, K]``.
        inputs: the op's inputs, all of one floating dtype.
        plan: only its numbers of tasks and of inputs matter.
        fusion_weights, fusion, weights_per, k: as in :func:`resflow_kernels.ops.dense_topk`.

    Returns:
        :class:`Scores`, or :class:`TopK` for an op that ends in top-k.

    Raises:
        ValueError: bad input; the message names it.
    """
    dense = form_of(op)[0].name == "dense"
    dtype = inputs[0 if dense else 1].dtype
    counts = (check_dense if dense else check_request)(op, plan, (dtype,), *inputs)
    candidates, requests, weight_rows = counts
    codes = FUSIONS.index(fusion), WEIGHTS_PER.index(weights_per)
    checks.fusion(op, fusion_weights, *codes, plan.tasks, weight_rows, requests, dtype)
    offsets = None if requests is None else inputs[-1]
    request = None
    if offsets is not None:
        checks.offset_values(op, offsets, candidates)
        request = request_of_candidates(offsets, candidates)
    if k is not None:
        checks.positive(op, "k", k)
    x = inputs[0] if dense else torch.cat((inputs[0][request], inputs[1]), dim=1)
    scores = finish(logits_of(x), spread_weights(fusion_weights, weights_per, request), fusion)
    if k is None:
        return scores
    assert offsets is not None
    return topk(scores.score, offsets, k)
