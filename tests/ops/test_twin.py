"""The twin tower form against the float64 reference, and the guarantees it makes."""

from __future__ import annotations

import mmap

import pytest
import torch
from hypothesis import strategies as st

from resflow_kernels import ops, reference
from resflow_kernels.contract import FUSIONS, TABLE_PRECISIONS
from resflow_kernels.reference import twin
from resflow_kernels.testing import assert_exact
from tests.support.cases import BUDGET, CALL, CANDIDATE, REQUEST, TwinCase
from tests.support.comparisons import same_bits
from tests.support.devices import Device
from tests.support.draws import drawn, elements, fusions, random_offsets, seeds, weights_per

pytestmark = pytest.mark.devices(form="twin")


def tasks_of(device: Device) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(1, 4), st.just(9)) if device.small else st.integers(1, 16)


def widths_of(device: Device) -> st.SearchStrategy[int]:
    if device.small:
        return st.one_of(st.integers(1, 20), st.sampled_from([31, 64, 65, 128]))
    return st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 128, 130]))


def counts_of(device: Device) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(0, 20), st.sampled_from([33, 64, 65, 130] if device.small else [31, 32, 33, 160, 300]))


def example(*values: object) -> dict[str, object]:
    names = ("tasks", "width", "items", "requests", "dtype", "fusion", "per", "non_increasing", "seed")
    return dict(zip(names, values, strict=True))


@drawn(
    example(1, 1, 1, 1, "int8", "additive", CALL, False, 0),
    example(16, 130, 70, 9, "int8", "expected_value", CANDIDATE, True, 1),
    example(3, 64, 130, 2, "bfloat16", "multiplicative", REQUEST, False, 2),
    example(3, 64, 300, 2, "bfloat16", "multiplicative", REQUEST, False, 2),
    tasks=tasks_of,
    width=widths_of,
    items=counts_of,
    requests=st.integers(0, 9),
    dtype=elements,
    fusion=fusions,
    per=weights_per,
    non_increasing=st.booleans(),
    seed=seeds,
)
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


@drawn(tasks=tasks_of, width=widths_of, items=counts_of, dtype=elements, seed=seeds)
def test_tables_are_near_their_vectors(
    device: Device, tasks: int, width: int, items: int, dtype: str, seed: int
) -> None:
    """Rounding is defined bitwise, so a table may be built on any device."""
    case = TwinCase(tasks, width, items, 1, dtype, seed=seed, ops=device)
    vectors = case.vectors.double().reshape(items, tasks, width)
    held = twin.held_vectors(case.table, case.scales, tasks)
    step = {"float32": 0.0, "bfloat16": 2**-8, "int8": 0.5001 / 127}[dtype]
    assert case.table.shape == (items, tasks * width)
    assert ((held - vectors).abs() <= step * vectors.abs().amax(-1, keepdim=True)).all()
    for rows in (case.vectors.to(row) for row in device.rows if row != torch.float16):
        table = device.twin_rows(rows, tasks, dtype)
        assert same_bits(table, ops.twin_rows(rows, tasks, dtype))
        assert same_bits(table, device.twin_rows(rows.float(), tasks, dtype))


@drawn(
    {"tasks": 2, "width": 5, "items": 300, "requests": 17, "dtype": "int8", "k": 7, "seed": 0},
    tasks=st.integers(1, 4),
    width=st.integers(1, 70),
    items=counts_of,
    requests=st.integers(0, 20),
    dtype=elements,
    k=st.sampled_from([1, 2, 7, 100]),
    seed=seeds,
)
def test_topk_is_that_of_the_scores(
    device: Device, tasks: int, width: int, items: int, requests: int, dtype: str, k: int, seed: int
) -> None:
    case = TwinCase(tasks, width, items, requests, dtype, seed=seed, ops=device)
    if items:
        repeats = torch.randint(0, items, (items,), generator=case.generator)  # ties
        vectors = case.vectors[repeats]
        vectors[torch.rand(items, generator=case.generator) < 0.1] = float("nan")
        case.table, case.scales = device.twin_rows(vectors, tasks, dtype)
    weights = case.weights(items)
    everything = torch.arange(requests + 1) * items
    best = device.twin_topk(case.user, case.table, case.scales, weights, *case.settings, k)
    assert same_bits(best, reference.topk(case.all().score, everything, k))
    inputs = (case.user, case.ids, case.offsets, case.table, case.scales)
    best = device.twin_ids_topk(*inputs, weights, *case.settings, k)
    assert same_bits(best, reference.topk(case.listed().score, case.offsets, k))


