"""Weighted Recall@K against a brute force that follows the definition word by word."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from resflow_kernels.metrics import weighted_recall_at_k, weighted_recall_of_ranking


def brute_force(scores: list[float], weights: list[float], offsets: list[int], k: int) -> float:
    recalls = []
    for start, stop in pairwise(offsets):
        places = sorted(range(start, stop), key=lambda i: (math.isnan(scores[i]), -scores[i], i))
        total = sum(weights[start:stop])
        if total > 0:
            recalls.append(sum(weights[i] for i in places[:k]) / total)
    return sum(recalls) / len(recalls) if recalls else math.nan


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_brute_force_on_ties_nan_and_empty_requests(seed: int) -> None:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate(([0], np.cumsum(rng.integers(0, 12, 9))))
    scores = rng.integers(0, 5, offsets[-1]).astype(np.float32)  # many ties
    scores[rng.random(len(scores)) < 0.2] = np.nan
    weights = rng.integers(0, 4, len(scores)) * (rng.random(len(scores)) < 0.5)
    k = int(rng.integers(1, 15))
    expected = brute_force(scores.tolist(), weights.tolist(), offsets.tolist(), k)
    assert weighted_recall_at_k(scores, weights, offsets, k) == pytest.approx(expected, nan_ok=True)


def test_infinite_scores_stand_before_nan() -> None:
    assert weighted_recall_at_k([np.nan, -np.inf, np.inf], [0, 1, 1], [0, 3], 2) == 1.0


def test_ranking_ignores_padding() -> None:
    assert weighted_recall_of_ranking([[1, -1, -1], [0, 1, -1]], [1, 3, 5, 0, 5], [0, 2, 5]) == pytest.approx(0.625)
    assert weighted_recall_of_ranking([[1, -1]], [1, 3], [0, 2]) == pytest.approx(0.75)


def test_without_feedback_is_nan() -> None:
    assert math.isnan(weighted_recall_at_k([1.0, 2.0], [0, 0], [0, 2], 1))
    assert math.isnan(weighted_recall_at_k([], [], [0], 1))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([1.0], [1, 2], [0, 2], 1), r"scores must be of shape \[2\], got \[1\]"),
        (([1.0], [-1], [0, 1], 1), "weights must be finite and not negative"),
        (([1.0], [np.nan], [0, 1], 1), "weights must be finite and not negative"),
        (([1.0], [1], [0, 2], 1), "offsets must be from 0 to 1"),
        (([1.0, 2], [1, 1], [0, 2, 1, 2], 1), "offsets must be from 0 to 2 without a decrease"),
        (([1.0], [1], [0.0, 1.0], 1), "offsets must be a vector of integers, got float64"),
        (([1.0], [1], [0, 1], 0), "k must be at least 1, got 0"),
    ],
)
def test_bad_input(arguments: tuple[list[float], list[float], list[int], int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        weighted_recall_at_k(*arguments)


@pytest.mark.parametrize(
    ("positions", "text"),
    [
        ([[2]], r"positions\[0\] must be different numbers of 0 to 1"),
        ([[0, 0]], r"positions\[0\] must be different"),
        ([[-2]], r"positions\[0\] must be"),
        ([[0], [1]], r"positions must be integers of shape \[1, k\]"),
        ([[0.0]], "positions must be integers"),
    ],
)
def test_bad_ranking(positions: list[list[float]], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        weighted_recall_of_ranking(positions, [1, 1], [0, 2])
