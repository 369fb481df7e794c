"""The feature form against pooling in plain PyTorch and the dense op, and the guarantees about batches, NaN and ids."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from resflow_kernels import ops, reference
from resflow_kernels.contract import PRECISIONS, TABLE_PRECISIONS, WEIGHTS_PER
from resflow_kernels.core.plan import Plan
from resflow_kernels.ops import FeatureIds, FeatureTables
from resflow_kernels.testing import WORKLOADS, assert_exact, random_weights
from tests.support.cases import FeatureCase
from tests.support.comparisons import same_bits
from tests.support.draws import batches, elements, fusion_weights, fusions, plans, random_offsets, seeds

# Around the lane (16), and some that divide by nothing.
table_widths = st.one_of(st.integers(0, 20), st.sampled_from([31, 32, 33, 48, 100]))


@st.composite
def cases(draw: st.DrawFn, most_candidates: int = 300) -> FeatureCase:
    widths = draw(st.lists(table_widths, min_size=1, max_size=6).filter(any))
    dtype = [draw(elements) for _ in widths]
    ragged = [draw(st.booleans()) for _ in widths]
    batch = min(draw(batches), most_candidates)
    return FeatureCase(draw(plans(max_tasks=4)), widths, dtype, ragged, batch, draw(seeds))


SMALL = Plan(1, (20, 5), (-1, 0))


@given(case=cases())
@example(case=FeatureCase(SMALL, [1], ["float32"], [False], 1, 0))
@example(case=FeatureCase(SMALL, [15, 17, 1], ["bfloat16", "int8", "int8"], [True, True, False], 100, 1))
def test_the_bits_of_pooling_and_the_dense_op(case: FeatureCase) -> None:
    arguments = (case.packed, case.plan, case.fusion_weights)
    assert same_bits(case.run(), ops.dense_scores(case.pooled(), *arguments))


@given(case=cases(), fusion=fusions)
def test_feature_scores_are_exact(case: FeatureCase, fusion: str) -> None:
    weights = fusion_weights(case.plan, fusion, len(case.ids.ids), case.generator)
    per = "candidate"
    got = ops.feature_scores(case.ids, case.tables, case.packed, case.plan, weights, fusion, per)
    x, doubles = case.pooled(dtype=torch.float64), [weight.double() for weight in case.weights]
    exact = reference.dense_scores(x, doubles, case.plan, weights.double(), fusion, per)
    assert_exact(got, exact, weights, case.plan.precision)


@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_of_width_32(name: str, dtype: str) -> None:
    plan = WORKLOADS[name].plan
    count = plan.in_features // 32
    widths = [32] * count + ([plan.in_features % 32] if plan.in_features % 32 else [])
    case = FeatureCase(plan, widths, [dtype] * len(widths), [at % 5 == 4 for at in range(len(widths))], 200, 0)
    arguments = (case.packed, case.plan, case.fusion_weights)
    assert same_bits(case.run(), ops.dense_scores(case.pooled(), *arguments))


@given(
    case=cases(),
    requests=st.integers(0, 5),
    fusion=fusions,
    per=st.sampled_from(WEIGHTS_PER),
    k=st.sampled_from([1, 7]),
)
def test_requests_have_the_bits_of_the_request_form(
    case: FeatureCase, requests: int, fusion: str, per: str, k: int
) -> None:
    users = int(case.draw(len(case.rows) + 1))
    batch = len(case.ids.ids) if requests else 0
    user = case.random_ids(requests, range(users))
    item = case.random_ids(batch, range(users, len(case.rows)))
    offsets = random_offsets(batch, requests, case.generator)
    weights = fusion_weights(
        case.plan, fusion, {"call": None, "request": requests, "candidate": batch}[per], case.generator
    )
    settings = (case.packed, case.plan, weights, fusion, per)
    got = ops.feature_request_scores(user, item, offsets, case.tables, users, *settings)

    def rows(ids: FeatureIds, first: int, last: int) -> Tensor:
        tables, scales, ragged = case.tables
        if first == last:
            return torch.zeros(len(ids.ids), 0)
        before = sum(table.dtype == torch.int8 for table in tables[:first])
        own = sum(table.dtype == torch.int8 for table in tables[first:last])
        places = [at - first for at in ragged if first <= at < last]
        return reference.feature_rows(*ids, tables[first:last], scales[before : before + own], places).float()

    split = (rows(user, 0, users), rows(item, users, len(case.rows)), offsets)
    assert same_bits(got, ops.request_scores(*split, *settings))
    best = ops.feature_request_topk(user, item, offsets, case.tables, users, *settings, k)
    assert same_bits(best, ops.request_topk(*split, *settings, k))


@given(case=cases(), requests=st.integers(1, 5), k=st.sampled_from([1, 7, 100]))
def test_topk_is_that_of_the_scores(case: FeatureCase, requests: int, k: int) -> None:
    offsets = random_offsets(len(case.ids.ids), requests, case.generator)
    got = ops.feature_topk(case.ids, offsets, case.tables, case.packed, case.plan, case.fusion_weights, k=k)
    assert same_bits(got, reference.topk(case.run().score, offsets, k))


@given(case=cases())
def test_batch_and_thread_invariance(case: FeatureCase) -> None:
    """The same bits shuffled, alone, and on any number of threads."""
    batch = len(case.ids.ids)
    if batch == 0:
        return
    whole = case.run()
    order = torch.randperm(batch, generator=case.generator)
    assert same_bits(case.run(case.some(order)), tuple(part[order] for part in whole))
    one = order[:1]
    assert same_bits(case.run(case.some(one)), tuple(part[one] for part in whole))
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert same_bits(case.run(), whole)
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_nan_in_a_table_row_reaches_those_that_use_it(dtype: str, precision: str) -> None:
    """Width 5: the row before the poisoned one is loaded together with its beginning."""
    plan = replace(SMALL, precision=precision)
    case = FeatureCase(plan, [5, 5, 3], [dtype] * 3, [False, True, False], 120, 3)
    case.rows = [len(table) for table in case.tables.tables]
    clean = case.run()
    for at in (0, 1):
        row = 2 % case.rows[at]
        tables, scales = [table.clone() for table in case.tables.tables], [one.clone() for one in case.tables.scales]
        if dtype == "int8":
            scales[at][row] = float("nan")
        else:
            tables[at][row, 1] = float("nan")
        (values, lengths), ids = case._by_feature(*case.ids[1:], 120)[0], case.ids.ids[:, 0]
        uses = ids == row if at == 0 else torch.tensor([bool((p == row).any()) for p in values.split(lengths.tolist())])
        poisoned = FeatureTables(tables, scales, case.tables.ragged)
        got = ops.feature_scores(case.ids, poisoned, case.packed, case.plan, case.fusion_weights)
        assert uses.any() and not uses.all()
        assert all(part[uses].isnan().all() for part in got)
        assert same_bits(tuple(part[~uses] for part in got), tuple(part[~uses] for part in clean))


def test_tables_and_ids_of_any_stride_are_read_in_place() -> None:
    case = FeatureCase(SMALL, [5, 16, 7], ["float32", "bfloat16", "int8"], [False, True, False], 60, 4)

    def spaced(table: Tensor) -> Tensor:
        wide = torch.full((len(table), table.shape[1] + 9), 77.0).to(table.dtype)
        wide[:, 4 : 4 + table.shape[1]] = table
        return wide[:, 4 : 4 + table.shape[1]]

    apart = case.tables._replace(tables=[spaced(table) for table in case.tables.tables])
    ids = case.ids._replace(ids=case.ids.ids.T.contiguous().T)
    assert ids.ids.stride() != case.ids.ids.stride()
    got = ops.feature_scores(ids, apart, case.packed, case.plan, case.fusion_weights)
    assert same_bits(got, case.run())


def test_one_table_for_two_features() -> None:
    case = FeatureCase(SMALL, [8], ["float32"], [False], 30, 5)
    table = case.tables.tables[0]
    plan = replace(SMALL, in_features=16)
    packed = ops.pack_towers(random_weights(plan), plan)
    ids = torch.cat((case.ids.ids, case.ids.ids.flip(0)), 1)
    got = ops.feature_scores(ops.one_id_each(ids), FeatureTables([table, table]), packed, plan, torch.ones(2))
    assert same_bits(got, ops.dense_scores(table[ids].flatten(1), packed, plan, torch.ones(2)))


@pytest.mark.parametrize("requests", [0, 2])
def test_empty_batches_and_empty_tables(requests: int) -> None:
    case = FeatureCase(SMALL, [4, 6], ["float32", "int8"], [False, True], 0, 6)
    assert [tuple(part.shape) for part in case.run()] == [(0, 2), (0, 2), (0,)]
    offsets = torch.zeros(requests + 1, dtype=torch.int64)
    best = ops.feature_topk(case.ids, offsets, case.tables, case.packed, case.plan, case.fusion_weights, k=3)
    assert best.scores.shape == (requests, 3) and (best.positions == -1).all()
    nothing = FeatureTables([torch.zeros(0, 4), torch.zeros(0, 6)], (), (1,))
    assert ops.feature_scores(case.ids, nothing, case.packed, case.plan, case.fusion_weights).score.shape == (0,)


def test_lists_without_ids_pool_to_zeros() -> None:
    case = FeatureCase(SMALL, [4, 33], ["bfloat16", "float32"], [False, True], 9, 7)
    empty = FeatureIds(case.ids.ids, torch.zeros(0, dtype=torch.int64), torch.zeros(10, dtype=torch.int64))
    x = torch.cat((case.tables.tables[0][case.ids.ids[:, 0]].float(), torch.zeros(9, 33)), 1)
    got = case.run(empty)
    assert same_bits(got, ops.dense_scores(x, case.packed, case.plan, case.fusion_weights))


def test_a_table_beyond_two_to_the_31_bytes() -> None:
    """Rows 5 GB apart in a sparse mapping of which only the read pages exist."""
    import mmap

    stride = 1_300_000_000
    memory = mmap.mmap(-1, (2 * stride + 5) * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    flat = torch.frombuffer(memory, dtype=torch.float32, count=2 * stride + 5)
    table = flat.as_strided((3, 5), (stride, 1))
    small = torch.randn(3, 5)
    table.copy_(small)
    plan = replace(SMALL, in_features=5)
    packed, ids = ops.pack_towers(random_weights(plan), plan), ops.one_id_each(torch.tensor([[2], [0], [1]]))
    far, near = (ops.feature_scores(ids, FeatureTables([t]), packed, plan, torch.ones(2)) for t in (table, small))
    assert same_bits(far, near)


@pytest.mark.parametrize("bad", [-1, 7, 2**40, -(2**63)])
def test_ids_out_of_range_are_named_with_their_place(bad: int) -> None:
    plan = replace(SMALL, in_features=9)
    packed = ops.pack_towers(random_weights(plan), plan)
    tables = FeatureTables([torch.zeros(9, 2), torch.zeros(7, 3), torch.zeros(7, 4)], (), (1,))
    good = FeatureIds(torch.tensor([[1, 2], [8, 6]]), torch.tensor([0, 6, 3]), torch.tensor([0, 1, 3]))
    assert ops.feature_scores(good, tables, packed, plan, torch.ones(2)).score.shape == (2,)
    ids, values = good.ids.clone(), good.values.clone()
    ids[1, 1] = values[2] = bad
    for wrong, text in (
        (good._replace(ids=ids), rf"ids\[1, 1\] must be a row of tables\[2\], 0 to 6, got {bad}"),
        (good._replace(values=values), rf"values\[2\] must be a row of tables\[1\], 0 to 6, got {bad}"),
    ):
        with pytest.raises(ValueError, match=f"^feature_scores: {text}$"):
            ops.feature_scores(wrong, tables, packed, plan, torch.ones(2))
        item = wrong._replace(ids=wrong.ids[:, 1:])
        if item.ids[1, 0] != bad and wrong.values[2] != bad:
            continue
        user = ops.one_id_each(torch.tensor([[0]]))
        text = text.replace(r"\[1, 1\]", r"\[1, 0\]")
        with pytest.raises(ValueError, match=f"^feature_request_topk: item_{text}$"):
            ops.feature_request_topk(user, item, torch.tensor([0, 2]), tables, 1, packed, plan, torch.ones(2))
