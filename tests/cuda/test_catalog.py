"""The catalogue form on a GPU's kernels: its table, and scores by id."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from resflow_kernels import ops, reference
from resflow_kernels.contract import TABLE_PRECISIONS as ELEMENTS
from resflow_kernels.contract import WEIGHTS_PER
from resflow_kernels.core.checks import precisions_of
from resflow_kernels.core.plan import Plan
from resflow_kernels.testing import WORKLOADS, assert_exact
from tests.support.cases import CALL, CANDIDATE, REQUEST, TowerCase
from tests.support.comparisons import same_bits
from tests.support.devices import Device
from tests.support.draws import fusion_weights, fusions, gpu_batches, gpu_plans, random_offsets, seeds


def held(table: Tensor, scales: Tensor, plan: Plan) -> Tensor:
    """What a table stands for, ``[M, K, H_1]``."""
    values = table.double() * (scales.double()[:, None] if table.dtype == torch.int8 else 1.0)
    return values.reshape(len(table), plan.tasks, -1)[..., : plan.hidden[0]]


@given(
    plan=gpu_plans(),
    batch=gpu_batches,
    requests=st.integers(1, 5),
    dtype=st.sampled_from(ELEMENTS),
    fusion=fusions,
    per=st.sampled_from(WEIGHTS_PER),
    seed=seeds,
)
def test_scores_are_exact(
    device: Device, plan: Plan, batch: int, requests: int, dtype: str, fusion: str, per: str, seed: int
) -> None:
    case = TowerCase(plan, 0, fusion, CALL, seed, ops=device)
    split = int(torch.randint(0, plan.in_features + 1, (), generator=case.generator))
    items = torch.randn(30, plan.in_features - split, generator=case.generator)
    user = torch.randn(requests, split, generator=case.generator)
    ids = torch.randint(0, 30, (batch,), generator=case.generator)
    offsets = random_offsets(batch, requests, case.generator)
    rows = {CALL: None, REQUEST: requests, CANDIDATE: batch}[per]
    weights = fusion_weights(plan, fusion, rows, case.generator)
    table, scales = device.catalog_rows(items, case.packed, plan, dtype)

    doubles = [weight.double() for weight in case.weights]
    products = reference.catalog_rows(items.double(), doubles, plan)
    values = held(table, scales, plan)
    step = {"float32": 1e-5, "bfloat16": 2**-8, "int8": 1 / 120}[dtype]
    largest = products.abs().amax((1, 2), keepdim=True)
    assert ((values - products).abs() <= step * (largest + 1)).all()

    arguments = (user, ids, offsets, table, scales, case.packed, plan, weights, fusion, per)
    got = device.catalog_scores(*arguments)
    exact = reference.catalog_scores(user.double(), values[ids], offsets, doubles, plan, weights.double(), fusion, per)
    assert_exact(got, exact, weights, plan.precision)
    assert same_bits(device.catalog_topk(*arguments, 7), reference.topk(got.score, offsets, 7))


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_are_exact(device: Device, name: str, dtype: str) -> None:
    workload = WORKLOADS[name]
    for precision in ("float32", "bfloat16") if device.emulated else precisions_of("cuda"):
        plan = replace(workload.plan, precision=precision)
        case = TowerCase(plan, 0, ops=device)
        items = torch.randn(40, plan.in_features - workload.user_features, generator=case.generator)
        table, scales = device.catalog_rows(items, case.packed, plan, dtype)
        user = torch.randn(2, workload.user_features, generator=case.generator)
        batch = 20 if device.emulated else 20_000
        ids = torch.randint(0, 40, (batch,), generator=case.generator)
        offsets, weights = torch.tensor([0, batch // 4, batch]), case.fusion_weights
        got = device.catalog_scores(user, ids, offsets, table, scales, case.packed, plan, weights)
        doubles = [weight.double() for weight in case.weights]
        rows = held(table, scales, plan)[ids]
        exact = reference.catalog_scores(
            user.double(), rows, offsets, doubles, plan, weights.double(), "additive", "call"
        )
        assert_exact(got, exact, weights, precision)


def test_a_table_of_the_cpu_scores_alike(device: Device) -> None:
    """Tables move between devices: their layout is the same, and so are the values to a step of the dtype."""
    case = TowerCase(Plan(20, (33, 5), (-1, 0)), 0, ops=device)
    items = torch.randn(11, 12)
    for dtype in ELEMENTS:
        table, scales = ops.catalog_rows(items, case.packed, case.plan, dtype)
        own, own_scales = device.catalog_rows(items, case.packed, case.plan, dtype)
        assert own.shape == table.shape and own.dtype == table.dtype
        torch.testing.assert_close(own_scales, scales, rtol=1e-5, atol=0)
        assert (own.float() - table.float()).abs().max() <= {"float32": 1e-5, "bfloat16": 2e-2, "int8": 1}[dtype]
        user, ids, offsets = torch.randn(1, 8), torch.arange(11), torch.tensor([0, 11])
        arguments = (user, ids, offsets, table, scales, case.packed, case.plan, case.fusion_weights)
        here, there = ops.catalog_scores(*arguments), device.catalog_scores(*arguments)
        assert_exact(there, type(here)(*(part.double() for part in here)), case.fusion_weights)


def test_catalogues_beyond_one_turn_of_products(device: Device) -> None:
    """Items are multiplied 64 MiB of float32 products at a time."""
    if device.emulated:
        pytest.skip("emulated: takes minutes")
    plan = Plan(20, (128, 8), (-1, 0, 1))
    case = TowerCase(plan, 0, ops=device)
    items = torch.randn(100_000, 12)
    table, _ = device.catalog_rows(items, case.packed, plan, "float32")
    some = torch.tensor([0, 43_689, 43_690, 43_691, 87_381, 99_999])
    assert same_bits((table[some],), device.catalog_rows(items[some], case.packed, plan, "float32")[:1])
