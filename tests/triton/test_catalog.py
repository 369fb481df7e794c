"""The catalogue form on Triton's kernels: its table, and scores by id."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resflow_kernels import ops, reference
from resflow_kernels.contract import TABLE_PRECISIONS as ELEMENTS
from resflow_kernels.contract import WEIGHTS_PER
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


@settings(max_examples=6)
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
def test_workloads_are_exact(device: Device, dtype: str) -> None:
    workload = WORKLOADS["prerank3"]
    for precision in ("float32", "bfloat16"):
        plan = replace(workload.plan, precision=precision)
        case = TowerCase(plan, 0, ops=device)
        items = torch.randn(20, plan.in_features - workload.user_features, generator=case.generator)
        table, scales = device.catalog_rows(items, case.packed, plan, dtype)
        user = torch.randn(2, workload.user_features, generator=case.generator)
        batch = 20 if device.emulated else 20_000
        ids = torch.randint(0, 20, (batch,), generator=case.generator)
        offsets, weights = torch.tensor([0, batch // 4, batch]), case.fusion_weights
        got = device.catalog_scores(user, ids, offsets, table, scales, case.packed, plan, weights)
        doubles = [weight.double() for weight in case.weights]
        rows = held(table, scales, plan)[ids]
        exact = reference.catalog_scores(
            user.double(), rows, offsets, doubles, plan, weights.double(), "additive", "call"
        )
        assert_exact(got, exact, weights, precision)


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_a_table_of_the_cpu_scores_alike(device: Device, dtype: str) -> None:
    """Tables move between devices: their layout is the same, and values are near."""
    case = TowerCase(Plan(20, (33, 5), (-1, 0)), 0, ops=device)
    table, scales = ops.catalog_rows(torch.randn(11, 12), case.packed, case.plan, dtype)
    user, ids, offsets = torch.randn(1, 8), torch.arange(11), torch.tensor([0, 11])
    arguments = (user, ids, offsets, table, scales, case.packed, case.plan, case.fusion_weights)
    here, there = ops.catalog_scores(*arguments, backend="cpu"), device.catalog_scores(*arguments)
    assert_exact(there, type(here)(*(part.double() for part in here)), case.fusion_weights)


def test_ids_out_of_range_score_nan_alone(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    case = TowerCase(Plan(6, (5,), (-1, 0)), 0, ops=device)
    for dtype in ELEMENTS:
        table, scales = device.catalog_rows(torch.randn(9, 4), case.packed, case.plan, dtype)
        rest = (table, scales, case.packed, case.plan, torch.ones(2))
        good = device.catalog_scores(torch.ones(1, 2), torch.tensor([0, 8, 3]), torch.tensor([0, 3]), *rest)
        for bad in (-1, 9, 2**40):
            arguments = (torch.ones(1, 2), torch.tensor([0, 8, bad, 3]), torch.tensor([0, 4]), *rest)
            got = device.catalog_scores(*arguments)
            assert all(part[2].isnan().all() for part in got)
            assert same_bits(tuple(part[[0, 1, 3]] for part in got), good)
    monkeypatch.setenv("RESFLOW_CHECK_IDS", "1")
    with pytest.raises(ValueError, match=rf"catalog_scores: ids\[2\] must be rows of the table, 0 to 8, got {2**40}"):
        device.catalog_scores(*arguments)


def test_int8_rows_that_are_not_finite(device: Device) -> None:
    """Such an item scores NaN, its neighbours as before."""
    case = TowerCase(Plan(6, (5,), (-1, 0)), 0, ops=device)
    items = torch.randn(4, 4)
    items[1, 0], items[2] = float("inf"), 0.0
    table, scales = device.catalog_rows(items, case.packed, case.plan, "int8")
    expected, expected_scales = ops.catalog_rows(items, case.packed, case.plan, "int8", backend="cpu")
    assert scales[1].isnan() and expected_scales[1].isnan()
    assert (table.int() - expected.int()).abs().max() <= 1 and table[2].eq(0).all()


def test_catalogues_beyond_one_turn_of_products(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    from resflow_kernels.triton import scoring

    case = TowerCase(Plan(7, (20, 8), (-1, 0, 1)), 0, ops=device)
    items = torch.randn(40, 4)
    for dtype in ELEMENTS:
        whole = device.catalog_rows(items, case.packed, case.plan, dtype)
        with monkeypatch.context() as patch:
            patch.setattr(scoring, "_PRODUCT_BYTES", 4 * case.plan.table_width * 7)
            assert same_bits(device.catalog_rows(items, case.packed, case.plan, dtype), whole)
