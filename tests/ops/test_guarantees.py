"""What is promised of scores: the same bits in any batch, NaN that stays, any stride, no batch too small."""

from __future__ import annotations

import mmap
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from resflow_kernels import reference
from resflow_kernels.contract import ACTIVATIONS, FUSIONS, TABLE_PRECISIONS
from resflow_kernels.core.plan import Plan, chain
from resflow_kernels.testing import WORKLOADS
from tests.support.cases import CANDIDATE, CatalogCase, RequestCase, TowerCase, activated, unit_weights
from tests.support.comparisons import same_bits
from tests.support.devices import Device
from tests.support.draws import drawn, fusions, plans_of, seeds

NAN, INF = float("nan"), float("inf")
SMALL = Plan(6, (8,), (-1, 0))


def picked(parts: tuple[Tensor, ...], rows: Tensor | slice) -> tuple[Tensor, ...]:
    return tuple(part[rows] for part in parts)


@pytest.mark.devices(bitwise=True)
@drawn(
    {"plan": Plan(9, (16, 8), chain(64)), "batch": 35, "fusion": "additive", "seed": 0},
    plan=plans_of,
    batch=lambda device: st.integers(1, 40 if device.interpreted else 70 if device.slow else 200),
    fusion=fusions,
    seed=seeds,
)
def test_batch_invariance(device: Device, plan: Plan, batch: int, fusion: str, seed: int) -> None:
    """The same bits shuffled, alone, in pieces, and on any number of threads."""
    case = TowerCase(plan, batch, fusion, seed=seed, ops=device)
    whole = case.run()
    order = torch.randperm(batch, generator=case.generator)
    assert same_bits(case.run(case.x[order]), picked(whole, order))
    cut = int(order[0])
    pieces = [case.run(case.x[:cut]), case.run(case.x[cut:])]
    assert same_bits(tuple(torch.cat(parts) for parts in zip(*pieces, strict=True)), whole)
    assert same_bits(case.run(case.x[cut : cut + 1]), picked(whole, slice(cut, cut + 1)))
    if device.name in ("cpu", "numpy"):
        before = torch.get_num_threads()
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                assert same_bits(case.run(), whole)
        finally:
            torch.set_num_threads(before)


@pytest.mark.devices("cpu", "numpy", "emulated", "cuda")
@pytest.mark.parametrize("name", WORKLOADS)
def test_small_and_large_batches_have_the_same_bits(device: Device, name: str, precision: str) -> None:
    """Batches small enough are spread over the GPU by another kernel than large ones; its sums must be the same."""
    plan = replace(WORKLOADS[name].plan, precision=precision)
    if device.slow:  # the narrow network has the same panels, in a tenth of the time
        plan = replace(plan, in_features=70, hidden=(*(80 for _ in plan.hidden[1:]), 40))
    # The emulated GPU has 132 multiprocessors: half of them have tiles of 16 rows from 1,056 rows on.
    case = TowerCase(plan, 40_000 if device.place == "cuda" else 1300, ops=device)
    whole = case.run()
    for first, count in ((0, 1), (7, 15), (100, 16), (40, 17), (11, 300), (0, 1000)):
        some = slice(first, first + count)
        assert same_bits(case.run(case.x[some]), picked(whole, some)), f"{count} rows"


@pytest.mark.devices(bitwise=True)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_batch_invariance_of_16_bit_rows(device: Device, precision: str) -> None:
    """Of the paper's widths, in tiles of 128 on Hopper; NaN stays with its candidate there too."""
    dtype = getattr(torch, precision)
    if dtype not in device.rows or precision not in device.precisions:
        pytest.skip(f"{device.name} takes no rows of {precision}")
    if device.interpreted:
        pytest.skip("interpreted: takes minutes")
    batch = 300 if device.place == "cpu" else 40_000
    case = TowerCase(Plan(72, (128, 64), chain(3), affine=True, precision=precision), batch, ops=device)
    x = case.x.to(dtype)
    whole = case.run(x)
    for first, count in ((0, 1), (7, 15), (100, 17), (127, 130), (1, 257)):
        some = slice(first, first + count)
        assert same_bits(case.run(x[some]), picked(whole, some)), f"{count} rows"
    order = torch.randperm(batch, generator=case.generator)
    assert same_bits(case.run(x[order]), picked(whole, order))
    for poison in (NAN, INF):
        poisoned = x.clone()
        poisoned[130, 3] = poison
        got, others = case.run(poisoned), torch.arange(batch) != 130
        assert same_bits(picked(got, others), picked(whole, others))
        assert poison == poison or all(part[130].isnan().all() for part in got)


