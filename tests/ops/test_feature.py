"""The feature form: the bits of pooling in plain PyTorch in front of the dense form, whatever the batch."""

from __future__ import annotations

import mmap
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from resflow_kernels import ops, reference
from resflow_kernels.contract import POOLING, TABLE_PRECISIONS
from resflow_kernels.core.plan import Plan
from resflow_kernels.ops import FeatureIds, FeatureTables
from resflow_kernels.testing import WORKLOADS, assert_exact, random_weights
from tests.support.cases import FeatureCase
from tests.support.comparisons import same_bits
from tests.support.devices import Device
from tests.support.draws import (
    batches_of,
    drawn,
    elements,
    fusion_weights,
    fusions,
    plans_up_to,
    random_offsets,
    seeds,
    weights_per,
)

pytestmark = pytest.mark.devices(form="feature")

SMALL = Plan(1, (20, 5), (-1, 0))

# Around the lane (16), and some that divide by nothing.
table_widths = st.one_of(st.integers(0, 20), st.sampled_from([31, 32, 33, 48, 100]))
kinds = st.sampled_from(["id", "id", *POOLING])
features_ = st.lists(st.tuples(table_widths, elements, kinds), min_size=1, max_size=6).filter(
    lambda all_: any(width for width, _, _ in all_)
)


def cases(device: Device) -> st.SearchStrategy[FeatureCase]:
    def make(plan: Plan, features: list[tuple[int, str, str]], batch: int, seed: int, weighted: bool) -> FeatureCase:
        widths, dtype, how = zip(*features, strict=True)
        ragged, pooling = [kind != "id" for kind in how], [kind for kind in how if kind != "id"]
        return FeatureCase(plan, widths, dtype, ragged, batch, seed, pooling, weighted, ops=device)

    return st.builds(make, plans_up_to(4)(device), features_, batches_of(device), seeds, st.booleans())


def settings_of(case: FeatureCase) -> tuple[Any, ...]:
    return case.packed, case.plan, case.fusion_weights


@drawn(case=cases, fusion=fusions)
def test_scores_are_those_of_pooled_rows(device: Device, case: FeatureCase, fusion: str) -> None:
    weights = fusion_weights(case.plan, fusion, len(case.ids.ids), case.generator)
    settings = (case.packed, case.plan, weights, fusion, "candidate")
    got = device.feature_scores(case.ids, case.tables, *settings, value_weights=case.value_weights())
    assert same_bits(got, device.dense_scores(case.pooled(), *settings))
    x, doubles = case.pooled(dtype=torch.float64), [weight.double() for weight in case.weights]
    exact = reference.dense_scores(x, doubles, case.plan, weights.double(), fusion, "candidate")
    assert_exact(got, exact, weights, case.plan.precision)


@pytest.mark.parametrize(
    ("widths", "dtype", "ragged", "batch"),
    [
        ([1], ["float32"], [False], 1),
        ([15, 17, 1], ["bfloat16", "int8", "int8"], [True, True, False], 100),
    ],
)
def test_narrow_tables(
    device: Device, widths: list[int], dtype: list[str], ragged: list[bool], batch: int, precision: str
) -> None:
    case = FeatureCase(replace(SMALL, precision=precision), widths, dtype, ragged, batch, 1, ops=device)
    assert same_bits(case.run(), device.dense_scores(case.pooled(), *settings_of(case)))


@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_of_width_32(device: Device, name: str, dtype: str) -> None:
    plan = WORKLOADS[name].plan
    count = plan.in_features // 32
    widths = [32] * count + ([plan.in_features % 32] if plan.in_features % 32 else [])
    ragged = [at % 5 == 4 for at in range(len(widths))]
    batch = 20 if device.slow else 5000 if device.place == "cuda" else 200
    case = FeatureCase(plan, widths, [dtype] * len(widths), ragged, batch, 0, ops=device)
    assert same_bits(case.run(), device.dense_scores(case.pooled(), *settings_of(case)))


