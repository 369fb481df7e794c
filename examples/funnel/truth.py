"""Distances of predictions from known probabilities: without the noise of drawn labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def expected_auc(scores: ArrayLike, truth: ArrayLike) -> float:
    """The average AUC of scores over all labels that known probabilities can give.

    ``sum_{i,j} p_i (1 - p_j) [s_i > s_j] / sum_{i,j} p_i (1 - p_j)``, where equal scores count half: candidate ``i``
    counts as ``p_i`` of a positive and ``1 - p_i`` of a negative. With ``scores = truth`` it is the Bayes-optimal AUC.

    Args:
        scores: ``[n]``, any numbers without NaN.
        truth: ``[n]``, probabilities.

    Returns:
        The AUC; NaN if no candidate can be positive, or none negative.

    Raises:
        ValueError: different lengths, a NaN, or a probability outside 0 to 1.

    Example:
        >>> expected_auc([0.2, 0.9], [0.0, 1.0])
        1.0
    """
    values, p = _checked(scores, truth)
    _, place = np.unique(values, return_inverse=True)
    positive, negative = np.bincount(place, p), np.bincount(place, 1 - p)
    total = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative
    return float(positive @ (below + negative / 2) / total) if total > 0 else float("nan")


def excess_log_loss(predicted: ArrayLike, truth: ArrayLike) -> float:
    """Expected log loss in excess of that of the true probabilities, in nats per candidate; 0 is perfect.

    Args:
        predicted: ``[n]``, probabilities; kept 1e-9 away from 0 and 1.
        truth: ``[n]``, probabilities.

    Raises:
        ValueError: as :func:`expected_auc`.
    """
    q, p = _checked(predicted, truth)
    return float(np.mean(_cross_entropy(p, q) - _cross_entropy(p, p)))


def relative_error(predicted: ArrayLike, truth: ArrayLike) -> float:
    """Mean distance of predicted from true probabilities, as a share of the mean true probability.

    Raises:
        ValueError: as :func:`expected_auc`.
    """
    q, p = _checked(predicted, truth)
    return float(np.mean(np.abs(q - p)) / np.mean(p))


def _cross_entropy(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    q = np.clip(q, 1e-9, 1 - 1e-9)
    return -(p * np.log(q) + (1 - p) * np.log1p(-q))


def _checked(values: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    given, p = np.asarray(values, np.float64), np.asarray(truth, np.float64)
    if given.ndim != 1 or given.shape != p.shape:
        raise ValueError(f"scores and truth must be vectors of one length, got {list(given.shape)} and {list(p.shape)}")
    if np.isnan(given).any():
        raise ValueError(f"scores must be numbers, got {int(np.isnan(given).sum())} NaN")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("truth must be probabilities from 0 to 1, got others")
    return given, p
