"""The ops against the float64 reference, and the guarantees they make about batches, NaN and sizes."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from resflow_kernels import ops, reference
from resflow_kernels.contract import ACTIVATIONS, FUSIONS, PRECISIONS, TABLE_PRECISIONS, WEIGHTS_PER
from resflow_kernels.core.plan import Plan, chain
from resflow_kernels.testing import WORKLOADS, assert_exact
from tests.support.cases import CALL, CANDIDATE, REQUEST, TowerCase
from tests.support.comparisons import same_bits
from tests.support.draws import batches, fusion_weights, fusions, plans, random_offsets, seeds


@given(plan=plans(), batch=batches, fusion=fusions, per=st.sampled_from([CALL, CANDIDATE]), seed=seeds)
@example(plan=Plan(1, (1,), (-1,)), batch=1, fusion="additive", per=CALL, seed=0)
@example(plan=Plan(576, (128, 64), chain(16), "gelu"), batch=49, fusion="expected_value", per=CANDIDATE, seed=1)
def test_dense_scores_are_exact(plan: Plan, batch: int, fusion: str, per: str, seed: int) -> None:
    case = TowerCase(plan, batch, fusion, per, seed)
    assert_exact(case.run(), case.exact(), case.fusion_weights, plan.precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_are_exact(name: str, precision: str) -> None:
    case = TowerCase(replace(WORKLOADS[name].plan, precision=precision), 200)
    assert_exact(case.run(), case.exact(), case.fusion_weights, precision)
    rows = case.x.bfloat16()
    assert_exact(case.run(rows), case.exact(rows), case.fusion_weights, precision)


@pytest.mark.parametrize("name", WORKLOADS)
def test_bfloat16_probabilities_are_near_the_unrounded_ones(name: str) -> None:
    """The bound that users read: 1e-2 of the float64 model, roundings of weights and rows included."""
    case = TowerCase(replace(WORKLOADS[name].plan, precision="bfloat16"), 500)
    unrounded = TowerCase(WORKLOADS[name].plan, 500)
    assert (case.run().probs.double() - unrounded.exact().probs).abs().max() <= 1e-2


def activated(activation: str, values: Tensor) -> Tensor:
    """The activation itself, with a slope of 0.25: one input through one identity weight."""
    plan = Plan(1, (1,), (-1,), activation)
    weights = [
        torch.ones(shape) if name.endswith("weight") else torch.zeros(shape) for name, shape in plan.weight_shapes
    ]
    if activation == "prelu":
        weights[2].fill_(0.25)
    return ops.dense_scores(values[:, None], ops.pack_towers(weights, plan), plan, torch.ones(1)).logits[:, 0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_their_range(activation: str) -> None:
    """From -200 to 200, and near 0."""
    values = torch.cat((torch.linspace(-200, 200, 4001), torch.linspace(-4, 4, 4001), 10.0 ** torch.arange(-38, 0)))
    got = activated(activation, values).double()
    exact = reference.activate(activation, values.double(), torch.tensor(0.25, dtype=torch.float64))
    assert ((got - exact).abs() <= 3e-7 * (1 + exact.abs())).all()


@given(
    plan=plans(max_tasks=6),
    batch=batches,
    requests=st.integers(1, 9),
    fusion=fusions,
    per=st.sampled_from(WEIGHTS_PER),
    seed=seeds,
)
def test_request_form_has_the_bits_of_the_dense_form(
    plan: Plan, batch: int, requests: int, fusion: str, per: str, seed: int
) -> None:
    case = TowerCase(plan, batch, fusion, CALL, seed)
    split = int(torch.randint(0, plan.in_features + 1, (), generator=case.generator))
    offsets = random_offsets(batch, requests, case.generator)
    user = torch.randn(requests, split, generator=case.generator)
    item = case.x[:, split:]
    rows = {CALL: None, REQUEST: requests, CANDIDATE: batch}[per]
    weights = fusion_weights(plan, fusion, rows, case.generator)
    got = ops.request_scores(user, item, offsets, case.packed, plan, weights, fusion, per)

    owner = reference.request_of_candidates(offsets, batch)
    dense_weights, dense_per = (weights[owner], CANDIDATE) if per == REQUEST else (weights, per)
    if plan.precision == "float32":
        joined = torch.cat((user[owner], item), dim=1)
        assert same_bits(got, ops.dense_scores(joined, case.packed, plan, dense_weights, fusion, dense_per))
    doubles = [weight.double() for weight in case.weights]
    exact = reference.request_scores(
        user.double(), item.double(), offsets, doubles, plan, weights.double(), fusion, per
    )
    assert_exact(got, exact, weights, plan.precision)


@given(
    plan=plans(max_tasks=6),
    batch=batches,
    requests=st.integers(1, 5),
    dtype=st.sampled_from(TABLE_PRECISIONS),
    fusion=fusions,
    per=st.sampled_from(WEIGHTS_PER),
    seed=seeds,
)
def test_catalogue_form_is_exact(
    plan: Plan, batch: int, requests: int, dtype: str, fusion: str, per: str, seed: int
) -> None:
    case = TowerCase(plan, 0, fusion, CALL, seed)
    split = int(torch.randint(0, plan.in_features + 1, (), generator=case.generator))
    items = torch.randn(30, plan.in_features - split, generator=case.generator)
    user = torch.randn(requests, split, generator=case.generator)
    ids = torch.randint(0, 30, (batch,), generator=case.generator)
    offsets = random_offsets(batch, requests, case.generator)
    rows = {CALL: None, REQUEST: requests, CANDIDATE: batch}[per]
    weights = fusion_weights(plan, fusion, rows, case.generator)
    table, scales = ops.catalog_rows(items, case.packed, plan, dtype)

    doubles = [weight.double() for weight in case.weights]
    products = reference.catalog_rows(items.double(), doubles, plan)
    width = plan.hidden[0]
    held = table.double() * (scales.double()[:, None] if dtype == "int8" else 1.0)
    held = held.reshape(30, plan.tasks, -1)[..., :width]
    step = {"float32": 1e-5, "bfloat16": 2**-8, "int8": 1 / 120}[dtype]
    largest = products.abs().amax((1, 2), keepdim=True)
    slack = 0.0 if plan.precision == "float32" else 0.02  # a float32 at a rounding's edge, see testing
    assert ((held - products).abs() <= (step + slack) * (largest + 1)).all()

    arguments = (user, ids, offsets, table, scales, case.packed, plan, weights, fusion, per)
    got = ops.catalog_scores(*arguments)
    exact = reference.catalog_scores(user.double(), held[ids], offsets, doubles, plan, weights.double(), fusion, per)
    assert_exact(got, exact, weights, plan.precision)
    best = ops.catalog_topk(*arguments, 7)
    assert same_bits(best, reference.topk(got.score, offsets, 7))
    one = slice(batch // 2, batch // 2 + 1)  # alone as in company
    if batch and per == CALL:
        owner = reference.request_of_candidates(offsets, batch)[one]
        alone = ops.catalog_scores(user[owner], ids[one], torch.tensor([0, 1]), *arguments[3:])
        assert same_bits(alone, tuple(part[one] for part in got))


def test_ids_out_of_range_are_named() -> None:
    case = TowerCase(Plan(6, (5,), (-1, 0)), 0)
    table, scales = ops.catalog_rows(torch.randn(9, 4), case.packed, case.plan, "float32")
    for bad in (-1, 9, 2**40):
        ids = torch.tensor([0, 8, bad, 3])
        with pytest.raises(ValueError, match=rf"catalog_scores: ids\[2\] must be rows of the table, 0 to 8, got {bad}"):
            ops.catalog_scores(
                torch.zeros(1, 2), ids, torch.tensor([0, 4]), table, scales, case.packed, case.plan, torch.ones(2)
            )


@given(
    plan=plans(max_tasks=3), batch=batches, requests=st.integers(0, 9), k=st.sampled_from([1, 2, 7, 100]), seed=seeds
)
def test_topk_is_that_of_the_scores(plan: Plan, batch: int, requests: int, k: int, seed: int) -> None:
    case = TowerCase(plan, batch if requests else 0, seed=seed)
    x = case.x[torch.randint(0, max(len(case.x), 1), (len(case.x),), generator=case.generator)]  # repeats: ties
    if len(x):
        x[torch.rand(len(x), generator=case.generator) < 0.1] = float("nan")
    offsets = random_offsets(len(x), requests, case.generator)
    arguments = (case.packed, plan, case.fusion_weights, "additive", CALL)
    expected = reference.topk(ops.dense_scores(x, *arguments).score, offsets, k)
    assert same_bits(ops.dense_topk(x, offsets, *arguments, k), expected)

    split = plan.in_features // 2
    user = torch.randn(requests, split, generator=case.generator)
    scores = ops.request_scores(user, x[:, split:], offsets, *arguments).score
    best = ops.request_topk(user, x[:, split:], offsets, *arguments, k)
    assert same_bits(best, reference.topk(scores, offsets, k))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_topk_of_requests_that_cross_chunks(threads: int) -> None:
    """Large enough that threads share a request, and that a chunk holds many small ones."""
    case = TowerCase(Plan(8, (16,), (-1, 0)), 20_000)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for offsets in (
            [0, 20_000],
            [0, 9_999, 10_000, 10_000, 20_000],
            [*range(0, 20_000, 7), 20_000],
            [0, *range(5_000, 5_500, 3), 20_000],
        ):
            cut = torch.tensor(offsets)
            best = ops.dense_topk(case.x, cut, case.packed, case.plan, case.fusion_weights, k=50)
            assert same_bits(best, reference.topk(case.run().score, cut, 50))
    finally:
        torch.set_num_threads(before)


@given(plan=plans(max_tasks=4), batch=st.integers(1, 200), fusion=fusions, seed=seeds)
def test_batch_invariance(plan: Plan, batch: int, fusion: str, seed: int) -> None:
    """The same bits shuffled, alone, in pieces, and on any number of threads."""
    case = TowerCase(plan, batch, fusion, CALL, seed)
    whole = case.run()
    order = torch.randperm(batch, generator=case.generator)
    assert same_bits(case.run(case.x[order]), tuple(part[order] for part in whole))
    cut = int(order[0])
    pieces = [case.run(case.x[:cut]), case.run(case.x[cut:])]
    assert same_bits(tuple(torch.cat(parts) for parts in zip(*pieces, strict=True)), whole)
    assert same_bits(case.run(case.x[cut : cut + 1]), tuple(part[cut : cut + 1] for part in whole))
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert same_bits(case.run(), whole)
    torch.set_num_threads(before)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("head", ["residual", "conditional"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_isolation(activation: str, fusion: str, head: str, poison: float, precision: str) -> None:
    """A poisoned candidate leaves its neighbours' bits alone, and a NaN reaches all its own outputs."""
    switches = {"logit_residual": head == "residual", "non_increasing": head == "residual"}
    plan = Plan(7, (20, 5), (-1, 0, 1), activation, affine=True, head=head, precision=precision, **switches)
    case = TowerCase(plan, 50, fusion)
    clean = case.run()
    poisoned = case.x.clone()
    poisoned[17, 3] = poison
    got = case.run(poisoned)
    others = torch.arange(50) != 17
    assert same_bits(tuple(part[others] for part in got), tuple(part[others] for part in clean))
    if poison != poison:
        assert all(part[17].isnan().all() for part in got)
    elif precision == "float32":
        # An infinity becomes what the same arithmetic makes of it in float64; see the test below.
        assert torch.equal(got.probs[17].isnan(), case.exact(poisoned).probs[17].isnan())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_infinities(activation: str) -> None:
    """NaN of -inf where the formula has -inf * 0 (silu and gelu), a number or an infinity elsewhere."""
    values = torch.tensor([float("inf"), float("-inf")])
    got = activated(activation, values)
    assert torch.equal(got.isnan(), torch.tensor([False, activation in ("silu", "gelu", "gelu_tanh")]))
    exact = reference.activate(activation, values.double(), torch.tensor(0.25, dtype=torch.float64))
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_nan_in_fusion_weights_reaches_the_score_alone(fusion: str) -> None:
    case = TowerCase(Plan(6, (8,), (-1, 0)), 30, fusion, CANDIDATE)
    clean = case.run()
    case.fusion_weights[4, 1] = float("nan")
    got = case.run()
    others = torch.arange(30) != 4
    assert (
        got.score[4].isnan()
        and same_bits(got[:2], clean[:2])
        and same_bits((got.score[others],), (clean.score[others],))
    )