@drawn(case=cases, requests=st.integers(0, 5), fusion=fusions, per=weights_per, k=st.sampled_from([1, 7, 100]))
def test_requests_have_the_bits_of_the_request_form(
    device: Device, case: FeatureCase, requests: int, fusion: str, per: str, k: int
) -> None:
    users = int(case.draw(len(case.rows) + 1))
    batch = len(case.ids.ids) if requests else 0
    user = case.random_ids(requests, range(users))
    item = case.random_ids(batch, range(users, len(case.rows)))
    offsets = random_offsets(batch, requests, case.generator)
    rows = {"call": None, "request": requests, "candidate": batch}[per]
    settings = (case.packed, case.plan, fusion_weights(case.plan, fusion, rows, case.generator), fusion, per)
    of_values = {"user_value_weights": case.value_weights(user), "item_value_weights": case.value_weights(item)}
    got = device.feature_request_scores(user, item, offsets, case.tables, users, *settings, **of_values)
    split = (case.part_rows(user, 0, users), case.part_rows(item, users, len(case.rows)), offsets)
    assert same_bits(got, device.request_scores(*split, *settings))
    best = device.feature_request_topk(user, item, offsets, case.tables, users, *settings, k, **of_values)
    assert same_bits(best, reference.topk(got.score, offsets, k))


@drawn(case=cases, requests=st.integers(1, 5), k=st.sampled_from([1, 5, 7, 100]))
def test_topk_is_that_of_the_scores(device: Device, case: FeatureCase, requests: int, k: int) -> None:
    offsets = random_offsets(len(case.ids.ids), requests, case.generator)
    weights = case.value_weights()
    got = device.feature_topk(case.ids, offsets, case.tables, *settings_of(case), k=k, value_weights=weights)
    assert same_bits(got, reference.topk(case.run().score, offsets, k))


@drawn(case=cases)
def test_batch_invariance(device: Device, case: FeatureCase) -> None:
    """The same bits shuffled, alone, and on any number of threads."""
    batch = len(case.ids.ids)
    if batch == 0:
        return
    whole = case.run()
    order = torch.randperm(batch, generator=case.generator)
    assert same_bits(case.run(case.some(order)), tuple(part[order] for part in whole))
    one = order[:1]
    assert same_bits(case.run(case.some(one)), tuple(part[one] for part in whole))
    if device.name in ("cpu", "numpy"):
        before = torch.get_num_threads()
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                assert same_bits(case.run(), whole)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
def test_nan_in_a_table_row_reaches_those_that_use_it(device: Device, dtype: str, precision: str) -> None:
    """Width 5: the row before the poisoned one is loaded together with its beginning."""
    plan = replace(SMALL, precision=precision)
    case = FeatureCase(plan, [5, 5, 3], [dtype] * 3, [False, True, False], 120, 3, ops=device)
    clean = case.run()
    for at in (0, 1):
        row = 2 % case.rows[at]
        tables, scales = [table.clone() for table in case.tables.tables], [one.clone() for one in case.tables.scales]
        if dtype == "int8":
            scales[at][row] = float("nan")
        else:
            tables[at][row, 1] = float("nan")
        (values, lengths), ids = case.by_feature(*case.ids[1:], 120)[0], case.ids.ids[:, 0]
        uses = ids == row if at == 0 else torch.tensor([bool((p == row).any()) for p in values.split(lengths.tolist())])
        got = device.feature_scores(case.ids, FeatureTables(tables, scales, case.tables.ragged), *settings_of(case))
        assert uses.any() and not uses.all()
        assert all(part[uses].isnan().all() for part in got)
        assert same_bits(tuple(part[~uses] for part in got), tuple(part[~uses] for part in clean))


