"""What is promised of scores, on a GPU's kernels: the same bits in any batch, NaN that stays, no crash on bad data."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resflow_kernels import ops
from resflow_kernels.contract import ACTIVATIONS, FUSIONS
from resflow_kernels.core.checks import precisions_of
from resflow_kernels.core.plan import Plan, chain
from resflow_kernels.testing import WORKLOADS
from tests.support.cases import CANDIDATE, FeatureCase, TowerCase
from tests.support.comparisons import same_bits
from tests.support.devices import Device
from tests.support.draws import fusions, gpu_plans, seeds

PRECISIONS = precisions_of("cuda")
NAN = float("nan")


@given(plan=gpu_plans(), batch=st.integers(1, 70), fusion=fusions, seed=seeds)
def test_batch_invariance(device: Device, plan: Plan, batch: int, fusion: str, seed: int) -> None:
    """The same bits shuffled, alone, and in pieces."""
    case = TowerCase(plan, batch, fusion, seed=seed, ops=device)
    whole = case.run()
    order = torch.randperm(batch, generator=case.generator)
    assert same_bits(case.run(case.x[order]), tuple(part[order] for part in whole))
    cut = int(order[0])
    pieces = [case.run(case.x[:cut]), case.run(case.x[cut:])]
    assert same_bits(tuple(torch.cat(parts) for parts in zip(*pieces, strict=True)), whole)
    assert same_bits(case.run(case.x[cut : cut + 1]), tuple(part[cut : cut + 1] for part in whole))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_small_and_large_batches_have_the_same_bits(device: Device, name: str, precision: str) -> None:
    """Batches small enough are spread over the GPU by another kernel than large ones; its sums must be the same."""
    plan = replace(WORKLOADS[name].plan, precision=precision)
    if device.emulated:  # the narrow network has the same panels, in a tenth of the time
        plan = replace(plan, in_features=70, hidden=(*(80 for _ in plan.hidden[1:]), 40))
    large = 5000 if device.emulated else 40_000
    case = TowerCase(plan, large, ops=device)
    whole = case.run()
    for first, count in ((0, 1), (7, 15), (100, 16), (40, 17), (11, 300), (0, 1000)):
        some = slice(first, first + count)
        assert same_bits(case.run(case.x[some]), tuple(part[some] for part in whole)), f"{count} rows"


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_batch_invariance_of_16_bit_rows(device: Device, precision: str) -> None:
    """Of the paper's widths, in tiles of 128 on Hopper; NaN stays with its candidate there too."""
    plan = Plan(72, (128, 64), chain(3), affine=True, precision=precision)
    batch = 300 if device.emulated else 40_000
    case = TowerCase(plan, batch, ops=device)
    x = case.x.to(getattr(torch, precision))
    whole = case.run(x)
    for first, count in ((0, 1), (7, 15), (100, 17), (127, 130), (1, 257)):
        some = slice(first, first + count)
        assert same_bits(case.run(x[some]), tuple(part[some] for part in whole)), f"{count} rows"
    order = torch.randperm(batch, generator=case.generator)
    assert same_bits(case.run(x[order]), tuple(part[order] for part in whole))
    for poison in (NAN, float("inf")):
        poisoned = x.clone()
        poisoned[130, 3] = poison
        got, others = case.run(poisoned), torch.arange(batch) != 130
        assert same_bits(tuple(part[others] for part in got), tuple(part[others] for part in whole))
        assert poison == poison or all(part[130].isnan().all() for part in got)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_isolation(device: Device, activation: str, precision: str) -> None:
    """A poisoned candidate leaves its neighbours' bits alone, and a NaN reaches all its own outputs."""
    for head in ("residual", "conditional"):
        switches = {"logit_residual": head == "residual", "non_increasing": head == "residual"}
        plan = Plan(7, (20, 5), (-1, 0, 1), activation, affine=True, head=head, precision=precision, **switches)
        for fusion in FUSIONS:
            case = TowerCase(plan, 20, fusion, ops=device)
            clean, others = case.run(), torch.arange(20) != 17
            for poison in (NAN, float("inf"), float("-inf")):
                poisoned = case.x.clone()
                poisoned[17, 3] = poison
                got = case.run(poisoned)
                assert same_bits(tuple(part[others] for part in got), tuple(part[others] for part in clean))
                assert poison == poison or all(part[17].isnan().all() for part in got)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_nan_in_fusion_weights_reaches_the_score_alone(device: Device, fusion: str) -> None:
    case = TowerCase(Plan(6, (8,), (-1, 0)), 30, fusion, CANDIDATE, ops=device)
    clean = case.run()
    case.fusion_weights[4, 1] = NAN
    got = case.run()
    others = torch.arange(30) != 4
    assert got.score[4].isnan() and same_bits(got[:2], clean[:2])
    assert same_bits((got.score[others],), (clean.score[others],))


