"""Weighted Recall@K, the paper's offline metric for rankings: how much collective feedback the top K hold.

``WR@K = sum of weights in the top K / sum of weights``, averaged over the requests that have feedback.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray


def weighted_recall_at_k(scores: ArrayLike, weights: ArrayLike, offsets: ArrayLike, k: int) -> float:
    """Weighted Recall@K of scored candidates.

    Args:
        scores: ``[N]``, the candidates of all requests one after another. Higher is better, equal scores stand
            by lower position, NaN after every number.
        weights: ``[N]``, each candidate's feedback (e.g. its number of orders), not negative.
        offsets: ``[R + 1]`` integers; request ``r`` owns candidates ``offsets[r]`` to ``offsets[r + 1]``.
        k: at least 1.

    Returns:
        The mean over the requests whose weights have a sum above 0; NaN if there is none.

    Raises:
        ValueError: shapes that do not fit, negative or non-finite weights, offsets that decrease, ``k < 1``.

    Example:
        >>> weighted_recall_at_k([0.1, 0.9, 0.5], [1, 2, 1], [0, 3], k=2)
        0.75
    """
    values = np.asarray(scores)
    feedback, bounds = _checked(weights, offsets)
    _require(values.shape == feedback.shape, "scores", f"of shape {list(feedback.shape)}", list(values.shape))
    _require(k >= 1, "k", "at least 1", k)
    ranking = np.full((len(bounds) - 1, k), -1, np.int64)
    for request, (start, stop) in enumerate(pairwise(bounds)):
        # A stable sort of the negated scores: ties keep their order, and NumPy puts NaN last.
        best = np.argsort(-values[start:stop].astype(np.float64), kind="stable")[:k]
        ranking[request, : len(best)] = best
    return weighted_recall_of_ranking(ranking, feedback, bounds)


def weighted_recall_of_ranking(positions: ArrayLike, weights: ArrayLike, offsets: ArrayLike) -> float:
    """Weighted Recall@K of a ranking, such as ``Scorer.top_k(...).positions``.

    Args:
        positions: ``[R, k]`` integers, places within each request, best first; -1 where there is none.
        weights: ``[N]``, as in :func:`weighted_recall_at_k`.
        offsets: ``[R + 1]``, likewise.

    Returns:
        The mean over the requests whose weights have a sum above 0; NaN if there is none.

    Raises:
        ValueError: as :func:`weighted_recall_at_k`, or a position that is out of range or stands twice.
    """
    ranking = np.asarray(positions)
    feedback, bounds = _checked(weights, offsets)
    requests = len(bounds) - 1
    integral = ranking.ndim == 2 and np.issubdtype(ranking.dtype, np.integer) and len(ranking) == requests
    _require(integral, "positions", f"integers of shape [{requests}, k]", f"{ranking.dtype} {list(ranking.shape)}")
    recalls = []
    for request, (start, stop) in enumerate(pairwise(bounds)):
        own, held = feedback[start:stop], ranking[request][ranking[request] != -1]
        valid = bool(((held >= 0) & (held < len(own))).all()) and len(np.unique(held)) == len(held)
        _require(valid, f"positions[{request}]", f"different numbers of 0 to {len(own) - 1}, or -1", held.tolist())
        if own.sum() > 0:
            recalls.append(own[held].sum() / own.sum())
    return float(np.mean(recalls)) if recalls else float("nan")


def _checked(weights: ArrayLike, offsets: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    feedback, bounds = np.asarray(weights, np.float64), np.asarray(offsets)
    _require(feedback.ndim == 1, "weights", "a vector", list(feedback.shape))
    _require(bool((np.isfinite(feedback) & (feedback >= 0)).all()), "weights", "finite and not negative", "others")
    integral = bounds.ndim == 1 and len(bounds) >= 1 and np.issubdtype(bounds.dtype, np.integer)
    _require(integral, "offsets", "a vector of integers", f"{bounds.dtype} {list(bounds.shape)}")
    fits = bounds[0] == 0 and bounds[-1] == len(feedback) and bool((np.diff(bounds) >= 0).all())
    _require(bool(fits), "offsets", f"from 0 to {len(feedback)} without a decrease", bounds.tolist()[:10])
    return feedback, bounds.astype(np.int64)


def _require(holds: bool, argument: str, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"Weighted Recall@K: {argument} must be {expected}, got {got}")
