"""What a candidate's scores may depend on: itself alone. Batches, NaN, bad input."""

from __future__ import annotations

import mmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resflow_kernels import ops
from resflow_kernels.contract import ACTIVATIONS, FUSIONS
from resflow_kernels.core.checks import precisions_of
from resflow_kernels.core.plan import Plan
from resflow_kernels.testing import random_weights
from tests.support.cases import CALL, CANDIDATE, TowerCase
from tests.support.comparisons import same_bits
from tests.support.devices import Device
from tests.support.draws import fusions, gpu_plans, seeds


@settings(max_examples=8)
@given(plan=gpu_plans(), batch=st.integers(1, 150), fusion=fusions, seed=seeds)
def test_batch_invariance(device: Device, plan: Plan, batch: int, fusion: str, seed: int) -> None:
    """The same bits shuffled, alone and in pieces."""
    case = TowerCase(plan, batch, fusion, CALL, seed, ops=device)
    whole = case.run()
    order = torch.randperm(batch, generator=case.generator)
    assert same_bits(case.run(case.x[order]), tuple(part[order] for part in whole))
    cut = int(order[0])
    pieces = [case.run(case.x[:cut]), case.run(case.x[cut:])]
    assert same_bits(tuple(torch.cat(parts) for parts in zip(*pieces, strict=True)), whole)
    assert same_bits(case.run(case.x[cut : cut + 1]), tuple(part[cut : cut + 1] for part in whole))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("head", ["residual", "conditional"])
def test_isolation(device: Device, activation: str, fusion: str, head: str) -> None:
    """A poisoned candidate leaves its neighbours' bits alone, and a NaN reaches all its own outputs."""
    precision = precisions_of("cuda")[(ACTIVATIONS.index(activation) + FUSIONS.index(fusion)) % 4]
    switches = {"logit_residual": head == "residual", "non_increasing": head == "residual"}
    parents = (-1, 0, 1) if fusion != "additive" else (-1, 0, 0)  # the chain kernel and the forest kernel
    plan = Plan(7, (20, 5), parents, activation, affine=True, head=head, precision=precision, **switches)
    case = TowerCase(plan, 50, fusion, ops=device)
    clean = case.run()
    for poison in (float("nan"), float("inf"), float("-inf")):
        poisoned = case.x.clone()
        poisoned[17, 3] = poison
        got = case.run(poisoned)
        others = torch.arange(50) != 17
        assert same_bits(tuple(part[others] for part in got), tuple(part[others] for part in clean))
        if poison != poison:
            assert all(part[17].isnan().all() for part in got)
        else:
            exact = case.exact(poisoned)
            same = torch.equal(got.probs[17].isnan(), exact.probs[17].isnan())
            assert same or activation in ("silu", "gelu", "gelu_tanh")


@pytest.mark.parametrize("fusion", FUSIONS)
def test_nan_in_fusion_weights_reaches_the_score_alone(device: Device, fusion: str) -> None:
    case = TowerCase(Plan(6, (8,), (-1, 0)), 30, fusion, CANDIDATE, ops=device)
    clean = case.run()
    case.fusion_weights[4, 1] = float("nan")
    got = case.run()
    others = torch.arange(30) != 4
    assert got.score[4].isnan() and same_bits(got[:2], clean[:2])
    assert same_bits((got.score[others],), (clean.score[others],))


def test_multiplicative_fusion_of_impossible_tasks(device: Device) -> None:
    """p = 0: to the power 0 it is 1, to a positive power 0, and no NaN appears."""
    plan = Plan(1, (1,), (-1, -1), "identity", logit_residual=False)
    weights = [
        torch.ones(shape) if name.endswith("weight") else torch.zeros(shape) for name, shape in plan.weight_shapes
    ]
    packed = ops.pack_towers(weights, plan)
    x = torch.tensor([[float("-inf")], [-1e30], [-200.0]])
    none = device.dense_scores(x, packed, plan, torch.tensor([0.0, 0.0]), "multiplicative")
    some = device.dense_scores(x, packed, plan, torch.tensor([0.0, 0.5]), "multiplicative")
    assert none.score.tolist() == [1, 1, 1] and some.score[:2].tolist() == [0, 0]
    assert 0 <= float(some.score[2]) < 6e-44


