"""Losses of multi-task rankers, and the labels of progressive regression (ResFlow, arXiv 2411.09705). Needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

Vector = Sequence[float] | Tensor


def multitask_bce(
    logits: Tensor,
    labels: Tensor,
    positive_weights: Vector | None = None,
    task_weights: Vector | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy of all tasks: the weighted sum of :func:`task_bce`.

    The paper's authors train on Ali-CCP with positive weights (100, 500) for CTR and CTCVR and task weights (2, 1).

    Args:
        logits, labels, positive_weights, mask: as in :func:`task_bce`.
        task_weights: ``[K]``, non-negative; ``None``: all 1.

    Returns:
        A scalar.

    Raises:
        ValueError: an argument of the wrong shape or value; the message names it.

    Example:
        >>> float(multitask_bce(torch.zeros(4, 2), torch.ones(4, 2), task_weights=(2, 1)))  # 3 log 2
        2.079441547393799
    """
    losses = task_bce(logits, labels, positive_weights, mask)
    if task_weights is None:
        return losses.sum()
    weights = _vector("multitask_bce", "task_weights", task_weights, logits)
    _require(bool((weights >= 0).all()), "multitask_bce", "task_weights", "not negative", weights.tolist())
    return (weights * losses).sum()


def task_bce(
    logits: Tensor, labels: Tensor, positive_weights: Vector | None = None, mask: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of each task, from logits.

    ``mean over observed (b, k) of -(a_k y log p + (1 - y) log(1 - p))``

    Args:
        logits: ``[B, K]``, floating.
        labels: ``[B, K]``, bool or numbers from 0 to 1 (soft labels).
        positive_weights: ``a [K]``, above 0: the weight of a positive, where a negative has 1; ``None``: 1.
        mask: ``[B, K]`` bool, whether a label was observed; other labels may be NaN. ``None``: all were.

    Returns:
        ``[K]``, in the logits' dtype; 0 for a task without an observed label in this batch.

    Raises:
        ValueError: an argument of the wrong shape or value; the message names it.
    """
    op = "task_bce"
    _require(logits.dim() == 2 and logits.is_floating_point(), op, "logits", "a floating matrix", _kind(logits))
    _require(labels.shape == logits.shape, op, "labels", f"of shape {list(logits.shape)}", list(labels.shape))
    truth = labels.to(logits.dtype)
    if mask is not None:
        fits = mask.shape == logits.shape and mask.dtype == torch.bool
        _require(fits, op, "mask", f"bool of shape {list(logits.shape)}", _kind(mask))
        truth = torch.where(mask, truth, 0.0)
    # NaN fails both comparisons; a compiled graph cannot depend on values.
    if not torch.compiler.is_compiling():
        _require(bool(((truth >= 0) & (truth <= 1)).all()), op, "labels", "0 to 1 where observed", "others")
    weights = None
    if positive_weights is not None:
        weights = _vector(op, "positive_weights", positive_weights, logits)
        _require(bool((weights > 0).all()), op, "positive_weights", "above 0", weights.tolist())
    losses = F.binary_cross_entropy_with_logits(logits, truth, pos_weight=weights, reduction="none")
    if mask is None:
        return losses.sum(0) / max(1, len(losses))
    return torch.where(mask, losses, 0.0).sum(0) / mask.sum(0).clamp(min=1)


def calibrator_loss(logits: Tensor, parents: Sequence[int]) -> Tensor:
    """AITM's behavioural expectation calibrator: the amount by which a task's probability exceeds its parent's.

    ``mean over b of sum_k max(p_k - p_parent(k), 0)`` (Xi et al., KDD 2021; their published code adds 0.6 times the
    sum over a batch instead of the mean).

    Args:
        logits: ``[B, K]``, floating.
        parents: for each task its parent, -1 for a root, such as ``model.plan.parents``.

    Returns:
        A scalar, 0 for an empty batch.

    Raises:
        ValueError: parents that do not match the logits.

    Example:
        >>> round(float(calibrator_loss(torch.tensor([[0.0, 2.0]]), (-1, 0))), 4)
        0.3808
    """
    op = "calibrator_loss"
    _require(logits.dim() == 2 and logits.is_floating_point(), op, "logits", "a floating matrix", _kind(logits))
    tasks = logits.shape[1]
    fits = len(parents) == tasks and all(-1 <= parent < tasks for parent in parents)
    _require(fits, op, "parents", f"{tasks} numbers of -1 to {tasks - 1}", list(parents))
    children = [task for task, parent in enumerate(parents) if parent >= 0]
    probs = logits.sigmoid()
    excess = F.relu(probs[:, children] - probs[:, [parents[task] for task in children]])
    return excess.sum() / max(1, len(logits))


def progressive_labels(values: Tensor, thresholds: Vector) -> Tensor:
    """Labels of progressive regression: task ``i`` predicts ``y > t_i``.

    Args:
        values: ``y [B]``, finite numbers.
        thresholds: ``t [K]``, increasing.

    Returns:
        ``[B, K]`` float32, 0 or 1, not increasing along a row.

    Raises:
        ValueError: an argument of the wrong shape or value; the message names it.

    Example:
        >>> progressive_labels(torch.tensor([1, 5, 7]), (2, 5)).tolist()
        [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]
    """
    op = "progressive_labels"
    _require(values.dim() == 1, op, "values", "a vector", _kind(values))
    _require(bool(values.isfinite().all()), op, "values", "finite", "others")
    cuts = torch.tensor(_increasing(op, thresholds), dtype=torch.float64, device=values.device)
    return (values.double()[:, None] > cuts).float()


def bucket_values(thresholds: Vector, first: float, last: float) -> tuple[float, ...]:
    """The values ``m_0..m_K`` of the buckets between thresholds, for :class:`~resflow_kernels.ExpectedValue`.

    As in the paper: an inner bucket has the middle of its two ends, and each outer bucket, which has only one end, a
    value of its own (the authors' code: 5 and 93 with nine thresholds of 5, 10, 20, ..., 80).

    Args:
        thresholds: ``t [K]``, increasing.
        first: ``m_0``, at most ``t_0``.
        last: ``m_K``, at least ``t_{K-1}``.

    Returns:
        ``K + 1`` numbers.

    Raises:
        ValueError: thresholds that do not increase, or an end on the wrong side of them.

    Example:
        >>> bucket_values((10, 20, 40), first=5, last=50)
        (5.0, 15.0, 30.0, 50.0)
    """
    op = "bucket_values"
    cuts = _increasing(op, thresholds)
    _require(first <= cuts[0], op, "first", f"at most the first threshold, {cuts[0]}", first)
    _require(last >= cuts[-1], op, "last", f"at least the last threshold, {cuts[-1]}", last)
    middles = ((a + b) / 2 for a, b in pairwise(cuts))
    return (float(first), *middles, float(last))


def _increasing(op: str, thresholds: Vector) -> list[float]:
    cuts = torch.as_tensor(thresholds, dtype=torch.float64)
    fits = cuts.dim() == 1 and len(cuts) >= 1 and bool(cuts.isfinite().all() and (cuts.diff() > 0).all())
    _require(fits, op, "thresholds", "one or more finite numbers that increase", cuts.tolist())
    return [float(cut) for cut in cuts]


def _vector(op: str, argument: str, values: Vector, logits: Tensor) -> Tensor:
    """``[K]`` finite numbers in the logits' dtype and on their device."""
    vector = torch.as_tensor(values, dtype=logits.dtype, device=logits.device)
    fits = vector.shape == logits.shape[1:] and bool(vector.isfinite().all())
    _require(fits, op, argument, f"{logits.shape[1]} finite numbers, one per task", vector.tolist())
    return vector


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _require(holds: bool, op: str, argument: str, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{op}: {argument} must be {expected}, got {got}")