def test_rows_of_any_stride_and_place_are_read_in_place(device: Device) -> None:
    """Rows between NaN, at odd places in memory, every other one, and one row many times."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        case = TowerCase(Plan(32, (17,), (-1, 0)), 40, ops=device)
        x = case.x.to(dtype)
        expected = case.run(x)
        for place in (0, 1, 2, 5):
            wide = torch.full((40, 50), NAN, dtype=dtype)
            wide[:, place : place + 32] = x
            there = device.tensor(wide)
            assert same_bits(case.run(there[:, place : place + 32]), expected)
            assert same_bits(case.run(there[::2, place : place + 32]), tuple(part[::2] for part in expected))
        repeated = device.tensor(x[3]).expand(10, 32)
        assert same_bits(case.run(repeated), tuple(part[3:4].expand(10, *part.shape[1:]) for part in expected))


@pytest.mark.parametrize("requests", [0, 1, 3])
def test_empty_batches(device: Device, requests: int) -> None:
    case = TowerCase(Plan(5, (4,), (-1, 0)), 0, ops=device)
    assert [tuple(part.shape) for part in case.run()] == [(0, 2), (0, 2), (0,)]
    offsets = torch.zeros(requests + 1, dtype=torch.int64)
    user, item, ids = torch.randn(requests, 2), torch.randn(0, 3), torch.zeros(0, dtype=torch.int64)
    rest = (case.packed, case.plan, case.fusion_weights)
    assert device.request_scores(user, item, offsets, *rest).logits.shape == (0, 2)
    best = device.request_topk(user, item, offsets, *rest, k=4)
    assert best.scores.shape == (requests, 4) and best.scores.isnan().all() and (best.positions == -1).all()
    table, scales = device.catalog_rows(item, case.packed, case.plan, "int8")
    assert table.shape == (0, case.plan.table_width)
    assert device.catalog_scores(user, ids, offsets, table, scales, *rest).score.shape == (0,)


BAD_OFFSETS = ([0, 5, 3, 9], [1, 2, 3, 9], [0, 3, 6, 8], [0, 3, 6, 10], [0, -5, 2**40, 9], [-(2**62)] * 4, [2**62] * 4)


@pytest.mark.parametrize("values", BAD_OFFSETS)
def test_offsets_that_make_no_sense_never_crash(device: Device, values: list[int]) -> None:
    """What lies in no request, or in two, scores something or NaN; shapes and other calls are as ever."""
    plan = Plan(6, (5,), (-1, 0))
    case = TowerCase(plan, 9, ops=device)
    offsets, user = torch.tensor(values), torch.randn(3, 2)
    item, ids = case.x[:, 2:].contiguous(), torch.arange(9) % 4
    rest = (case.packed, plan, case.fusion_weights)
    table = device.catalog_rows(torch.randn(4, 4), case.packed, plan, "float32")
    assert device.request_scores(user, item, offsets, *rest).logits.shape == (9, 2)
    assert device.catalog_scores(user, ids, offsets, *table, *rest).logits.shape == (9, 2)
    for best in (
        device.dense_topk(case.x, offsets, *rest, k=4),
        device.request_topk(user, item, offsets, *rest, k=4),
        device.catalog_topk(user, ids, offsets, *table, *rest, k=4),
    ):
        assert best.positions.shape == (3, 4) and (best.positions >= -1).all() and (best.positions < 9).all()
    weights = torch.rand(3, 2)
    assert device.request_scores(
        user, item, offsets, case.packed, plan, weights, "additive", "request"
    ).score.shape == (9,)
    assert not device.dense_scores(case.x, *rest).score.isnan().any()


@pytest.mark.parametrize("bad", [-1, 4, 2**40, -(2**63)])
def test_an_id_that_is_no_row_scores_nan_alone(device: Device, bad: int) -> None:
    plan = Plan(6, (5,), (-1, 0))
    case = TowerCase(plan, 0, ops=device)
    items, user, offsets = torch.randn(4, 4), torch.randn(1, 2), torch.tensor([0, 9])
    rest = (case.packed, plan, case.fusion_weights)
    ids = torch.arange(9) % 4
    wrong = ids.clone()
    wrong[5] = bad
    others = torch.arange(9) != 5
    for dtype in ("float32", "bfloat16", "int8"):
        table = device.catalog_rows(items, case.packed, plan, dtype)
        good = device.catalog_scores(user, ids, offsets, *table, *rest)
        got = device.catalog_scores(user, wrong, offsets, *table, *rest)
        assert all(part[5].isnan().all() for part in got)
        assert same_bits(tuple(part[others] for part in got), tuple(part[others] for part in good))
        best = device.catalog_topk(user, wrong, offsets, *table, *rest, k=9)
        assert best.positions[0, -1] == 5 and best.scores[0, -1].isnan()

        rows, scales = device.twin_rows(torch.randn(4, 6), 2, dtype)
        vectors, parents = torch.randn(1, 6), [-1, 0]
        good = device.twin_ids_scores(vectors, ids, offsets, rows, scales, torch.ones(2), parents)
        got = device.twin_ids_scores(vectors, wrong, offsets, rows, scales, torch.ones(2), parents)
        assert all(part[5].isnan().all() for part in got)
        assert same_bits(tuple(part[others] for part in got), tuple(part[others] for part in good))


@pytest.mark.parametrize("bad", [-1, 1000, 2**40, -(2**63)])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_feature_id_that_is_no_row_scores_nan_alone(device: Device, bad: int, ragged: bool) -> None:
    case = FeatureCase(Plan(1, (20, 5), (-1, 0)), [9, 4], ["float32", "int8"], [ragged, False], 12, 3, ops=device)
    good, (ids, values, offsets) = case.run(), case.ids
    owner = 5
    if ragged:
        lists = offsets[: 12 + 1].diff()
        owner = int(lists.argmax())
        values = values.clone()
        values[offsets[owner]] = bad
    else:
        ids = ids.clone()
        ids[owner, 0] = bad
    got = case.run(ops.FeatureIds(ids, values, offsets))
    others = torch.arange(12) != owner
    assert all(part[owner].isnan().all() for part in got)
    assert same_bits(tuple(part[others] for part in got), tuple(part[others] for part in good))


def test_weights_packed_for_another_plan_score_nan(device: Device) -> None:
    plan, other = Plan(6, (5, 4), (-1, 0), affine=True), Plan(6, (5, 4), (-1, -1), affine=True)
    case = TowerCase(plan, 20, ops=device)
    assert other.packed_bytes == plan.packed_bytes
    rest = (case.packed, other, case.fusion_weights)
    assert all(part.isnan().all() for part in device.dense_scores(case.x, *rest))
    table, _ = device.catalog_rows(case.x, case.packed, other, "float32")
    assert table[:, :5].isnan().all()
    with pytest.raises(ValueError, match=r"packed must be the .* bytes of weights packed for this plan"):
        device.dense_scores(case.x, case.packed[:-64], plan, case.fusion_weights)


@pytest.mark.parametrize("place", [1, 8])
def test_weights_at_an_odd_address_are_refused(device: Device, place: int) -> None:
    plan = Plan(6, (5,), (-1, 0))
    packed = device.tensor(torch.cat((torch.zeros(place, dtype=torch.uint8), TowerCase(plan, 0, ops=device).packed)))
    for op, call in {
        "dense_scores": lambda odd: device.dense_scores(torch.zeros(3, 6), odd, plan, torch.ones(2)),
        "catalog_rows": lambda odd: device.catalog_rows(torch.zeros(3, 4), odd, plan, "float32"),
    }.items():
        with pytest.raises(ValueError, match=f"{op}: packed must be at an address that 16 divides"):
            call(packed[place:])


CHECKED = """
import sys, torch
from resflow_kernels import ops
from resflow_kernels.core.plan import Plan
from resflow_kernels.testing import random_weights
from tests.support.devices import Device
device, plan = Device(sys.argv[1]), Plan(6, (5, 4), (-1, 0), affine=True)
packed = ops.pack_towers(random_weights(plan), plan)
x, user, item, ids = torch.randn(9, 6), torch.randn(1, 2), torch.randn(9, 4), torch.arange(9) % 4
weights, offsets = torch.ones(2), torch.tensor([0, 9])
table = device.catalog_rows(torch.randn(4, 4), packed, plan, "float32")
other = Plan(6, (5, 4), (-1, -1), affine=True)
features = ops.FeatureTables([torch.randn(3, 6)])
wrong = torch.where(ids == 3, 4, ids)
for name, arguments in {
    "dense_scores": (x, packed, other, weights),
    "request_scores": (user, item, offsets - 1, packed, plan, weights),
    "request_topk": (user, item, torch.tensor([0, 8]), packed, plan, weights),
    "catalog_scores": (user, wrong, offsets, *table, packed, plan, weights),
    "feature_scores": (ops.one_id_each(ids[:, None]), features, packed, plan, weights),
    "twin_ids_scores": (user, wrong, offsets, torch.randn(4, 2), torch.zeros(0, 2), weights, [-1, 0]),
}.items():
    for where in (device, ops):
        try:
            getattr(where, name)(*arguments)
        except ValueError as error:
            print(error)
        else:
            print(name, "raised nothing")
