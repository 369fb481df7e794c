"""The k best of requests: order, ties, NaN, and requests of every size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from resflow_kernels import reference
from resflow_kernels.contract import WEIGHTS_PER
from resflow_kernels.core.plan import Plan
from tests.support.cases import TowerCase
from tests.support.comparisons import same_bits
from tests.support.devices import Device
from tests.support.draws import random_offsets, seeds

TINY = Plan(2, (4,), (-1, 0))


@given(count=st.integers(0, 300), requests=st.integers(0, 9), k=st.sampled_from([1, 2, 7, 33, 400]), seed=seeds)
@example(count=300, requests=1, k=1000, seed=0)
def test_best_are_those_of_the_scores(device: Device, count: int, requests: int, k: int, seed: int) -> None:
    from resflow_kernels.triton.scoring import topk

    generator = torch.Generator().manual_seed(seed)
    count *= requests > 0
    some = torch.tensor([0.0, -0.0, 1.0, 2.0, float("inf"), float("-inf"), float("nan"), -3.0])
    score = some[torch.randint(0, 8, (count,), generator=generator)]
    offsets = random_offsets(count, requests, generator)
    best = topk(device.tensor(score), device.tensor(offsets), k)
    assert same_bits(tuple(part.cpu() for part in best), reference.topk(score, offsets, k))


@pytest.mark.parametrize("per", WEIGHTS_PER)
def test_of_the_forms(device: Device, per: str) -> None:
    case = TowerCase(TINY, 40, ops=device)
    offsets = torch.tensor([0, 3, 3, 25, 40])
    weights = torch.rand({"call": (2,), "request": (4, 2), "candidate": (40, 2)}[per], generator=case.generator)
    settings = (case.packed, TINY, weights, "additive", per)
    candidate = weights if per != "request" else weights[reference.request_of_candidates(offsets, 40)]
    scores = device.dense_scores(
        case.x, *settings[:2], candidate, "additive", "call" if per == "call" else "candidate"
    ).score
    best = device.dense_topk(case.x, offsets, *settings, 5)
    assert same_bits(best, reference.topk(scores, offsets, 5))
    user, item = torch.randn(4, 1, generator=case.generator), case.x[:, 1:]
    scores = device.request_scores(user, item, offsets, *settings).score
    assert same_bits(device.request_topk(user, item, offsets, *settings, 5), reference.topk(scores, offsets, 5))


def test_offsets_that_leave_candidates_out(device: Device) -> None:
    case = TowerCase(TINY, 10, ops=device)
    settings = (case.packed, TINY, case.fusion_weights)
    best = device.dense_topk(case.x, torch.tensor([2, 5, 8]), *settings, k=4)
    scores = device.dense_scores(case.x, *settings).score
    assert same_bits(best, reference.topk(scores, torch.tensor([2, 5, 8]), 4))
    for bad in ([9, 1, 30], [-4, 5, 1 << 40], [0, 0, 0]):
        best = device.dense_topk(case.x, torch.tensor(bad), *settings, k=4)
        assert best.scores.shape == (2, 4) and ((best.positions >= -1) & (best.positions < 1 << 40)).all()
    with pytest.raises(ValueError, match="dense_topk: k must be at least 1, got 0"):
        device.dense_topk(case.x, torch.tensor([0, 10]), *settings, k=0)