@pytest.mark.devices(bitwise=True)
def test_a_candidate_scores_the_same_in_any_request_and_alone(device: Device, precision: str) -> None:
    plan = Plan(24, (40, 8), (-1, 0, 1), precision=precision)
    case = RequestCase(plan, 50, 1, split=10, ops=device)
    user, item = case.user, case.item.contiguous()
    whole = case.scores()
    for cuts in ([0, 20, 50], [0, 0, 1, 49, 50, 50]):
        users = user.expand(len(cuts) - 1, 10).contiguous()
        assert same_bits(device.request_scores(users, item, torch.tensor(cuts), *case.settings), whole)
    alone = device.request_scores(user, item[31:32], torch.tensor([0, 1]), *case.settings)
    assert same_bits(alone, picked(whole, slice(31, 32)))


@pytest.mark.devices(bitwise=True)
def test_an_item_of_a_catalog_scores_the_same_alone(device: Device, precision: str) -> None:
    plan = Plan(24, (40, 8), (-1, 0, 0), precision=precision)
    for dtype in TABLE_PRECISIONS:
        case = CatalogCase(plan, 33, 3, dtype=dtype, ops=device)
        whole, request = case.scores(), case.request
        for at in (32,) if device.interpreted else (0, 17, 32):
            one = slice(at, at + 1)
            inputs = (case.user[request[one]], case.ids[one], torch.tensor([0, 1]), case.table, case.scales)
            assert same_bits(device.catalog_scores(*inputs, *case.settings), picked(whole, one))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("head", ["residual", "conditional"])
def test_isolation(device: Device, head: str, fusion: str, activation: str) -> None:
    """A poisoned candidate leaves its neighbours' bits alone, and a NaN reaches all its own outputs."""
    switches = {"logit_residual": head == "residual", "non_increasing": head == "residual"}
    chosen = device.precisions
    if device.interpreted:  # each in its turn
        turn = ACTIVATIONS.index(activation) + FUSIONS.index(fusion)
        chosen = (chosen[turn % len(chosen)],)
    for precision in chosen:
        parents = (-1, 0, 1) if fusion != "additive" else (-1, 0, 0)  # Triton's kernel of chains and that of forests
        plan = Plan(7, (20, 5), parents, activation, affine=True, head=head, precision=precision, **switches)
        batch = 20 if device.interpreted else 50
        case = TowerCase(plan, batch, fusion, ops=device)
        clean, others = case.run(), torch.arange(batch) != 17
        for poison in (NAN, INF, -INF):
            poisoned = case.x.clone()
            poisoned[17, 3] = poison
            got = case.run(poisoned)
            assert same_bits(picked(got, others), picked(clean, others))
            if poison != poison:
                assert all(part[17].isnan().all() for part in got)
            elif precision == "float32":
                # An infinity becomes what the same arithmetic makes of it in float64; see the test below.
                assert torch.equal(got.probs[17].isnan(), case.exact(poisoned).probs[17].isnan())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_infinities(device: Device, activation: str) -> None:
    """NaN of -inf where the formula has -inf * 0 (silu and gelu), a number or an infinity elsewhere."""
    if device.name == "reference" and activation == "gelu":
        pytest.skip("gelu of infinity is NaN in PyTorch's own float32, of two values and more")
    values = torch.tensor([INF, -INF])
    got = activated(activation, values, device)
    assert torch.equal(got.isnan(), torch.tensor([False, activation in ("silu", "gelu", "gelu_tanh")]))
    exact = reference.activate(activation, values.double(), torch.tensor(0.25, dtype=torch.float64))
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_nan_in_fusion_weights_reaches_the_score_alone(device: Device, fusion: str) -> None:
    case = TowerCase(SMALL, 30, fusion, CANDIDATE, ops=device)
    clean = case.run()
    case.fusion_weights[4, 1] = NAN
    got, others = case.run(), torch.arange(30) != 4
    assert got.score[4].isnan() and same_bits(got[:2], clean[:2])
    assert same_bits((got.score[others],), (clean.score[others],))


