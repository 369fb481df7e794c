"""Metrics of rankings over ragged requests, and AUC within groups, on NumPy arrays or tensors on any device.

torchmetrics' retrieval metrics (1.9) do not fit: they leave out candidates with a score of 0 or less (recall), break
ties in arbitrary order (recall) or average over them (NDCG) although a served ranking has one order, have no weights,
count requests without feedback as 0, and loop over requests.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arrays import (
    Array,
    doubles,
    is_integral,
    is_tensor,
    library,
    longs,
    places,
    repeat,
    segment_sums,
    sorted_rows,
    stable_argsort,
    unified,
    zero_place,
)

WR = "Weighted Recall@K"
RECALL, NDCG, GAUC = "Recall@K", "NDCG@K", "GAUC"


def weighted_recall_at_k(scores: Any, weights: Any, offsets: Any, k: int) -> float:
    """Weighted Recall@K of scored candidates, the paper's offline metric: the share of feedback that the top K contain.

    ``WR@K = sum of weights in the top K / sum of weights``, averaged over the requests that have feedback.

    Args:
        scores: ``[N]``, the candidates of all requests, concatenated. Higher is better, equal scores rank by lower
            position, NaN after every number. Array-like, or a tensor on any device, like all arguments here.
        weights: ``[N]``, each candidate's feedback (e.g. its number of orders), non-negative.
        offsets: ``[R + 1]`` integers; request ``r`` owns candidates ``offsets[r]`` to ``offsets[r + 1]``.
        k: at least 1.

    Returns:
        The mean over the requests whose weights have a sum above 0; NaN if there are none.

    Raises:
        ValueError: shapes that do not match, negative or non-finite weights, offsets that decrease, ``k < 1``.

    Example:
        >>> weighted_recall_at_k([0.1, 0.9, 0.5], [1, 2, 1], [0, 3], k=2)
        0.75
    """
    values, feedback, bounds = _scored(WR, scores, "weights", weights, offsets, k)
    order, rank = _best_first(values, bounds)
    feedback = feedback[order]
    held = library(feedback).where(rank < k, feedback, 0.0)
    return _mean_share(segment_sums(held, bounds), segment_sums(feedback, bounds))


def weighted_recall_of_ranking(positions: Any, weights: Any, offsets: Any) -> float:
    """Weighted Recall@K of a ranking, such as ``Scorer.dense_topk(...).positions``.

    Args:
        positions: ``[R, k]`` integers, positions within each request, best first; -1 past the last.
        weights: ``[N]``, as in :func:`weighted_recall_at_k`.
        offsets: ``[R + 1]``, likewise.

    Returns:
        The mean over the requests whose weights have a sum above 0; NaN if there are none.

    Raises:
        ValueError: as :func:`weighted_recall_at_k`, or a position that is out of range or repeated.
    """
    ranking, feedback, bounds = unified(positions, weights, offsets)
    feedback, bounds = _checked(WR, "weights", feedback, bounds)
    requests = len(bounds) - 1
    fits = ranking.ndim == 2 and is_integral(ranking) and len(ranking) == requests
    _require(fits, WR, "positions", f"integers of shape [{requests}, k]", f"{ranking.dtype} {list(ranking.shape)}")
    _check_positions(ranking, bounds)
    xp = library(feedback)
    if len(feedback) == 0 or requests == 0:
        return float("nan")
    # Where a position is -1, any candidate serves as a placeholder: its weight is left out.
    chosen = feedback[xp.where(ranking < 0, 0, longs(ranking) + bounds[:-1, None])]
    held = xp.where(ranking < 0, 0.0, chosen).sum(1)
    return _mean_share(held, segment_sums(feedback, bounds))


def recall_at_k(scores: Any, labels: Any, offsets: Any, k: int) -> float:
    """Recall@K: the share of a request's relevant candidates that are among its K best-scored.

    Args:
        scores, offsets, k: as in :func:`weighted_recall_at_k`.
        labels: ``[N]``, relevant if above 0.

    Returns:
        The mean over the requests with a relevant candidate; NaN if there are none.

    Raises:
        ValueError: as :func:`weighted_recall_at_k`.

    Example:
        >>> recall_at_k([0.1, 0.9, 0.5], [1, 1, 0], [0, 3], k=2)
        0.5
    """
    values, relevance, bounds = _scored(RECALL, scores, "labels", labels, offsets, k)
    return weighted_recall_at_k(values, doubles(relevance > 0), bounds, k)


def ndcg_at_k(scores: Any, labels: Any, offsets: Any, k: int, exponential: bool = False) -> float:
    """NDCG@K (Järvelin and Kekäläinen, TOIS 2002): discounted gain of the K best-scored over the largest possible gain.

    ``DCG = sum_i gain_i / log2(1 + i)`` over the ranks ``i`` from 1 to K.

    Args:
        scores, offsets, k: as in :func:`weighted_recall_at_k`.
        labels: ``[N]``, non-negative.
        exponential: use the gain ``2 ** label - 1`` instead of the label itself.

    Returns:
        The mean over the requests with a label above 0; NaN if there are none.

    Raises:
        ValueError: as :func:`weighted_recall_at_k`.

    Example:
        >>> round(ndcg_at_k([0.1, 0.9, 0.5], [1, 0, 1], [0, 3], k=2), 4)
        0.3869
    """
    values, gains, bounds = _scored(NDCG, scores, "labels", labels, offsets, k)
    xp = library(gains)
    if exponential:
        gains = xp.exp2(gains) - 1
    order, rank = _best_first(values, bounds)
    ideal_order, _ = _best_first(gains, bounds)
    discounts = xp.where(rank < k, 1 / xp.log2(doubles(rank) + 2), 0.0)
    return _mean_share(
        segment_sums(gains[order] * discounts, bounds), segment_sums(gains[ideal_order] * discounts, bounds)
    )


def grouped_auc(scores: Any, labels: Any, groups: Any) -> float:
    """GAUC (Zhu et al., KDD 2017): the AUC within each user or request, weighted by impressions.

    Args:
        scores: ``[N]``; equal scores count half.
        labels: ``[N]``, bool, or 0 and 1.
        groups: ``[N]``, the user's or request's id of each candidate, in any order. For requests given by offsets:
            ``np.repeat(np.arange(R), np.diff(offsets))``.

    Returns:
        The mean over the groups with both labels, where a group of ``n`` candidates has the weight ``n``; NaN if there
        is no such group or a score is NaN.

    Raises:
        ValueError: shapes that do not match, or other labels.

    Example:
        >>> grouped_auc([0.1, 0.9, 0.5, 0.5], [0, 1, 1, 0], [7, 7, 8, 8])
        0.75
    """
    if not is_tensor(groups):  # ids may be strings, which tensors cannot hold
        groups = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(np.shape(groups))
    values, truth, owners = unified(scores, labels, groups)
    values, truth = doubles(values), doubles(truth)
    _require(truth.ndim == 1, GAUC, "labels", "a vector", list(truth.shape))
    for name, array in (("scores", values), ("groups", owners)):
        _require(array.shape == truth.shape, GAUC, name, f"of shape {list(truth.shape)}", list(array.shape))
    _require(bool(((truth == 0) | (truth == 1)).all()), GAUC, "labels", "0 or 1", "others")
    xp = library(values)
    if len(truth) == 0 or bool(xp.isnan(values).any()):
        return float("nan")
    order = stable_argsort(values)
    order = order[stable_argsort(owners[order])]
    values, truth, owners = values[order], truth[order], owners[order]
    bounds = _bounds(owners[1:] != owners[:-1])
    ties = _bounds((owners[1:] != owners[:-1]) | (values[1:] != values[:-1]))
    # Equal scores share the mean of their ranks, so a pair of them counts half (Mann-Whitney).
    ranks = repeat(doubles(ties[1:] + ties[:-1] + 1) / 2, xp.diff(ties)) - repeat(doubles(bounds[:-1]), xp.diff(bounds))
    positives, sizes = segment_sums(truth, bounds), doubles(xp.diff(bounds))
    wins = segment_sums(ranks * truth, bounds) - positives * (positives + 1) / 2
    pairs = positives * (sizes - positives)
    both = pairs > 0
    if not bool(both.any()):
        return float("nan")
    return float((wins[both] / pairs[both] * sizes[both]).sum() / sizes[both].sum())


def _best_first(scores: Array, offsets: Array) -> tuple[Array, Array]:
    """The candidates of each request, best first, and the rank of each in its request, from 0."""
    order = stable_argsort(0.0 - scores)  # not -scores: 0 and -0 must be equal, whatever the sort compares
    owners = repeat(places(offsets[1:]), library(offsets).diff(offsets))
    order = order[stable_argsort(owners[order])]
    return order, places(order) - repeat(offsets[:-1], library(offsets).diff(offsets))


def _bounds(changes: Array) -> Array:
    """Starts of runs, and the total length; ``changes [n - 1]`` marks elements that differ from the one before."""
    first = zero_place(changes)
    return library(changes).concatenate((first, places(changes)[changes] + 1, first + len(changes) + 1))


def _mean_share(held: Array, total: Array) -> float:
    some = total > 0
    return float((held[some] / total[some]).mean()) if bool(some.any()) else float("nan")


def _scored(op: str, scores: Any, name: str, weights: Any, offsets: Any, k: int) -> tuple[Array, Array, Array]:
    values, feedback, bounds = unified(scores, weights, offsets)
    feedback, bounds = _checked(op, name, feedback, bounds)
    _require(values.shape == feedback.shape, op, "scores", f"of shape {list(feedback.shape)}", list(values.shape))
    _require(k >= 1, op, "k", "at least 1", k)
    return doubles(values), feedback, bounds


def _checked(op: str, name: str, weights: Array, offsets: Array) -> tuple[Array, Array]:
    feedback = doubles(weights)
    _require(feedback.ndim == 1, op, name, "a vector", list(feedback.shape))
    valid = bool((library(feedback).isfinite(feedback) & (feedback >= 0)).all())
    _require(valid, op, name, "finite and not negative", "others")
    integral = offsets.ndim == 1 and len(offsets) >= 1 and is_integral(offsets)
    _require(integral, op, "offsets", "a vector of integers", f"{offsets.dtype} {list(offsets.shape)}")
    bounds = longs(offsets)
    fits = bounds[0] == 0 and bounds[-1] == len(feedback) and bool((library(bounds).diff(bounds) >= 0).all())
    _require(bool(fits), op, "offsets", f"from 0 to {len(feedback)} without a decrease", bounds.tolist()[:10])
    return feedback, bounds


def _check_positions(ranking: Array, offsets: Array) -> None:
    own, counts = longs(ranking), library(offsets).diff(offsets)
    ascending = sorted_rows(own)
    twice = (ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] >= 0)
    bad = ((own < -1) | (own >= counts[:, None])).any(1) | twice.any(1)
    if bool(bad.any()):
        request = int(places(bad)[bad][0])
        held = [position for position in ranking[request].tolist() if position != -1]
        expected = f"different numbers of 0 to {int(counts[request]) - 1}, or -1"
        _require(False, WR, f"positions[{request}]", expected, held)


def _require(holds: bool, op: str, argument: str, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{op}: {argument} must be {expected}, got {got}")