"""


def test_values_are_checked_where_that_is_asked_for(device: Device) -> None:
    """The words of the CPU's ops."""
    result = subprocess.run(
        [sys.executable, "-c", CHECKED, device.name],
        capture_output=True,
        text=True,
        env={**os.environ, "RESFLOW_CHECK_IDS": "1"},
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 12, result.stderr
    assert lines[::2] == lines[1::2] and not any("nothing" in line for line in lines), result.stdout


def test_bad_input_is_named_in_the_cpus_words(device: Device) -> None:
    plan = Plan(6, (5,), (-1, 0))
    packed = ops.pack_towers(TowerCase(plan, 0, ops=device).weights, plan)
    good = {"x": torch.zeros(3, 6), "packed": packed, "plan": plan, "fusion_weights": torch.ones(2)}
    int8 = replace(plan, precision="int8")
    for change, text in {
        ("x", torch.zeros(3, 5)): "x must be a matrix with 6 columns, got [3, 5]",
        ("x", torch.zeros(3, 6).double()): "x must be float32, bfloat16 or float16, got float64",
        ("fusion_weights", torch.ones(3)): "fusion_weights must be a vector of 2, got [3]",
        ("fusion", "sum"): "fusion must be one of additive, multiplicative, expected_value, got 'sum'",
        ("plan", int8): "plan precision must be one of float32, bfloat16, float16, tensorfloat32 on a GPU, got int8",
    }.items():
        with pytest.raises(ValueError) as raised:
            device.dense_scores(**(good | dict([change])))
        assert str(raised.value) == f"dense_scores: {text}"


def test_a_chain_of_the_most_tasks_keeps_its_bits(device: Device) -> None:
    case = TowerCase(Plan(9, (16, 8), chain(64)), 35, ops=device)
    whole = case.run()
    assert same_bits(case.run(case.x[30:31]), tuple(part[30:31] for part in whole))
