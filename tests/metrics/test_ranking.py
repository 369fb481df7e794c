"""Metrics of rankings against brute forces that follow the definitions word by word, on arrays and on tensors."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resflow_kernels import metrics, reference
from resflow_kernels.metrics import weighted_recall_at_k, weighted_recall_of_ranking

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
SCORES = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.25, 0.5, 1.0, 30.0, math.inf, math.nan])  # many ties


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[float], list[float], list[int], int]:
    """Scores, labels, offsets and k: empty requests, requests without feedback, requests shorter than k."""
    sizes = draw(st.lists(st.integers(0, 6), max_size=5))
    offsets = [sum(sizes[:at]) for at in range(len(sizes) + 1)]
    scores = draw(st.lists(SCORES, min_size=offsets[-1], max_size=offsets[-1]))
    labels = draw(st.lists(st.sampled_from([0.0, 0.0, 1.0, 2.0, 0.3]), min_size=offsets[-1], max_size=offsets[-1]))
    return scores, labels, offsets, draw(st.integers(1, 8))


def in_both_libraries(metric: Callable[..., float], *arguments: Any) -> float:
    """The metric of lists, checked against that of tensors, mixed ones and other dtypes."""
    *lists, offsets, k = arguments
    value = metric(*lists, np.array(offsets), k)
    for device in DEVICES:
        tensors = [torch.tensor(one, dtype=torch.float64, device=device, requires_grad=True) for one in lists]
        assert metric(*tensors, torch.tensor(offsets), k) == pytest.approx(value, nan_ok=True, rel=1e-12)
    assert metric(tensors[0].float(), *lists[1:], offsets, k) == pytest.approx(value, nan_ok=True, rel=1e-6)
    assert metric(np.float32(lists[0]), *lists[1:], np.int32(offsets), k) == pytest.approx(value, nan_ok=True)
    return value


def best_first(scores: list[float], start: int, stop: int) -> list[int]:
    return sorted(range(start, stop), key=lambda i: (math.isnan(scores[i]), -scores[i], i))


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def brute_force(scores: list[float], weights: list[float], offsets: list[int], k: int) -> float:
    recalls = []
    for start, stop in pairwise(offsets):
        total = sum(weights[start:stop])
        if total > 0:
            recalls.append(sum(weights[i] for i in best_first(scores, start, stop)[:k]) / total)
    return mean(recalls)


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


@given(rankings())
def test_weighted_recall_is_the_definition(case: tuple[list[float], list[float], list[int], int]) -> None:
    scores, weights, offsets, k = case
    expected = brute_force(*case)
    assert in_both_libraries(weighted_recall_at_k, *case) == pytest.approx(expected, nan_ok=True)
    # The same ranking, by way of positions.
    positions = [[i - start for i in best_first(scores, start, stop)[:k]] for start, stop in pairwise(offsets)]
    padded = np.array([row + [-1] * (k - len(row)) for row in positions], np.int64).reshape(-1, k)
    assert weighted_recall_of_ranking(padded, weights, offsets) == pytest.approx(expected, nan_ok=True)
    as_tensors = weighted_recall_of_ranking(torch.from_numpy(padded), torch.tensor(weights), torch.tensor(offsets))
    assert as_tensors == pytest.approx(expected, nan_ok=True, rel=1e-6)


@given(rankings())
def test_recall_is_the_definition(case: tuple[list[float], list[float], list[int], int]) -> None:
    scores, labels, offsets, k = case
    recalls = []
    for start, stop in pairwise(offsets):
        relevant = {i for i in range(start, stop) if labels[i] > 0}
        if relevant:
            recalls.append(len(relevant & set(best_first(scores, start, stop)[:k])) / len(relevant))
    assert in_both_libraries(metrics.recall_at_k, *case) == pytest.approx(mean(recalls), nan_ok=True)


@pytest.mark.parametrize("exponential", [False, True])
@given(case=rankings())
def test_ndcg_is_the_definition(exponential: bool, case: tuple[list[float], list[float], list[int], int]) -> None:
    scores, labels, offsets, k = case
    gains = [2**label - 1 for label in labels] if exponential else labels
    values = []
    for start, stop in pairwise(offsets):
        found = [gains[i] for i in best_first(scores, start, stop)]
        ideal = sorted(gains[start:stop], reverse=True)
        dcg, most = (sum(gain / math.log2(at + 2) for at, gain in enumerate(one[:k])) for one in (found, ideal))
        if most > 0:
            values.append(dcg / most)

    def ndcg(*arguments: Any) -> float:
        return metrics.ndcg_at_k(*arguments, exponential=exponential)

    assert in_both_libraries(ndcg, *case) == pytest.approx(mean(values), nan_ok=True)


def test_ndcg_agrees_with_torchmetrics_where_no_scores_tie() -> None:
    from torchmetrics.functional.retrieval import retrieval_normalized_dcg

    torch.manual_seed(0)
    scores, labels = torch.randperm(40).float(), torch.randint(0, 4, (40,))
    expected = float(retrieval_normalized_dcg(scores, labels, top_k=10))
    assert metrics.ndcg_at_k(scores, labels, [0, 40], 10) == pytest.approx(expected, rel=1e-6)


def test_top_k_of_the_reference_is_the_ranking_measured() -> None:
    torch.manual_seed(0)
    offsets = torch.tensor([0, 30, 30, 45])
    scores, weights = torch.randint(0, 6, (45,)).float(), torch.rand(45)
    best = reference.topk(scores, offsets, 7)
    by_position = weighted_recall_of_ranking(best.positions, weights, offsets)
    assert weighted_recall_at_k(scores, weights, offsets, 7) == pytest.approx(by_position, rel=1e-12)


def test_a_full_list_holds_everything_exactly() -> None:
    rng = np.random.default_rng(0)
    assert weighted_recall_at_k(rng.random(1000), rng.random(1000), [0, 400, 1000], 600) == 1.0


@given(
    st.lists(
        st.tuples(st.sampled_from([-math.inf, -2.0, -0.0, 0.0, 0.5, 3.0]), st.booleans(), st.sampled_from("abc")),
        max_size=14,
    )
)
def test_grouped_auc_is_the_definition(candidates: list[tuple[float, bool, str]]) -> None:
    total = weight = 0.0
    for group in "abc":
        own = [(score, label) for score, label, owner in candidates if owner == group]
        wins = [(p > n) + (p == n) / 2 for p, yes in own for n, other in own if yes and not other]
        if wins:
            total, weight = total + len(own) * sum(wins) / len(wins), weight + len(own)
    expected = total / weight if weight else math.nan
    scores, labels, owners = ([one[at] for one in candidates] for at in range(3))
    codes = [ord(owner) for owner in owners]
    assert metrics.grouped_auc(scores, np.array(labels, bool), owners) == pytest.approx(expected, nan_ok=True)
    tensors = torch.tensor(scores, dtype=torch.float32), torch.tensor(labels, dtype=torch.bool), torch.tensor(codes)
    assert metrics.grouped_auc(*tensors) == pytest.approx(expected, nan_ok=True)
    assert metrics.grouped_auc(*tensors[:2], owners) == pytest.approx(expected, nan_ok=True)


def test_grouped_auc_weighs_groups_by_impressions() -> None:
    # Group 1: AUC 1 of 2 impressions; group 2: AUC 0 of 3; group 3 has one label and is left out.
    value = metrics.grouped_auc([1, 2, 5, 4, 4, 9], [0, 1, 0, 1, 1, 1], [1, 1, 2, 2, 2, 3])
    assert value == pytest.approx(2 / 5)


def test_grouped_auc_of_one_class_or_nan_is_nan() -> None:
    assert math.isnan(metrics.grouped_auc([1, 2], [1, 1], [0, 0]))
    assert math.isnan(metrics.grouped_auc([1, 2], [0, 1], [0, 1]))
    assert math.isnan(metrics.grouped_auc([math.nan, 2, 3], [0, 1, 0], [0, 1, 1]))


def test_importing_and_using_arrays_loads_no_torch() -> None:
    code = (
        "import sys; from resflow_kernels import metrics\n"
        "assert metrics.weighted_recall_at_k([1, 2], [0, 1], [0, 2], 1) == 1\n"
        "assert metrics.ndcg_at_k([1, 2], [0, 1], [0, 2], 1) == metrics.grouped_auc([1, 2], [0, 1], [3, 3]) == 1\n"
        "assert 'torch' not in sys.modules and 'torchmetrics' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: metrics.recall_at_k([1.0], [1, 2], [0, 2], 1), r"Recall@K: scores must be of shape \[2\], got \[1\]"),
        (lambda: metrics.recall_at_k([1.0], [-1], [0, 1], 1), "Recall@K: labels must be finite and not negative"),
        (lambda: metrics.ndcg_at_k([1.0], [1], [0, 1], 0), "NDCG@K: k must be at least 1, got 0"),
        (lambda: metrics.ndcg_at_k([1.0], [[1]], [0, 1], 1), r"NDCG@K: labels must be a vector, got \[1, 1\]"),
        (
            lambda: metrics.ndcg_at_k(torch.ones(1), torch.ones(1), torch.ones(2), 1),
            r"offsets must be a vector of integers, got torch.float32 \[2\]",
        ),
        (lambda: metrics.grouped_auc([1.0], [2], [0]), "GAUC: labels must be 0 or 1, got others"),
        (lambda: metrics.grouped_auc([1.0], [1], [0, 0]), r"GAUC: groups must be of shape \[1\], got \[2\]"),
        (lambda: metrics.grouped_auc([1.0, 2], [1], [0]), r"GAUC: scores must be of shape \[1\], got \[2\]"),
    ],
)
def test_bad_input_of_the_others(call: Callable[[], float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()