def test_tables_and_ids_of_any_stride_are_read_in_place(device: Device) -> None:
    case = FeatureCase(SMALL, [5, 16, 7], ["float32", "bfloat16", "int8"], [False, True, False], 60, 4, ops=device)

    def spaced(table: Tensor) -> Tensor:
        wide = device.tensor(torch.full((len(table), table.shape[1] + 9), 77.0).to(table.dtype))
        wide[:, 4 : 4 + table.shape[1]] = table
        return wide[:, 4 : 4 + table.shape[1]]

    apart = case.tables._replace(tables=[spaced(table) for table in case.tables.tables])
    ids = case.ids._replace(ids=case.ids.ids.T.contiguous().T)
    assert ids.ids.stride() != case.ids.ids.stride()
    assert same_bits(device.feature_scores(ids, apart, *settings_of(case)), case.run())


def test_one_table_for_two_features(device: Device) -> None:
    case = FeatureCase(SMALL, [8], ["float32"], [False], 30, 5, ops=device)
    table, plan = case.tables.tables[0], replace(SMALL, in_features=16)
    settings = (device.pack_towers(random_weights(plan), plan), plan, torch.ones(2))
    ids = torch.cat((case.ids.ids, case.ids.ids.flip(0)), 1)
    got = device.feature_scores(ops.one_id_each(ids), FeatureTables([table, table]), *settings)
    assert same_bits(got, device.dense_scores(table[ids].flatten(1), *settings))


@pytest.mark.parametrize("requests", [0, 2])
def test_empty_batches_and_empty_tables(device: Device, requests: int) -> None:
    case = FeatureCase(SMALL, [4, 6], ["float32", "int8"], [False, True], 0, 6, ops=device)
    assert [tuple(part.shape) for part in case.run()] == [(0, 2), (0, 2), (0,)]
    offsets = torch.zeros(requests + 1, dtype=torch.int64)
    best = device.feature_topk(case.ids, offsets, case.tables, *settings_of(case), k=3)
    assert best.scores.shape == (requests, 3) and (best.positions == -1).all()
    nothing = FeatureTables([torch.zeros(0, 4), torch.zeros(0, 6)], (), (1,))
    assert device.feature_scores(case.ids, nothing, *settings_of(case)).score.shape == (0,)


def test_lists_without_ids_pool_to_zeros(device: Device) -> None:
    case = FeatureCase(SMALL, [4, 33], ["bfloat16", "float32"], [False, True], 9, 7, ops=device)
    empty = FeatureIds(case.ids.ids, torch.zeros(0, dtype=torch.int64), torch.zeros(10, dtype=torch.int64))
    x = torch.cat((case.tables.tables[0][case.ids.ids[:, 0]].float(), torch.zeros(9, 33)), 1)
    assert same_bits(case.run(empty), device.dense_scores(x, *settings_of(case)))


@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("mode", POOLING)
def test_lists_pool_as_pytorch_does(device: Device, mode: str, padding: int | None) -> None:
    """Of 40 lists some are empty, and some hold the padding alone."""
    generator = torch.Generator().manual_seed(9)
    table = torch.randn(7, 20, generator=generator)
    lengths = torch.randint(0, 5, (40,), generator=generator)
    values = torch.randint(0, 7, (int(lengths.sum()),), generator=generator)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    values[offsets[:-1][lengths == 1]] = 2
    bags = torch.nn.functional.embedding_bag(
        values, table, offsets, mode=mode, include_last_offset=True, padding_idx=padding
    )
    plan = replace(SMALL, in_features=20)
    settings = (device.pack_towers(random_weights(plan), plan), plan, torch.ones(2))
    ids = FeatureIds(torch.zeros(40, 0, dtype=torch.int64), values, offsets)
    tables = FeatureTables([table], (), (0,), (mode,), () if padding is None else (padding,))
    got, expected = device.feature_scores(ids, tables, *settings), device.dense_scores(bags, *settings)
    for own, other in zip(got, expected, strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-6)
    rows = reference.feature_rows(*ids, [table], (), (0,), [POOLING.index(mode)], tables.padding)
    torch.testing.assert_close(rows, bags, atol=1e-6, rtol=1e-6)


