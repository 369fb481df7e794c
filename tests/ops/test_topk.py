"""The k best of requests: order, ties, NaN, and requests of every size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from resflow_kernels import reference
from resflow_kernels.contract import WEIGHTS_PER
from resflow_kernels.core.plan import Plan
from tests.support.cases import CatalogCase, RequestCase, TowerCase
from tests.support.comparisons import same_bits
from tests.support.devices import Device
from tests.support.draws import batches_of, drawn, plans_up_to, random_offsets, seeds

# Cheap to score: the selection is what is tested.
TINY = Plan(2, (4,), (-1, 0))
NAN, INF = float("nan"), float("inf")


def with_ties_and_nan(x: Tensor, ties: bool, generator: torch.Generator) -> Tensor:
    if ties and len(x):
        x = x[torch.randint(0, max(len(x) // 4, 1), (len(x),), generator=generator)]
    x[torch.rand(len(x), generator=generator) < 0.1] = NAN
    return x


@drawn(
    {"plan": TINY, "batch": 1100, "requests": 1, "k": 1000, "ties": True, "seed": 0},
    {"plan": TINY, "batch": 65, "requests": 1, "k": 3000, "ties": False, "seed": 0},
    {"plan": TINY, "batch": 300, "requests": 9, "k": 33, "ties": True, "seed": 1},
    plan=lambda device: st.just(TINY) if device.small else plans_up_to(3)(device),
    batch=lambda device: st.one_of(batches_of(device), st.sampled_from([100] if device.interpreted else [500, 1100])),
    requests=st.integers(0, 9),
    k=st.sampled_from([1, 2, 7, 31, 32, 33, 100]),
    ties=st.booleans(),
    seed=seeds,
)
def test_best_are_those_of_the_scores(
    device: Device, plan: Plan, batch: int, requests: int, k: int, ties: bool, seed: int
) -> None:
    case = TowerCase(plan, batch if requests else 0, seed=seed, ops=device)
    x = with_ties_and_nan(case.x, ties, case.generator)
    offsets = random_offsets(len(x), requests, case.generator)
    settings = (case.packed, plan, case.fusion_weights, "additive", "call")
    expected = reference.topk(device.dense_scores(x, *settings).score, offsets, k)
    assert same_bits(device.dense_topk(x, offsets, *settings, k), expected)

    split = plan.in_features // 2
    user, item = torch.randn(requests, split, generator=case.generator), x[:, split:].contiguous()
    scores = device.request_scores(user, item, offsets, *settings).score
    assert same_bits(device.request_topk(user, item, offsets, *settings, k), reference.topk(scores, offsets, k))


@pytest.mark.parametrize("per", WEIGHTS_PER)
def test_weights_of_the_call_the_requests_and_the_candidates(device: Device, per: str) -> None:
    offsets = [0, 3, 3, 25, 40]
    request = RequestCase(TINY, 40, 4, "additive", per, split=1, offsets=offsets, ops=device)
    catalog = CatalogCase(TINY, 40, 4, "additive", per, split=1, offsets=offsets, dtype="int8", ops=device)
    for case in (request, catalog):
        assert same_bits(case.topk(5), reference.topk(case.scores().score, case.offsets, 5))
    weights = request.fusion_weights
    candidates = weights[request.request] if per == "request" else weights
    scores = device.dense_scores(
        request.x, request.packed, TINY, candidates, "additive", "call" if per == "call" else "candidate"
    ).score
    best = device.dense_topk(request.x, request.offsets, *request.settings, 5)
    assert same_bits(best, reference.topk(scores, request.offsets, 5))


@pytest.mark.parametrize("value", [NAN, INF, 0.0])
def test_candidates_that_all_score_the_same(device: Device, value: float) -> None:
    case = TowerCase(TINY, 300, ops=device)
    x = torch.full_like(case.x, value)
    settings = (case.packed, TINY, case.fusion_weights, "additive", "call")
    best = device.dense_topk(x, torch.tensor([0, 300]), *settings, 40)
    score = device.dense_scores(x, *settings).score
    assert best.positions[0].tolist() == list(range(40))
    assert same_bits((best.scores[0],), (score[:40],))


def test_infinite_scores_and_both_zeros(device: Device) -> None:
    """Scores are the weights here, and 0 is equal to -0: the lower position comes first."""
    case = TowerCase(TINY, 64, ops=device)
    values = torch.tensor([0.0, -0.0, 1.0, 2.0, INF, -INF, NAN, -3.0])
    chosen = values[torch.randint(0, 8, (64,), generator=case.generator)]
    weights = torch.stack((chosen, torch.zeros(64)), 1)
    settings = (case.packed, TINY, weights, "additive", "candidate")
    score = device.dense_scores(case.x, *settings).score
    assert score.isnan().any() and score.isinf().any() and (score == 0).any()
    offsets = torch.tensor([0, 20, 21, 64])
    for k in (1, 7, 50):
        assert same_bits(device.dense_topk(case.x, offsets, *settings, k), reference.topk(score, offsets, k))


@pytest.mark.devices("cpu", "numpy", "cuda", "triton", slow=False)
def test_many_requests_and_long_ones(device: Device) -> None:
    case = TowerCase(TINY, 300_000, ops=device)
    settings = (case.packed, TINY, case.fusion_weights, "additive", "call")
    score = device.dense_scores(case.x, *settings).score
    for offsets in ([0, 300_000], [0, 1, 299_999, 300_000], [*range(0, 300_000, 97), 300_000]):
        cut = torch.tensor(offsets)
        for k in (1, 100, 4000):
            if k * len(offsets) < 10**6:
                expected = reference.topk(score, cut, k)
                assert same_bits(device.dense_topk(case.x, cut, *settings, k), expected)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.devices("cpu", "numpy")
@pytest.mark.parametrize("count", [1, 2, 5])
def test_requests_that_cross_chunks_on_any_number_of_threads(device: Device, count: int) -> None:
    """Large enough that threads share a request, and that a chunk holds many small ones."""
    case = TowerCase(Plan(8, (16,), (-1, 0)), 20_000, ops=device)
    score = case.run().score
    with threads(count):
        for offsets in (
            [0, 20_000],
            [0, 9_999, 10_000, 10_000, 20_000],
            [*range(0, 20_000, 7), 20_000],
            [0, *range(5_000, 5_500, 3), 20_000],
        ):
            cut = torch.tensor(offsets)
            best = device.dense_topk(case.x, cut, case.packed, case.plan, case.fusion_weights, k=50)
            assert same_bits(best, reference.topk(score, cut, 50))
