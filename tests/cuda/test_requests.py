"""The request form on a GPU's kernels against the float64 reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from resflow_kernels import reference
from resflow_kernels.contract import WEIGHTS_PER
from resflow_kernels.core.checks import precisions_of
from resflow_kernels.core.plan import Plan
from resflow_kernels.testing import WORKLOADS, assert_exact
from tests.support.cases import CALL, CANDIDATE, REQUEST, TowerCase
from tests.support.comparisons import same_bits
from tests.support.devices import Device
from tests.support.draws import fusion_weights, fusions, gpu_batches, gpu_plans, random_offsets, seeds


@given(
    plan=gpu_plans(),
    batch=gpu_batches,
    requests=st.integers(1, 9),
    fusion=fusions,
    per=st.sampled_from(WEIGHTS_PER),
    seed=seeds,
)
@example(
    plan=Plan(33, (20,), (-1, 0), precision="bfloat16"), batch=65, requests=1, fusion="additive", per="call", seed=3
)
def test_scores_are_exact(
    device: Device, plan: Plan, batch: int, requests: int, fusion: str, per: str, seed: int
) -> None:
    """However the input row is cut: at odd places, at its ends."""
    case = TowerCase(plan, batch, fusion, CALL, seed, ops=device)
    split = int(torch.randint(0, plan.in_features + 1, (), generator=case.generator))
    offsets = random_offsets(batch, requests, case.generator)
    user = torch.randn(requests, split, generator=case.generator)
    item = case.x[:, split:]
    rows = {CALL: None, REQUEST: requests, CANDIDATE: batch}[per]
    weights = fusion_weights(plan, fusion, rows, case.generator)
    got = device.request_scores(user, item, offsets, case.packed, plan, weights, fusion, per)
    doubles = [weight.double() for weight in case.weights]
    exact = reference.request_scores(
        user.double(), item.double(), offsets, doubles, plan, weights.double(), fusion, per
    )
    assert_exact(got, exact, weights, plan.precision)


@pytest.mark.parametrize("precision", precisions_of("cuda"))
@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_are_exact(device: Device, name: str, precision: str) -> None:
    plan, split = replace(WORKLOADS[name].plan, precision=precision), WORKLOADS[name].user_features
    for batch in (20,) if device.emulated else (1, 100, 3000, 40_000):
        case = TowerCase(plan, batch, ops=device)
        offsets = torch.tensor([0, batch // 3, batch // 3, batch])
        user = torch.randn(3, split, generator=case.generator)
        item = case.x[:, split:].contiguous()
        if precision in ("bfloat16", "float16"):  # the precision's own dtype: what Hopper's kernel takes
            user, item = (rows.to(getattr(torch, precision)) for rows in (user, item))
        got = device.request_scores(user, item, offsets, case.packed, plan, case.fusion_weights)
        doubles = [weight.double() for weight in case.weights]
        weights = case.fusion_weights
        exact = reference.request_scores(
            user.double(), item.double(), offsets, doubles, plan, weights.double(), "additive", "call"
        )
        assert_exact(got, exact, weights, precision)


@pytest.mark.parametrize("precision", precisions_of("cuda"))
def test_a_candidate_scores_the_same_in_any_request_and_alone(device: Device, precision: str) -> None:
    plan = Plan(24, (40, 8), (-1, 0, 1), precision=precision)
    case = TowerCase(plan, 50, ops=device)
    user, item = torch.randn(1, 10), case.x[:, 10:].contiguous()
    rest = (case.packed, plan, case.fusion_weights)
    whole = device.request_scores(user, item, torch.tensor([0, 50]), *rest)
    for cuts in ([0, 20, 50], [0, 0, 1, 49, 50, 50]):
        users = user.expand(len(cuts) - 1, 10).contiguous()
        assert same_bits(device.request_scores(users, item, torch.tensor(cuts), *rest), whole)
    alone = device.request_scores(user, item[31:32], torch.tensor([0, 1]), *rest)
    assert same_bits(alone, tuple(part[31:32] for part in whole))
