"""Losses against loops over their definitions in float64, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from resflow_kernels import Additive, ExpectedValue, make_ranker, reference
from resflow_kernels.nn.losses import bucket_values, calibrator_loss, multitask_bce, progressive_labels, task_bce
from tests.support.files import DATA


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def by_definition(
    logits: Tensor, labels: Tensor, positive: list[float], tasks: list[float], mask: Tensor | None
) -> float:
    total = 0.0
    for k in range(logits.shape[1]):
        terms = []
        for b in range(logits.shape[0]):
            if mask is None or mask[b, k]:
                p, y = sigmoid(float(logits[b, k])), float(labels[b, k])
                terms.append(-(positive[k] * y * math.log(p) + (1 - y) * math.log(1 - p)))
        total += tasks[k] * (sum(terms) / len(terms) if terms else 0.0)
    return total


@given(
    rows=st.integers(0, 7), tasks=st.integers(1, 4), seed=st.integers(0, 999), masked=st.booleans(), soft=st.booleans()
)
def test_it_is_the_definition(rows: int, tasks: int, seed: int, masked: bool, soft: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, tasks, generator=generator, dtype=torch.float64)
    labels = torch.rand(rows, tasks, generator=generator, dtype=torch.float64)
    labels = labels if soft else labels.round()
    mask = torch.rand(rows, tasks, generator=generator) < 0.6 if masked else None
    positive = (100 * torch.rand(tasks, generator=generator) + 0.1).tolist()
    weights = (2 * torch.rand(tasks, generator=generator)).tolist()
    expected = by_definition(logits, labels, positive, weights, mask)
    shown = labels if mask is None else torch.where(mask, labels, torch.nan)  # a hidden label is never read
    got = multitask_bce(logits, shown, positive, weights, mask)
    assert got.dtype == torch.float64 and float(got) == pytest.approx(expected, rel=1e-12)
    assert float(multitask_bce(logits, shown, torch.tensor(positive), None, mask)) == pytest.approx(
        by_definition(logits, labels, positive, [1.0] * tasks, mask), rel=1e-6
    )
    torch.testing.assert_close((torch.tensor(weights) * task_bce(logits, shown, positive, mask)).sum(), got)


def test_gradient_is_that_of_observed_labels() -> None:
    logits = torch.tensor([[0.5, -1.0], [2.0, 0.0], [-3.0, 1.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, torch.nan], [0, torch.nan], [torch.nan, torch.nan]])
    mask = ~labels.isnan()
    multitask_bce(logits, labels, (3.0, 1.0), (2.0, 1.0), mask).backward()
    # d/dz of 2 * mean over two of the cross-entropy, whose positive counts three times.
    expected = [[-3 * (1 - sigmoid(0.5)), 0], [sigmoid(2.0), 0], [0, 0]]
    torch.testing.assert_close(logits.grad, torch.tensor(expected, dtype=torch.float64))


def test_large_logits_stay_finite() -> None:
    loss = multitask_bce(torch.tensor([[200.0], [-200.0]]), torch.tensor([[0.0], [1.0]]), (100,))
    assert float(loss) == pytest.approx((200 + 100 * 200) / 2)


def test_labels_may_be_bool_or_integers() -> None:
    logits, labels = torch.randn(5, 2), torch.rand(5, 2) < 0.5
    assert (
        multitask_bce(logits, labels) == multitask_bce(logits, labels.long()) == multitask_bce(logits, labels.float())
    )


@pytest.mark.parametrize("parents", [(-1,), (-1, 0, 1), (-1, 0, 0), (-1, -1, 1), (-1, -1, -1)])
@pytest.mark.parametrize("rows", [0, 6])
def test_calibrator_is_the_definition(parents: tuple[int, ...], rows: int) -> None:
    logits = torch.randn(rows, len(parents), dtype=torch.float64)
    expected = sum(
        max(sigmoid(float(row[k])) - sigmoid(float(row[p])), 0.0)
        for row in logits
        for k, p in enumerate(parents)
        if p >= 0
    )
    assert float(calibrator_loss(logits, parents)) == pytest.approx(expected / max(1, rows), abs=1e-12)


def test_calibrator_pulls_a_child_below_its_parent() -> None:
    torch.manual_seed(0)
    model = make_ranker("aitm", 5, (4,), ("click", "order"), fusion=Additive()).train()
    x, labels = torch.randn(64, 5), torch.tensor([[0.0, 1.0]]).expand(64, 2)  # orders without clicks
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(40):
        logits = model(x).logits
        loss = multitask_bce(logits, labels) + 20 * calibrator_loss(logits, model.plan.parents)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    excess = float(calibrator_loss(model(x).logits.detach(), model.plan.parents))
    assert excess < 0.05  # the labels alone ask for 1


@given(st.lists(st.integers(-3, 9), max_size=9), st.sets(st.integers(-2, 8), min_size=1, max_size=5))
def test_progressive_labels_are_comparisons(values: list[int], cuts: set[int]) -> None:
    thresholds = sorted(cuts)
    got = progressive_labels(torch.tensor(values, dtype=torch.int64), thresholds)
    assert got.dtype == torch.float32 and got.shape == (len(values), len(thresholds))
    assert got.tolist() == [[float(value > cut) for cut in thresholds] for value in values]
    assert torch.equal(got, progressive_labels(torch.tensor(values).double(), torch.tensor(thresholds)))


def test_bucket_values_are_the_authors() -> None:
    with np.load(DATA / "progressive_logits_9tasks.npz") as known:
        logits, score = torch.from_numpy(known["logits"]).double(), torch.from_numpy(known["score"]).double()
        thresholds = known["percentiles"][:9]
    fusion = ExpectedValue(bucket_values(thresholds.tolist(), 5, 93))
    weights = torch.tensor(fusion.weights_for(9), dtype=torch.float64)
    torch.testing.assert_close(reference.fuse(logits, weights, fusion.kind), score, atol=0, rtol=1e-6)
    assert bucket_values([4.0], 1, 4) == (1, 4)


def test_a_perfect_progressive_model_gives_the_buckets_value() -> None:
    cuts = (2.0, 5.0, 9.0)
    fusion = ExpectedValue(bucket_values(cuts, 1, 12))
    labels = progressive_labels(torch.tensor([0.0, 3.0, 7.0, 30.0]), cuts)
    score = reference.fuse(torch.logit(labels), torch.tensor(fusion.weights_for(3)), fusion.kind)
    assert score.tolist() == [1.0, 3.5, 7.0, 12.0]


LOGITS, LABELS = torch.zeros(2, 3), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: multitask_bce(LOGITS[0], LABELS[0]), r"task_bce: logits must be a floating matrix, got float32 \[3\]"),
        (lambda: multitask_bce(LOGITS.long(), LABELS), "logits must be a floating matrix, got int64"),
        (lambda: multitask_bce(LOGITS, LABELS[:, :2]), r"labels must be of shape \[2, 3\], got \[2, 2\]"),
        (lambda: multitask_bce(LOGITS, LABELS + 2), "labels must be 0 to 1 where observed"),
        (lambda: multitask_bce(LOGITS, LABELS * torch.nan), "labels must be 0 to 1 where observed"),
        (
            lambda: multitask_bce(LOGITS, LABELS, mask=LABELS),
            r"mask must be bool of shape \[2, 3\], got float32",
        ),
        (
            lambda: multitask_bce(LOGITS, LABELS, mask=LABELS[0] > 0),
            r"mask must be bool of shape .*, got bool \[3\]",
        ),
        (lambda: multitask_bce(LOGITS, LABELS, (1, 2)), "positive_weights must be 3 finite numbers, one per task, got"),
        (lambda: multitask_bce(LOGITS, LABELS, (1, 0, 2)), "positive_weights must be above 0, got"),
        (lambda: multitask_bce(LOGITS, LABELS, None, (1, -1, 2)), "task_weights must be not negative, got"),
        (lambda: multitask_bce(LOGITS, LABELS, None, (1, math.nan, 2)), "task_weights must be 3 finite numbers"),
        (lambda: calibrator_loss(LOGITS, (-1, 0)), r"parents must be 3 numbers of -1 to 2, got \[-1, 0\]"),
        (lambda: calibrator_loss(LOGITS, (-1, 0, 3)), "calibrator_loss: parents must be 3 numbers of -1 to 2"),
        (lambda: progressive_labels(LOGITS, (1,)), "values must be a vector, got float32"),
        (lambda: progressive_labels(LOGITS[0] / 0, (1,)), "values must be finite"),
        (lambda: progressive_labels(LOGITS[0], (1, 1)), "one or more finite numbers that increase, got"),
        (lambda: progressive_labels(LOGITS[0], ()), r"thresholds must be one or more finite .*, got \[\]"),
        (
            lambda: bucket_values((1, 2), 1.5, 3),
            "first must be at most the first threshold, 1.0, got 1.5",
        ),
        (lambda: bucket_values((1, 2), 0, 1), "last must be at least the last threshold, 2.0, got 1"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()
