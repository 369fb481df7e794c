"""Fusion of a trained model's probabilities, its weights tuned on the validation days' requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from resflow_kernels.metrics import weighted_recall_of_ranking

from .catalogue import Requests, probabilities

TOP = 100

# Both forms rank alike when all weights are multiplied by a number, so that ratios are all there is to try.
WEIGHTS = (0, 1, 4, 16)

Fuse = Callable[[Tensor, Sequence[float]], Tensor]


def fused_recalls(
    model: nn.Module, valid: Requests, test: Requests
) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Weighted Recall@100 of a model's fused scores on the test days' requests.

    Returns:
        metrics ``wr100_<form>``, for both forms of fusion and for the last task alone; and by form the weights that
        were best on the validation days, and their recall there.
    """
    shown, held_out = (torch.from_numpy(probabilities(model, requests)) for requests in (valid, test))
    last = [0.0] * (shown.shape[2] - 1) + [1.0]
    metrics, chosen = {"wr100_last": recall(additive(held_out, last), test)}, {}
    for form, fuse in FORMS.items():
        tried = {weights: recall(fuse(shown, weights), valid) for weights in ratios(shown.shape[2])}
        weights = max(tried, key=lambda one: tried[one])
        metrics[f"wr100_{form}"] = recall(fuse(held_out, weights), test)
        chosen[form] = {"weights": list(weights), "valid": tried[weights]}
    return metrics, chosen


def recall(scores: Tensor, requests: Requests) -> float:
    """Weighted Recall@100 of scores ``[R, M]``."""
    best = torch.topk(scores, min(TOP, scores.shape[1])).indices
    return weighted_recall_of_ranking(best.numpy(), requests.feedback.ravel(), requests.offsets)


def additive(probs: Tensor, weights: Sequence[float]) -> Tensor:
    """``sum_k alpha_k p_k``."""
    return probs @ torch.tensor(weights, dtype=probs.dtype)


def multiplicative(probs: Tensor, weights: Sequence[float]) -> Tensor:
    """``log prod_k p_k ** gamma_k``, which ranks as the product does."""
    return additive(probs.log(), weights)


FORMS: dict[str, Fuse] = {"additive": additive, "multiplicative": multiplicative}


def ratios(tasks: int) -> list[tuple[int, ...]]:
    """Every combination of :data:`WEIGHTS` that is not another one multiplied by a number."""
    found = {}
    for weights in product(WEIGHTS, repeat=tasks):
        divisor = math.gcd(*weights)
        if divisor:
            found.setdefault(tuple(weight // divisor for weight in weights), weights)
    return list(found)
