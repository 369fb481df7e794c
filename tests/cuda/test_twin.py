"""The twin tower form on a GPU's kernels against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from resflow_kernels import ops, reference
from resflow_kernels.contract import TABLE_PRECISIONS as ELEMENTS
from resflow_kernels.contract import WEIGHTS_PER
from resflow_kernels.reference import twin
from resflow_kernels.testing import assert_exact
from tests.support.cases import BUDGET, CALL, CANDIDATE, REQUEST, TwinCase
from tests.support.comparisons import same_bits
from tests.support.devices import Device
from tests.support.draws import elements, fusions, random_offsets, seeds

tasks_of = st.one_of(st.integers(1, 4), st.just(9))
widths = st.one_of(st.integers(1, 20), st.sampled_from([31, 64, 65, 128]))
counts = st.one_of(st.integers(0, 20), st.sampled_from([33, 64, 65, 130]))


@given(
    tasks=tasks_of,
    width=widths,
    items=counts,
    requests=st.integers(0, 9),
    dtype=elements,
    fusion=fusions,
    per=st.sampled_from(WEIGHTS_PER),
    non_increasing=st.booleans(),
    seed=seeds,
)
@example(1, 1, 1, 1, "int8", "additive", CALL, False, 0)
@example(16, 130, 70, 9, "int8", "expected_value", CANDIDATE, True, 1)
@example(3, 64, 130, 2, "bfloat16", "multiplicative", REQUEST, False, 2)
def test_scores_are_exact(
    device: Device,
    tasks: int,
    width: int,
    items: int,
    requests: int,
    dtype: str,
    fusion: str,
    per: str,
    non_increasing: bool,
    seed: int,
) -> None:
    case = TwinCase(tasks, width, items, requests, dtype, fusion, per, seed, non_increasing, ops=device)
    weights = case.weights(items)
    arguments = (case.user.double(), case.table, case.scales, weights.double(), *case.settings)
    assert_exact(case.all(), twin.twin_scores(*arguments), weights, BUDGET[dtype])

    weights = case.weights(case.candidates)
    inputs = (case.user.double(), case.ids, case.offsets, case.table, case.scales)
    exact = twin.twin_ids_scores(*inputs, weights.double(), *case.settings)
    assert_exact(case.listed(), exact, weights, BUDGET[dtype])


@given(tasks=tasks_of, width=widths, items=counts, dtype=elements, seed=seeds)
def test_tables_are_the_cpus(device: Device, tasks: int, width: int, items: int, dtype: str, seed: int) -> None:
    """Rounding is defined to the bit, so a table may be built on either device."""
    case = TwinCase(tasks, width, items, 1, dtype, seed=seed, ops=device)
    for vectors in (case.vectors, case.vectors.bfloat16()):
        assert same_bits(device.twin_rows(vectors, tasks, dtype), ops.twin_rows(vectors, tasks, dtype))


@given(
    tasks=st.integers(1, 4),
    width=st.integers(1, 40),
    items=counts,
    requests=st.integers(0, 9),
    dtype=elements,
    k=st.sampled_from([1, 7, 100]),
    seed=seeds,
)
def test_topk_is_that_of_the_scores(
    device: Device, tasks: int, width: int, items: int, requests: int, dtype: str, k: int, seed: int
) -> None:
    case = TwinCase(tasks, width, items, requests, dtype, seed=seed, ops=device)
    if items:  # equal scores
        case.table[torch.randint(0, items, (items // 2,), generator=case.generator)] = case.table[0].clone()
        if dtype == "int8":
            case.scales[:] = case.scales[:1]
    weights = case.weights(items)
    offsets = torch.arange(requests + 1) * items
    best = device.twin_topk(case.user, case.table, case.scales, weights, *case.settings, k)
    assert same_bits(best, reference.topk(case.all().score, offsets, k))
    inputs = (case.user, case.ids, case.offsets, case.table, case.scales)
    best = device.twin_ids_topk(*inputs, weights, *case.settings, k)
    assert same_bits(best, reference.topk(case.listed().score, case.offsets, k))


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("width", [16, 67])
def test_an_item_scores_the_same_in_any_company(device: Device, width: int, dtype: str) -> None:
    case = TwinCase(3, width, 90, 5, dtype, ops=device)
    whole, settings = case.all(), case.settings
    some = torch.randperm(90, generator=case.generator)[:37]
    scales = case.scales[some] if dtype == "int8" else case.scales
    part = device.twin_scores(case.user[2:3], case.table[some], scales, case.weights(90), *settings)
    assert same_bits(part, tuple(of[2 * 90 + some] for of in whole))
    offsets = random_offsets(5 * 90, 5, case.generator)
    ids = torch.arange(90).repeat(5)
    listed = device.twin_ids_scores(case.user, ids, offsets, case.table, case.scales, case.weights(90), *settings)
    owner = reference.request_of_candidates(offsets, 450)
    assert same_bits(listed, tuple(of[owner * 90 + ids] for of in whole))


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_nan_stays_with_its_item_and_its_user(device: Device, dtype: str) -> None:
    case = TwinCase(2, 20, 40, 3, dtype, ops=device)
    clean = case.all()
    user = case.user.clone()
    user[1, 3] = float("nan")
    got = device.twin_scores(user, case.table, case.scales, case.weights(40), *case.settings)
    others = torch.arange(120) // 40 != 1
    assert same_bits(tuple(part[others] for part in got), tuple(part[others] for part in clean))
    assert got.score[~others].isnan().all()
    vectors = case.vectors.clone()
    vectors[7, 0] = float("nan")
    table, scales = device.twin_rows(vectors, 2, dtype)
    got = device.twin_scores(case.user, table, scales, case.weights(40), *case.settings)
    others = torch.arange(120) % 40 != 7
    assert same_bits(tuple(part[others] for part in got), tuple(part[others] for part in clean))
    assert got.score[~others].isnan().all()


@pytest.mark.parametrize("requests", [0, 2])
@pytest.mark.parametrize("items", [0, 3])
def test_empty_inputs(device: Device, items: int, requests: int) -> None:
    case = TwinCase(2, 5, items, requests, ops=device)
    assert case.all().logits.shape == (items * requests, 2)
    best = device.twin_topk(case.user, case.table, case.scales, case.weights(items), *case.settings, 4)
    assert best.scores.shape == (requests, 4)
    assert int((best.positions == -1).sum()) == requests * (4 - items)


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_a_large_table(device: Device, dtype: str) -> None:
    if device.emulated:
        pytest.skip("emulated: takes minutes")
    case = TwinCase(3, 64, 200_000, 5, dtype, ops=device)
    weights = case.weights(200_000)
    best = device.twin_topk(case.user, case.table, case.scales, weights, *case.settings, 100)
    assert same_bits(best, reference.topk(case.all().score, torch.arange(6) * 200_000, 100))
