"""The k best of requests on a GPU's kernels: order, ties, NaN, and requests of every size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from resflow_kernels import reference
from resflow_kernels.core.plan import Plan
from tests.support.cases import TowerCase
from tests.support.comparisons import same_bits
from tests.support.devices import Device
from tests.support.draws import gpu_batches, random_offsets, seeds

# Cheap to score: the selection is what is tested.
TINY = Plan(2, (4,), (-1, 0))


@given(
    batch=st.one_of(gpu_batches, st.sampled_from([500, 1100])),
    requests=st.integers(0, 9),
    k=st.sampled_from([1, 2, 7, 31, 32, 33, 100]),
    ties=st.booleans(),
    seed=seeds,
)
@example(batch=1100, requests=1, k=1000, ties=True, seed=0)
@example(batch=65, requests=1, k=3000, ties=False, seed=0)
def test_best_are_those_of_the_scores(device: Device, batch: int, requests: int, k: int, ties: bool, seed: int) -> None:
    case = TowerCase(TINY, batch if requests else 0, seed=seed, ops=device)
    x = case.x
    if ties:
        x = x[torch.randint(0, max(len(x) // 4, 1), (len(x),), generator=case.generator)]
    x[torch.rand(len(x), generator=case.generator) < 0.1] = float("nan")
    offsets = random_offsets(len(x), requests, case.generator)
    settings = (case.packed, TINY, case.fusion_weights, "additive", "call")
    expected = reference.topk(device.dense_scores(x, *settings).score, offsets, k)
    assert same_bits(device.dense_topk(x, offsets, *settings, k), expected)

    user, item = torch.randn(requests, 1, generator=case.generator), x[:, 1:].contiguous()
    scores = device.request_scores(user, item, offsets, *settings).score
    assert same_bits(device.request_topk(user, item, offsets, *settings, k), reference.topk(scores, offsets, k))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_candidates_that_all_score_the_same(device: Device, value: float) -> None:
    case = TowerCase(TINY, 300, ops=device)
    x = torch.full_like(case.x, value)
    settings = (case.packed, TINY, case.fusion_weights, "additive", "call")
    best = device.dense_topk(x, torch.tensor([0, 300]), *settings, 40)
    score = device.dense_scores(x, *settings).score
    assert best.positions[0].tolist() == list(range(40))
    assert same_bits((best.scores[0],), (score[:40],))


def test_many_requests_and_long_ones(device: Device) -> None:
    if device.emulated:
        pytest.skip("emulated: takes minutes")
    case = TowerCase(TINY, 300_000, ops=device)
    settings = (case.packed, TINY, case.fusion_weights, "additive", "call")
    score = device.dense_scores(case.x, *settings).score
    for offsets in ([0, 300_000], [0, 1, 299_999, 300_000], [*range(0, 300_000, 97), 300_000]):
        cut = torch.tensor(offsets)
        for k in (1, 100, 4000):
            if k * len(offsets) < 10**6:
                expected = reference.topk(score, cut, k)
                assert same_bits(device.dense_topk(case.x, cut, *settings, k), expected)
