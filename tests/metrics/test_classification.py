"""Metrics of probabilities against brute forces that follow the definitions word by word."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resflow_kernels import metrics

PROBS = st.one_of(st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.floats(0, 1, width=32))


def candidates(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[list[tuple[float, int]]]:
    return st.lists(st.tuples(numbers, st.integers(0, 1)), max_size=14)


def in_both_libraries(metric: Callable[..., float], pairs: list[tuple[float, int]]) -> float:
    values, labels = [one for one, _ in pairs], [label for _, label in pairs]
    value = metric(values, labels)
    as_tensors = metric(torch.tensor(values, dtype=torch.float64, requires_grad=True), torch.tensor(labels) > 0)
    assert as_tensors == pytest.approx(value, nan_ok=True)
    assert metric(np.float32(values), np.float32(labels)) == pytest.approx(value, nan_ok=True, rel=1e-6)
    return value


@given(candidates(st.sampled_from([-math.inf, -60.0, -50.0, 0.0, 0.25, 3.0, 50.0, 60.0, math.inf])))
def test_auc_is_the_definition(pairs: list[tuple[float, int]]) -> None:
    wins = [(p > n) + (p == n) / 2 for p, yes in pairs for n, no in pairs if yes and not no]
    expected = sum(wins) / len(wins) if wins else math.nan
    assert in_both_libraries(metrics.auc, pairs) == pytest.approx(expected, nan_ok=True, abs=1e-6)


def test_auc_of_many_keeps_its_digits() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=200_000), rng.random(200_000) < 0.02
    ranks = np.argsort(np.argsort(scores)) + 1.0
    positives = labels.sum()
    exact = (ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))
    assert metrics.auc(scores, labels) == pytest.approx(exact, abs=1e-6)
    one_group = metrics.grouped_auc(scores, labels, np.zeros(len(labels), int))
    assert one_group == pytest.approx(exact, abs=1e-12)


@given(candidates(PROBS))
def test_log_loss_is_the_definition(pairs: list[tuple[float, int]]) -> None:
    def term(p: float) -> float:
        return min(100.0, -math.log(p)) if p > 0 else 100.0

    terms = [term(p if label else 1 - p) for p, label in pairs]
    expected = sum(terms) / len(terms) if terms else math.nan
    assert in_both_libraries(metrics.log_loss, pairs) == pytest.approx(expected, nan_ok=True)


@given(candidates(st.sampled_from([0.0, 0.1, 0.3, 0.45, 0.6, 0.99, 1.0])), st.integers(1, 12))
def test_calibration_error_is_the_definition(pairs: list[tuple[float, int]], bins: int) -> None:
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64).tolist()
    error = 0.0
    for low, high in zip(edges, [*edges[1:], math.inf], strict=True):  # 1 stands alone
        own = [(p, label) for p, label in pairs if low <= p < high]
        error += abs(sum(p - label for p, label in own)) / max(1, len(pairs))
    got = metrics.calibration_error([p for p, _ in pairs], [label for _, label in pairs], bins)
    assert got == pytest.approx(error if pairs else math.nan, nan_ok=True, abs=1e-6)


@given(candidates(PROBS))
def test_calibration_ratio_is_the_definition(pairs: list[tuple[float, int]]) -> None:
    observed = sum(label for _, label in pairs)
    expected = sum(p for p, _ in pairs) / observed if observed else math.nan
    assert in_both_libraries(metrics.calibration_ratio, pairs) == pytest.approx(expected, nan_ok=True)


ALL = (metrics.auc, metrics.log_loss, metrics.calibration_error, metrics.calibration_ratio)


@pytest.mark.parametrize("metric", ALL)
def test_nan_and_nothing_are_nan(metric: Callable[..., float]) -> None:
    assert math.isnan(metric([0.5, math.nan, 0.1], [0, 1, 1]))
    assert math.isnan(metric([], []))


def test_a_single_class_has_no_auc() -> None:
    assert math.isnan(metrics.auc([0.1, 0.2], [1, 1])) and math.isnan(metrics.auc([0.1, 0.2], [0, 0]))


@pytest.mark.parametrize("masked", [False, True])
def test_task_metrics_are_those_of_each_task(masked: bool) -> None:
    rng = np.random.default_rng(0)
    probs, labels, groups = rng.random((60, 3)), rng.random((60, 3)) < 0.4, rng.integers(0, 7, 60)
    mask = rng.random((60, 3)) < 0.7 if masked else None
    shown = labels.astype(float)
    if mask is not None:
        shown[~mask] = np.nan  # what was not observed is never read
    got = metrics.task_metrics(probs, shown, ("a", "b", "c"), groups, mask)
    tensors = torch.from_numpy(probs), torch.from_numpy(shown)
    assert metrics.task_metrics(*tensors, ("a", "b", "c"), torch.from_numpy(groups), mask) == got
    for task, name in enumerate("abc"):
        own = np.full(60, True) if mask is None else mask[:, task]
        pair = probs[own, task], labels[own, task]
        expected = {metric.__name__: metric(*pair) for metric in ALL}
        assert got[name] == pytest.approx({**expected, "gauc": metrics.grouped_auc(*pair, groups[own])})
    assert "gauc" not in metrics.task_metrics(probs, labels, ("a", "b", "c"))["a"]


def test_task_metrics_of_a_task_never_observed_are_nan() -> None:
    found = metrics.task_metrics([[0.1, 0.2]], [[1, 0]], ("a", "b"), [5], [[True, False]])
    assert all(math.isnan(value) for value in found["b"].values()) and len(found["b"]) == 5
    assert found["a"]["calibration_ratio"] == pytest.approx(0.1)


def test_without_torchmetrics_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional", None)
    with pytest.raises(ImportError, match=r"needs torchmetrics: pip install torchmetrics"):
        metrics.auc([0.1, 0.2], [0, 1])
    assert metrics.log_loss([0.5], [1]) == pytest.approx(math.log(2))


MATRIX: Any = [[0.1, 0.2]]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: metrics.auc([[1.0]], [[1]]), r"auc: scores must be a vector, got \[1, 1\]"),
        (lambda: metrics.auc([1.0], [1, 0]), r"auc: labels must be of shape \[1\], got \[2\]"),
        (lambda: metrics.auc([1.0], [0.5]), "auc: labels must be 0 or 1"),
        (lambda: metrics.log_loss([1.5], [1]), "log_loss: probs must be 0 to 1, got 1.5 to 1.5"),
        (lambda: metrics.calibration_ratio([-0.5, 1], [1, 0]), "probs must be 0 to 1, got -0.5 to 1.0"),
        (lambda: metrics.calibration_error([0.5], [1], 0), "calibration_error: bins must be at least 1, got 0"),
        (
            lambda: metrics.task_metrics([0.5], [1], ("a",)),
            r"must be a matrix of 1 columns, one per task, got \[1\]",
        ),
        (lambda: metrics.task_metrics(MATRIX, [[1]], ("a", "b")), r"labels must be of shape \[1, 2\], got \[1, 1\]"),
        (lambda: metrics.task_metrics(MATRIX, [[1, 0]], "ab", [1, 2]), r"groups must be of shape \[1\], got \[2\]"),
        (lambda: metrics.task_metrics(MATRIX, [[1, 0]], "ab", mask=[[1, 0]]), "mask must be bool, got torch.int64"),
        (lambda: metrics.task_metrics(MATRIX, [[1, 0]], "ab", mask=[[True]]), r"mask must be of shape \[1, 2\]"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()