def test_multiplicative_fusion_of_impossible_tasks() -> None:
    """p = 0: to the power 0 it is 1, to a positive power 0, and no NaN appears."""
    plan = Plan(1, (1,), (-1, -1), "identity", logit_residual=False)
    weights = [
        torch.ones(shape) if name.endswith("weight") else torch.zeros(shape) for name, shape in plan.weight_shapes
    ]
    packed = ops.pack_towers(weights, plan)
    x = torch.tensor([[float("-inf")], [-1e30], [-200.0]])
    none = ops.dense_scores(x, packed, plan, torch.tensor([0.0, 0.0]), "multiplicative")
    some = ops.dense_scores(x, packed, plan, torch.tensor([0.0, 0.5]), "multiplicative")
    assert none.score.tolist() == [1, 1, 1]
    assert some.score[:2].tolist() == [0, 0] and abs(float(some.score[2]) - 3.7e-44) < 2e-44


def test_a_row_stride_of_any_size_is_read_in_place() -> None:
    case = TowerCase(Plan(33, (17,), (-1, 0)), 40)
    wide = torch.full((40, 50), float("nan"))
    wide[:, 5:38] = case.x
    assert same_bits(case.run(wide[:, 5:38]), case.run())
    assert same_bits(
        case.run(case.x[3].expand(10, 33)), tuple(part[3:4].expand(10, *part.shape[1:]) for part in case.run())
    )
    assert same_bits(case.run(wide[::2, 5:38]), tuple(part[::2] for part in case.run()))


