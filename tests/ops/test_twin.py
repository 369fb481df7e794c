"""The twin tower ops against the float64 reference, and the guarantees they make."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from resflow_kernels import ops, reference
from resflow_kernels.contract import FUSIONS, PRECISION_ROWS, TABLE_PRECISIONS, WEIGHTS_PER
from resflow_kernels.reference import twin
from resflow_kernels.testing import assert_exact
from tests.support.cases import BUDGET, CALL, CANDIDATE, REQUEST, TwinCase
from tests.support.comparisons import same_bits
from tests.support.draws import elements, fusions, seeds

tasks_of = st.integers(1, 16)
widths = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 128, 130]))
counts = st.one_of(st.integers(0, 20), st.sampled_from([31, 32, 33, 160, 300]))


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
@example(16, 130, 300, 9, "int8", "expected_value", CANDIDATE, True, 1)
@example(3, 64, 300, 2, "bfloat16", "multiplicative", REQUEST, False, 2)
def test_scores_are_exact(
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
    case = TwinCase(tasks, width, items, requests, dtype, fusion, per, seed, non_increasing)
    weights = case.weights(items)
    arguments = (case.user.double(), case.table, case.scales, weights.double(), *case.settings)
    assert_exact(case.all(), twin.twin_scores(*arguments), weights, BUDGET[dtype])

    weights = case.weights(case.candidates)
    inputs = (case.user.double(), case.ids, case.offsets, case.table, case.scales)
    exact = twin.twin_ids_scores(*inputs, weights.double(), *case.settings)
    assert_exact(case.listed(), exact, weights, BUDGET[dtype])


@given(tasks=tasks_of, width=widths, items=counts, dtype=elements, seed=seeds)
def test_tables_are_near_their_vectors(tasks: int, width: int, items: int, dtype: str, seed: int) -> None:
    case = TwinCase(tasks, width, items, 1, dtype, seed=seed)
    vectors = case.vectors.double().reshape(items, tasks, width)
    held = twin.held_vectors(case.table, case.scales, tasks)
    step = {"float32": 0.0, "bfloat16": 2**-8, "int8": 0.5001 / 127}[dtype]
    assert case.table.shape == (items, tasks * width)
    assert ((held - vectors).abs() <= step * vectors.abs().amax(-1, keepdim=True)).all()
    halves, scales = ops.twin_rows(case.vectors.bfloat16(), tasks, dtype)
    again = ops.twin_rows(case.vectors.bfloat16().float(), tasks, dtype)
    assert same_bits((halves, scales), again)


@given(
    tasks=st.integers(1, 4),
    width=st.integers(1, 70),
    items=counts,
    requests=st.integers(0, 20),
    dtype=elements,
    k=st.sampled_from([1, 2, 7, 100]),
    seed=seeds,
)
@example(2, 5, 300, 17, "int8", 7, 0)
def test_topk_is_that_of_the_scores(
    tasks: int, width: int, items: int, requests: int, dtype: str, k: int, seed: int
) -> None:
    case = TwinCase(tasks, width, items, requests, dtype, seed=seed)
    if items:
        repeats = torch.randint(0, items, (items,), generator=case.generator)  # ties
        vectors = case.vectors[repeats]
        vectors[torch.rand(items, generator=case.generator) < 0.1] = float("nan")
        case.table, case.scales = ops.twin_rows(vectors, tasks, dtype)
    weights = case.weights(items)
    everything = torch.arange(requests + 1) * items
    best = ops.twin_topk(case.user, case.table, case.scales, weights, *case.settings, k)
    assert same_bits(best, reference.topk(case.all().score, everything, k))
    best = ops.twin_ids_topk(case.user, case.ids, case.offsets, case.table, case.scales, weights, *case.settings, k)
    assert same_bits(best, reference.topk(case.listed().score, case.offsets, k))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
def test_topk_of_many_tiles_and_threads(dtype: str, threads: int) -> None:
    """Tiles, runs, pieces and passes that meet: 60,000 items, more requests than share a pass."""
    case = TwinCase(2, 9, 60_000, 18, dtype)
    ends = [0, 5, 5, 50_000, 50_001, *range(50_001, 50_014), 120_000]
    case.offsets = torch.tensor([*ends[:18], 120_000])
    before = torch.get_num_threads()
    scores, listed = case.all().score, case.listed().score
    torch.set_num_threads(threads)
    try:
        weights = case.weights(0)
        best = ops.twin_topk(case.user, case.table, case.scales, weights, *case.settings, 50)
        assert same_bits(best, reference.topk(scores, torch.arange(19) * 60_000, 50))
        inputs = (case.user, case.ids, case.offsets, case.table, case.scales)
        best = ops.twin_ids_topk(*inputs, weights, *case.settings, 50)
        assert same_bits(best, reference.topk(listed, case.offsets, 50))
        assert same_bits((case.all().score, case.listed().score), (scores, listed))
    finally:
        torch.set_num_threads(before)


@given(tasks=tasks_of, width=widths, items=st.integers(1, 200), requests=st.integers(1, 5), dtype=elements, seed=seeds)
def test_batch_invariance(tasks: int, width: int, items: int, requests: int, dtype: str, seed: int) -> None:
    """The same bits from the stream and from lists, shuffled, alone, and from a part of the table or of the users."""
    case = TwinCase(tasks, width, items, requests, dtype, "multiplicative", CALL, seed)
    whole = case.all()
    weights = case.weights(0)
    order = torch.randperm(items, generator=case.generator).repeat(requests)
    offsets = torch.arange(requests + 1) * items
    at = order + torch.arange(requests).repeat_interleave(items) * items
    listed = ops.twin_ids_scores(case.user, order, offsets, case.table, case.scales, weights, *case.settings)
    assert same_bits(listed, tuple(part[at] for part in whole))

    one = int(order[0])
    alone = ops.twin_scores(
        case.user[-1:], case.table[one : one + 1], case.scales[one : one + 1], weights, *case.settings
    )
    place = (requests - 1) * items + one
    assert same_bits(alone, tuple(part[place : place + 1] for part in whole))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
@pytest.mark.parametrize("width", [5, 16, 64, 67])
def test_isolation(width: int, dtype: str, fusion: str, poison: float) -> None:
    """A poisoned item leaves its neighbours' bits alone, and a NaN reaches its own outputs; so does a user."""
    case = TwinCase(3, width, 50, 2, dtype, fusion)
    case.parents = [-1, 0, 1]
    clean = case.all()
    vectors, table, scales, user = case.vectors, case.table, case.scales, case.user
    poisoned = vectors.clone()
    poisoned[17, width // 2] = poison
    case.table, case.scales = ops.twin_rows(poisoned, 3, dtype)
    got = case.all()
    others = torch.arange(100) % 50 != 17
    assert same_bits(tuple(part[others] for part in got), tuple(part[others] for part in clean))
    if poison != poison:
        assert all(part[~others].isnan().all() for part in got)
    else:
        assert not got.logits[~others].isfinite().any()

    case.table, case.scales, case.user = table, scales, user.clone()
    case.user[1, width // 2] = poison
    got = case.all()
    assert same_bits(tuple(part[:50] for part in got), tuple(part[:50] for part in clean))
    assert not got.logits[50:].isfinite().any()


def test_a_task_without_descendants_keeps_its_nan() -> None:
    case = TwinCase(3, 8, 20, 1, "int8")
    case.parents = [-1, 0, 0]
    vectors = case.vectors.clone()
    vectors[4, 8] = float("nan")  # task 1
    clean = case.all()
    case.table, case.scales = ops.twin_rows(vectors, 3, "int8")
    got = case.all()
    assert got.logits[4].isnan().tolist() == [False, True, False] and got.score[4].isnan()
    assert torch.equal(got.logits[4, [0, 2]], clean.logits[4, [0, 2]])


@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
def test_rows_of_any_stride_are_read_in_place(dtype: str) -> None:
    """Also the end of the table: what lies behind it is not read into a sum."""
    case = TwinCase(3, 11, 40, 2, dtype)
    wide = torch.full((40, 50), 77).to(case.table.dtype)
    wide[:, 5:38] = case.table
    expected = case.all()
    case.table = wide[:, 5:38]
    assert same_bits(case.all(), expected)
    case.user = torch.cat((torch.full((2, 3), float("nan")), case.user), dim=1)[:, 3:]
    assert same_bits(case.all(), expected)
    case.table, case.scales = wide[::2, 5:38], case.scales[::2].contiguous()
    kept = torch.arange(80).reshape(2, 40)[:, ::2].flatten()
    assert same_bits(case.all(), tuple(part[kept] for part in expected))


def test_bfloat16_users() -> None:
    case = TwinCase(2, 33, 30, 4, "int8")
    case.user = case.user.bfloat16()
    got = case.all()
    case.user = case.user.float()
    assert same_bits(got, case.all())


@pytest.mark.parametrize("requests", [0, 2])
@pytest.mark.parametrize("items", [0, 3])
def test_empty_inputs(items: int, requests: int) -> None:
    case = TwinCase(2, 4, items, requests, "int8")
    assert case.all().logits.shape == (requests * items, 2)
    best = ops.twin_topk(case.user, case.table, case.scales, torch.ones(2), case.parents, k=5)
    assert best.positions.shape == (requests, 5) and (best.positions[:, items:] == -1).all()
    assert best.scores[:, items:].isnan().all()
    no_ids, offsets = torch.zeros(0, dtype=torch.int64), torch.zeros(requests + 1, dtype=torch.int64)
    best = ops.twin_ids_topk(case.user, no_ids, offsets, case.table, case.scales, torch.ones(2), case.parents, k=5)
    assert best.scores.shape == (requests, 5) and (best.positions == -1).all()


@pytest.mark.parametrize("bad", [-1, 9, 2**40])
def test_ids_out_of_range_are_named(bad: int) -> None:
    case = TwinCase(2, 3, 9, 1)
    ids = torch.tensor([0, 8, bad, 3])
    inputs = (case.user, ids, torch.tensor([0, 4]), case.table, case.scales, torch.ones(2), case.parents)
    for op in (ops.twin_ids_scores, ops.twin_ids_topk):
        with pytest.raises(ValueError, match=rf"{op.__name__}: ids\[2\] must be rows of the table, 0 to 8, got {bad}"):
            op(*inputs)


def test_rows_beyond_two_to_the_31_elements() -> None:
    """Addresses past 2^31 elements through a row stride, in a sparse mapping of which only the read pages exist."""
    import mmap

    stride = 1_300_000_000
    case = TwinCase(2, 3, 3, 2, "int8")
    length = 2 * stride + 6
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000))
    far = torch.frombuffer(memory, dtype=torch.int8, count=length).as_strided((3, 6), (stride, 1))
    expected = case.all()
    far.copy_(case.table)
    case.table = far
    assert same_bits(case.all(), expected)


