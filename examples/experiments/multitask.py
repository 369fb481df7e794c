"""Shared by comparisons of multi-task rankers: the loss of each method, and validation by AUC."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from torch import Tensor, nn

from resflow_kernels.metrics import auc
from resflow_kernels.nn.losses import calibrator_loss, multitask_bce

from .data import Encoded
from .methods import probabilities
from .training import Loss

# Weight of AITM's calibrator, as in its paper.
CALIBRATOR_WEIGHT = 0.6


def loss_of(method: str, parents: Sequence[int], positive_weights: Sequence[float] | None = None) -> Loss:
    """A method's loss: the sum of the tasks' cross-entropies, plus the method's own terms."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        own = multitask_bce(logits, labels, positive_weights)
        return own + CALIBRATOR_WEIGHT * calibrator_loss(logits, parents) if method == "aitm" else own

    return loss


def mean_auc(model: nn.Module, data: Encoded) -> float:
    """The mean of the tasks' AUCs."""
    probs = probabilities(model, data.scored_at_once())
    return fmean(auc(own, truth) for own, truth in zip(probs.T, data.labels.T, strict=True))