@pytest.mark.parametrize("requests", [0, 1, 3])
def test_empty_batches(requests: int) -> None:
    case = TowerCase(Plan(5, (4,), (-1, 0)), 0)
    assert [tuple(part.shape) for part in case.run()] == [(0, 2), (0, 2), (0,)]
    offsets = torch.zeros(requests + 1, dtype=torch.int64)
    user, item = torch.randn(requests, 2), torch.randn(0, 3)
    arguments = (case.packed, case.plan, case.fusion_weights)
    assert ops.request_scores(user, item, offsets, *arguments).logits.shape == (0, 2)
    best = ops.request_topk(user, item, offsets, *arguments, k=4)
    assert best.scores.shape == (requests, 4) and best.scores.isnan().all() and (best.positions == -1).all()


def test_eight_threads_on_one_model() -> None:
    case = TowerCase(WORKLOADS["prerank3"].plan, 400)
    whole = case.run()
    wrong: list[int] = []

    def score(thread: int) -> None:
        for turn in range(20):
            rows = slice((thread * 31 + turn) % 200, 200 + (thread * 17 + turn * 5) % 200)
            if not same_bits(case.run(case.x[rows]), tuple(part[rows] for part in whole)):
                wrong.append(thread)

    threads = [threading.Thread(target=score, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_scores() -> None:
    """The child has none of its parent's worker threads."""
    import os

    case = TowerCase(Plan(64, (64,), (-1, 0)), 500)
    whole = case.run()
    child = os.fork()
    if child == 0:
        os._exit(0 if same_bits(case.run(), whole) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_rows_beyond_two_to_the_31_elements() -> None:
    """Addresses past 2^31 and 2^32 elements, through a row stride, without the memory: the rows are 5 GiB apart
    in a sparse mapping of which only the read pages exist."""
    import mmap

    stride = 1_300_000_000  # elements; two rows on: 2.6e9 > 2^31
    case = TowerCase(Plan(5, (16,), (-1, 0)), 3)
    length = (2 * stride + 5) * 4
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000))
    flat = torch.frombuffer(memory, dtype=torch.float32, count=2 * stride + 5)
    x = flat.as_strided((3, 5), (stride, 1))
    x.copy_(case.x)
    assert same_bits(case.run(x), case.run())


@pytest.mark.large
def test_more_than_two_to_the_31_elements() -> None:
    case = TowerCase(Plan(1024, (16,), (-1,)), 8)
    x = torch.zeros(2_200_000, 1024)
    x[-8:] = case.x
    assert same_bits(tuple(part[-8:] for part in case.run(x)), case.run())


def test_weights_per_names() -> None:
    assert WEIGHTS_PER == ("call", "request", "candidate")