def test_multiplicative_fusion_of_impossible_tasks(device: Device) -> None:
    """p = 0: to the power 0 it is 1, to a positive power 0, and no NaN appears."""
    plan = Plan(1, (1,), (-1, -1), "identity", logit_residual=False)
    packed = device.pack_towers(unit_weights(plan), plan)
    x = torch.tensor([[-INF], [-1e30], [-200.0]])
    none = device.dense_scores(x, packed, plan, torch.tensor([0.0, 0.0]), "multiplicative")
    some = device.dense_scores(x, packed, plan, torch.tensor([0.0, 0.5]), "multiplicative")
    assert none.score.tolist() == [1, 1, 1] and some.score[:2].tolist() == [0, 0]
    # e^-100 is a denormal number, which a GPU's exponential may round to 0.
    bounds = (1.7e-44, 5.7e-44) if device.raises else (0, 6e-44)
    assert bounds[0] < float(some.score[2]) < bounds[1] or float(some.score[2]) == bounds[0] == 0


@pytest.mark.devices(bitwise=True)
def test_rows_of_any_stride_and_place_are_read_in_place(device: Device) -> None:
    """Rows between NaN, at odd places in memory, every other one, and one row many times."""
    for width, dtype in ((33, torch.float32), *((32, dtype) for dtype in device.rows)):
        case = TowerCase(Plan(width, (17,), (-1, 0)), 40, ops=device)
        x = case.x.to(dtype)
        expected = case.run(x)
        for place in (0, 5) if device.interpreted else (0, 1, 2, 5):
            wide = torch.full((40, 50), NAN, dtype=dtype)
            wide[:, place : place + width] = x
            there = device.tensor(wide)
            assert same_bits(case.run(there[:, place : place + width]), expected)
            assert same_bits(case.run(there[::2, place : place + width]), picked(expected, slice(None, None, 2)))
        repeated = device.tensor(x[3]).expand(10, width)
        assert same_bits(case.run(repeated), tuple(part[3:4].expand(10, *part.shape[1:]) for part in expected))


def test_rows_beyond_two_to_the_31_elements(device: Device) -> None:
    """Addresses past 2^31 and 2^32 elements, through a row stride, without the memory: the rows are 5 GiB apart in a
    sparse mapping of which only the read pages exist.
    """
    if device.place != "cpu":
        pytest.skip("a GPU's memory has no pages that do not exist")
    stride = 1_300_000_000  # elements; two rows on: 2.6e9 > 2^31
    case = TowerCase(Plan(5, (16,), (-1, 0)), 3, ops=device)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    memory = mmap.mmap(-1, (2 * stride + 5) * 4, flags=flags)
    x = torch.frombuffer(memory, dtype=torch.float32, count=2 * stride + 5).as_strided((3, 5), (stride, 1))
    x.copy_(case.x)
    assert same_bits(case.run(x), case.run())


@pytest.mark.parametrize("requests", [0, 1, 3])
def test_empty_batches(device: Device, requests: int) -> None:
    case = TowerCase(Plan(5, (4,), (-1, 0)), 0, ops=device)
    assert [tuple(part.shape) for part in case.run()] == [(0, 2), (0, 2), (0,)]
    offsets = torch.zeros(requests + 1, dtype=torch.int64)
    user, item, ids = torch.randn(requests, 2), torch.randn(0, 3), torch.zeros(0, dtype=torch.int64)
    rest = (case.packed, case.plan, case.fusion_weights)
    assert device.request_scores(user, item, offsets, *rest).logits.shape == (0, 2)
    table, scales = device.catalog_rows(item, case.packed, case.plan, "int8")
    assert table.shape == (0, case.plan.table_width)
    assert device.catalog_scores(user, ids, offsets, table, scales, *rest).score.shape == (0,)
    for best in (
        device.dense_topk(case.x, offsets, *rest, k=4),
        device.request_topk(user, item, offsets, *rest, k=4),
        device.catalog_topk(user, ids, offsets, table, scales, *rest, k=4),
    ):
        assert best.scores.shape == (requests, 4) and best.scores.isnan().all() and (best.positions == -1).all()
