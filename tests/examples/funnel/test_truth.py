"""Measures against known probabilities: beside brute force, and beside drawn labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.funnel.truth import excess_log_loss, expected_auc, relative_error
from resflow_kernels.metrics import auc

PROBABILITIES = st.lists(st.floats(0.01, 0.99), min_size=2, max_size=12)


@given(truth=PROBABILITIES, data=st.data())
def test_expected_auc_is_the_sum_over_pairs(truth: list[float], data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.integers(0, 5), min_size=len(truth), max_size=len(truth)))
    p, s = np.array(truth), np.array(scores)
    weight = p[:, None] * (1 - p[None, :])
    won = (s[:, None] > s[None, :]) + 0.5 * (s[:, None] == s[None, :])
    assert expected_auc(scores, truth) == pytest.approx((weight * won).sum() / weight.sum())


def test_expected_auc_is_what_drawn_labels_have_on_average() -> None:
    rng = np.random.default_rng(0)
    truth = rng.beta(1, 4, 20_000)
    scores = truth + rng.normal(0, 0.1, len(truth))
    drawn = [auc(scores, rng.random(len(truth)) < truth) for _ in range(10)]
    assert expected_auc(scores, truth) == pytest.approx(np.mean(drawn), abs=0.003)


def test_labels_are_probabilities_too() -> None:
    labels = np.array([0.0, 1, 1, 0, 1])
    scores = np.array([0.3, 0.3, 0.9, 0.5, 0.1])
    assert expected_auc(scores, labels) == pytest.approx(auc(scores, labels))
    assert np.isnan(expected_auc([0.1, 0.2], [0.0, 0.0]))


@given(truth=PROBABILITIES, data=st.data())
def test_nothing_is_better_than_the_truth(truth: list[float], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.floats(0.01, 0.99), min_size=len(truth), max_size=len(truth)))
    assert expected_auc(truth, truth) >= expected_auc(other, truth) - 1e-12
    assert excess_log_loss(other, truth) >= -1e-12
    assert excess_log_loss(truth, truth) == pytest.approx(0) and relative_error(truth, truth) == 0


def test_excess_log_loss_and_relative_error_of_one_candidate() -> None:
    expected = 0.5 * np.log(0.5 / 0.2) + 0.5 * np.log(0.5 / 0.8)
    assert excess_log_loss([0.2], [0.5]) == pytest.approx(expected)
    assert relative_error([0.2, 0.4], [0.5, 0.3]) == pytest.approx((0.3 + 0.1) / 0.8)
    assert np.isfinite(excess_log_loss([0.0], [0.5]))


@pytest.mark.parametrize(
    ("scores", "truth", "message"),
    [
        ([0.1, 0.2], [0.1], "vectors of one length"),
        ([float("nan")], [0.1], "scores must be numbers, got 1 NaN"),
        ([0.1], [1.1], "truth must be probabilities"),
    ],
)
def test_bad_input_is_named(scores: list[float], truth: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expected_auc(scores, truth)