@pytest.mark.devices("cpu", "numpy")
@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
def test_topk_of_many_tiles_and_threads(device: Device, dtype: str) -> None:
    """Tiles, runs, pieces and passes that meet: 60,000 items, more requests than share a pass."""
    case = TwinCase(2, 9, 60_000, 18, dtype, ops=device)
    ends = [0, 5, 5, 50_000, 50_001, *range(50_001, 50_014), 120_000]
    case.offsets = torch.tensor([*ends[:18], 120_000])
    scores, listed, weights = case.all().score, case.listed().score, case.weights(0)
    best = reference.topk(scores, torch.arange(19) * 60_000, 50)
    best_listed = reference.topk(listed, case.offsets, 50)
    inputs = (case.user, case.ids, case.offsets, case.table, case.scales)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            got = device.twin_topk(case.user, case.table, case.scales, weights, *case.settings, 50)
            assert same_bits(got, best), f"{threads} threads"
            assert same_bits(device.twin_ids_topk(*inputs, weights, *case.settings, 50), best_listed)
            assert same_bits((case.all().score, case.listed().score), (scores, listed))
    finally:
        torch.set_num_threads(before)


@pytest.mark.devices(slow=False)
@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
def test_a_large_table(device: Device, dtype: str) -> None:
    case = TwinCase(3, 64, 200_000 if device.place == "cuda" else 20_000, 5, dtype, ops=device)
    weights = case.weights(case.items)
    best = device.twin_topk(case.user, case.table, case.scales, weights, *case.settings, 100)
    assert same_bits(best, reference.topk(case.all().score, torch.arange(6) * case.items, 100))