@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
def test_numpy_has_the_same_bits(dtype: str) -> None:
    runtime = pytest.importorskip("resflow_kernels._runtime")
    case = TwinCase(3, 21, 90, 4, dtype, "expected_value", REQUEST, non_increasing=True)
    table, scales = runtime.twin_rows(case.vectors.numpy(), 3, PRECISION_ROWS[dtype].code, threads=2)
    assert torch.equal(torch.from_numpy(table).view(case.table.dtype), case.table)
    assert torch.equal(torch.from_numpy(scales), case.scales)
    user, weights = case.user.numpy(), case.weights(0).numpy()
    ids, offsets = case.ids.numpy(), case.offsets.numpy()
    *switches, fusion, per = case.settings
    codes = (*switches, FUSIONS.index(fusion), WEIGHTS_PER.index(per))
    everything = (user, table, scales, weights, *codes)
    lists = (user, ids, offsets, table, scales, weights, *codes)
    inputs = (case.table, case.scales, case.weights(0), *case.settings)
    pairs = [
        (runtime.twin_scores(*everything, threads=1), case.all()),
        (runtime.twin_ids_scores(*lists, threads=3), case.listed()),
        (runtime.twin_topk(*everything, 9), ops.twin_topk(case.user, *inputs, 9)),
        (runtime.twin_ids_topk(*lists, 9), ops.twin_ids_topk(case.user, case.ids, case.offsets, *inputs, 9)),
    ]
    for got, expected in pairs:
        assert same_bits(tuple(map(torch.from_numpy, got)), expected)


def test_a_measured_bandwidth_is_a_rate() -> None:
    """Reading twice as much takes longer than reading half: the bytes are read."""
    runtime = pytest.importorskip("resflow_kernels._runtime")
    memory = torch.ones(1 << 26, dtype=torch.uint8).numpy()
    seconds = [
        min(size / runtime.measure_read_bandwidth(memory[:size], 1) for _ in range(5)) for size in (1 << 22, 1 << 26)
    ]
    assert 1 < runtime.measure_read_bandwidth(memory, 2) < 10_000
    assert seconds[1] > 2 * seconds[0]