def test_weights_are_those_of_pytorch_and_of_the_mean(device: Device) -> None:
    generator = torch.Generator().manual_seed(10)
    table, values = torch.randn(7, 20, generator=generator), torch.tensor([0, 3, 3, 6, 1])
    weights, offsets = torch.tensor([0.5, 0.0, 2.0, 0.0, 0.0]), torch.tensor([0, 3, 3, 5])
    plan = replace(SMALL, in_features=20)
    settings = (device.pack_towers(random_weights(plan), plan), plan, torch.ones(2))
    ids = FeatureIds(torch.zeros(3, 0, dtype=torch.int64), values, offsets)
    bags = torch.nn.functional.embedding_bag(
        values, table, offsets, mode="sum", include_last_offset=True, per_sample_weights=weights
    )
    for mode, rows in (("sum", bags), ("mean", bags / torch.tensor([[2.5], [1.0], [1.0]]))):
        tables = FeatureTables([table], (), (0,), (mode,))
        got = device.feature_scores(ids, tables, *settings, value_weights=weights)
        for own, other in zip(got, device.dense_scores(rows, *settings), strict=True):
            torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-6)


def test_a_table_beyond_two_to_the_31_bytes(device: Device) -> None:
    """Rows 5 GB apart in a sparse mapping of which only the read pages exist."""
    if device.place != "cpu":
        pytest.skip("a GPU's memory has no pages that do not exist")
    stride = 1_300_000_000
    memory = mmap.mmap(-1, (2 * stride + 5) * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    flat = torch.frombuffer(memory, dtype=torch.float32, count=2 * stride + 5)
    table, small = flat.as_strided((3, 5), (stride, 1)), torch.randn(3, 5)
    table.copy_(small)
    plan = replace(SMALL, in_features=5)
    settings, ids = (device.pack_towers(random_weights(plan), plan), plan, torch.ones(2)), torch.tensor([[2], [0], [1]])
    far, near = (device.feature_scores(ops.one_id_each(ids), FeatureTables([t]), *settings) for t in (table, small))
    assert same_bits(far, near)


@pytest.mark.devices(raises=True)
@pytest.mark.parametrize("bad", [-1, 7, 2**40, -(2**63)])
def test_ids_out_of_range_are_named_with_their_place(device: Device, bad: int) -> None:
    plan = replace(SMALL, in_features=9)
    settings = (device.pack_towers(random_weights(plan), plan), plan, torch.ones(2))
    tables = FeatureTables([torch.zeros(9, 2), torch.zeros(7, 3), torch.zeros(7, 4)], (), (1,))
    good = FeatureIds(torch.tensor([[1, 2], [8, 6]]), torch.tensor([0, 6, 3]), torch.tensor([0, 1, 3]))
    assert device.feature_scores(good, tables, *settings).score.shape == (2,)
    ids, values = good.ids.clone(), good.values.clone()
    ids[1, 1] = values[2] = bad
    user = ops.one_id_each(torch.tensor([[0]]))
    # The items' own ids have the columns of the item features alone.
    for wrong, at in ((good._replace(ids=ids), r"tables\[2\]"), (good._replace(values=values), r"tables\[1\]")):
        place = r"ids\[1, 1\]" if at == r"tables\[2\]" else r"values\[2\]"
        with pytest.raises(ValueError, match=f"^feature_scores: {place} must be a row of {at}, 0 to 6, got {bad}$"):
            device.feature_scores(wrong, tables, *settings)
        item, place = wrong._replace(ids=wrong.ids[:, 1:]), place.replace("1, 1", "1, 0")
        text = f"^feature_request_topk: item_{place} must be a row of {at}, 0 to 6, got {bad}$"
        with pytest.raises(ValueError, match=text):
            device.feature_request_topk(user, item, torch.tensor([0, 2]), tables, 1, *settings)