@drawn(
    tasks=tasks_of,
    width=widths_of,
    items=lambda device: st.integers(1, 90 if device.slow else 200),
    requests=st.integers(1, 5),
    dtype=elements,
    seed=seeds,
)
def test_batch_invariance(
    device: Device, tasks: int, width: int, items: int, requests: int, dtype: str, seed: int
) -> None:
    """The same bits from the stream and from lists, shuffled, alone, and from a part of the table or of the users."""
    case = TwinCase(tasks, width, items, requests, dtype, "multiplicative", CALL, seed, ops=device)
    whole = case.all()
    weights = case.weights(0)
    order = torch.randperm(items, generator=case.generator).repeat(requests)
    offsets = torch.arange(requests + 1) * items
    at = order + torch.arange(requests).repeat_interleave(items) * items
    listed = device.twin_ids_scores(case.user, order, offsets, case.table, case.scales, weights, *case.settings)
    assert same_bits(listed, tuple(part[at] for part in whole))

    for some in (order[:1], order[: items // 3 + 1]):
        scales = case.scales[some] if dtype == "int8" else case.scales
        part = device.twin_scores(case.user[-1:], case.table[some], scales, weights, *case.settings)
        assert same_bits(part, tuple(of[(requests - 1) * items + some] for of in whole))

    offsets = random_offsets(items, requests, case.generator)
    ids = torch.arange(items)
    listed = device.twin_ids_scores(case.user, ids, offsets, case.table, case.scales, weights, *case.settings)
    owner = reference.request_of_candidates(offsets, items)
    assert same_bits(listed, tuple(of[owner * items + ids] for of in whole))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
@pytest.mark.parametrize("width", [5, 16, 64, 67])
def test_isolation(device: Device, width: int, dtype: str, fusion: str, poison: float) -> None:
    """A poisoned item leaves its neighbours' bits alone, and a NaN reaches its own outputs; so does a user."""
    case = TwinCase(3, width, 50, 2, dtype, fusion, ops=device)
    case.parents = [-1, 0, 1]
    clean = case.all()
    vectors, table, scales, user = case.vectors, case.table, case.scales, case.user
    poisoned = vectors.clone()
    poisoned[17, width // 2] = poison
    case.table, case.scales = device.twin_rows(poisoned, 3, dtype)
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


def test_a_task_without_descendants_keeps_its_nan(device: Device) -> None:
    case = TwinCase(3, 8, 20, 1, "int8", ops=device)
    case.parents = [-1, 0, 0]
    vectors = case.vectors.clone()
    vectors[4, 8] = float("nan")  # task 1
    clean = case.all()
    case.table, case.scales = device.twin_rows(vectors, 3, "int8")
    got = case.all()
    assert got.logits[4].isnan().tolist() == [False, True, False] and got.score[4].isnan()
    assert torch.equal(got.logits[4, [0, 2]], clean.logits[4, [0, 2]])


@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
def test_rows_of_any_stride_are_read_in_place(device: Device, dtype: str) -> None:
    """Also the end of the table: what lies behind it is not read into a sum."""
    case = TwinCase(3, 11, 40, 2, dtype, ops=device)
    wide = device.tensor(torch.full((40, 50), 77).to(case.table.dtype))
    wide[:, 5:38] = case.table
    expected = case.all()
    case.table = wide[:, 5:38]
    assert same_bits(case.all(), expected)
    case.user = device.tensor(torch.cat((torch.full((2, 3), float("nan")), case.user), dim=1))[:, 3:]
    assert same_bits(case.all(), expected)
    case.table, case.scales = wide[::2, 5:38], case.scales[::2].contiguous()
    kept = torch.arange(80).reshape(2, 40)[:, ::2].flatten()
    assert same_bits(case.all(), tuple(part[kept] for part in expected))


@pytest.mark.devices(row=torch.bfloat16)
def test_bfloat16_users(device: Device) -> None:
    case = TwinCase(2, 33, 30, 4, "int8", ops=device)
    case.user = case.user.bfloat16()
    got = case.all()
    case.user = case.user.float()
    assert same_bits(got, case.all())


@pytest.mark.parametrize("requests", [0, 2])
@pytest.mark.parametrize("items", [0, 3])
def test_empty_inputs(device: Device, items: int, requests: int) -> None:
    case = TwinCase(2, 4, items, requests, "int8", ops=device)
    assert case.all().logits.shape == (requests * items, 2)
    best = device.twin_topk(case.user, case.table, case.scales, torch.ones(2), case.parents, k=5)
    assert best.positions.shape == (requests, 5) and (best.positions[:, items:] == -1).all()
    assert best.scores[:, items:].isnan().all()
    no_ids, offsets = torch.zeros(0, dtype=torch.int64), torch.zeros(requests + 1, dtype=torch.int64)
    best = device.twin_ids_topk(case.user, no_ids, offsets, case.table, case.scales, torch.ones(2), case.parents, k=5)
    assert best.scores.shape == (requests, 5) and (best.positions == -1).all()


def test_rows_beyond_two_to_the_31_elements(device: Device) -> None:
    """Addresses past 2^31 elements through a row stride, in a sparse mapping of which only the read pages exist."""
    if device.place != "cpu":
        pytest.skip("a GPU's memory has no pages that do not exist")
    stride = 1_300_000_000
    case = TwinCase(2, 3, 3, 2, "int8", ops=device)
    length = 2 * stride + 6
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000))
    far = torch.frombuffer(memory, dtype=torch.int8, count=length).as_strided((3, 6), (stride, 1))
    expected = case.all()
    far.copy_(case.table)
    case.table = far
    assert same_bits(case.all(), expected)