def test_a_row_stride_of_any_size_is_read_in_place(device: Device) -> None:
    case = TowerCase(Plan(33, (17,), (-1, 0)), 40, ops=device)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        rest = (case.packed, case.plan, case.fusion_weights)
        return ops.dense_scores(x, *map(device.tensor, rest[:1]), rest[1], device.tensor(rest[2]), backend="triton")

    wide = device.tensor(torch.full((40, 50), float("nan")))
    wide[:, 5:38] = device.tensor(case.x)
    whole = run(device.tensor(case.x))
    assert same_bits(run(wide[:, 5:38]), whole)
    assert same_bits(run(wide[::2, 5:38]), tuple(part[::2] for part in whole))
    assert same_bits(run(wide[3, 5:38].expand(10, 33)), tuple(part[3:4].expand(10, *part.shape[1:]) for part in whole))


def test_rows_beyond_two_to_the_31_elements(device: Device) -> None:
    """Addresses past 2^31 and 2^32 elements, through a row stride, in a mapping of which only the read pages exist."""
    if not device.emulated:
        pytest.skip("a GPU's memory has no pages that do not exist")
    stride = 1_300_000_000
    case = TowerCase(Plan(5, (16,), (-1, 0)), 3, ops=device)
    memory = mmap.mmap(-1, (2 * stride + 5) * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # no reserve
    x = torch.frombuffer(memory, dtype=torch.float32, count=2 * stride + 5).as_strided((3, 5), (stride, 1))
    x.copy_(case.x)
    assert same_bits(case.run(x), case.run())


@pytest.mark.parametrize("requests", [0, 1, 3])
def test_empty_batches(device: Device, requests: int) -> None:
    case = TowerCase(Plan(5, (4,), (-1, 0)), 0, ops=device)
    assert [tuple(part.shape) for part in case.run()] == [(0, 2), (0, 2), (0,)]
    offsets = torch.zeros(requests + 1, dtype=torch.int64)
    user, item = torch.randn(requests, 2), torch.randn(0, 3)
    arguments = (case.packed, case.plan, case.fusion_weights)
    assert device.request_scores(user, item, offsets, *arguments).logits.shape == (0, 2)
    best = device.request_topk(user, item, offsets, *arguments, k=4)
    assert best.scores.shape == (requests, 4) and best.scores.isnan().all() and (best.positions == -1).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_of_another_plan_score_nan(device: Device, precision: str) -> None:
    """Of the same size, so that only the header tells."""
    plan, other = (Plan(6, (8,), (-1, 0), activation, precision=precision) for activation in ("relu", "tanh"))
    packed = ops.pack_towers(random_weights(other), other)
    got = device.dense_scores(torch.zeros(5, 6), packed, plan, torch.ones(2))
    assert all(part.isnan().all() for part in got)
    table, _ = device.catalog_rows(torch.zeros(3, 4), packed, plan, "float32")
    assert table.isnan().all()


def test_bad_arguments_are_named(device: Device) -> None:
    plan = Plan(6, (8,), (-1, 0))
    packed = ops.pack_towers(random_weights(plan), plan)
    x, weights = torch.zeros(5, 6), torch.ones(2)
    int8 = Plan(6, (8,), (-1, 0), precision="int8")
    known = "float32, bfloat16, float16, tensorfloat32"
    for arguments, message in (
        ((torch.zeros(5, 7), packed, plan, weights), r"x must be a matrix with 6 columns, got \[5, 7\]"),
        ((x.double(), packed, plan, weights), "x must be float32, bfloat16 or float16, got float64"),
        ((torch.zeros(6, 5).T, packed, plan, weights), "x must be contiguous in its last dimension"),
        ((x, packed[:-1], plan, weights), rf"packed must be the {plan.packed_bytes} bytes of weights packed for"),
        ((x, packed.float(), plan, weights), "packed must be uint8, got float32"),
        ((x, packed, plan, torch.ones(3)), r"fusion_weights must be a vector of 2, got \[3\]"),
        (
            (x, packed, plan, weights, "best"),
            "fusion must be one of additive, multiplicative, expected_value, got 'best'",
        ),
        ((x, packed, int8, weights), f"plan precision must be one of {known} on a GPU, got int8"),
    ):
        with pytest.raises(ValueError, match=f"dense_scores: {message}|computes in {known}, not in int8"):
            device.dense_scores(*arguments)
