"""The dense form on a GPU's kernels against the float64 reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resflow_kernels import ops, reference
from resflow_kernels.contract import ACTIVATIONS
from resflow_kernels.core.checks import precisions_of
from resflow_kernels.core.plan import Plan, chain
from resflow_kernels.testing import WORKLOADS, assert_exact, random_weights
from tests.support.cases import CALL, CANDIDATE, TowerCase
from tests.support.comparisons import same_bits
from tests.support.devices import Device
from tests.support.draws import fusions, gpu_batches, gpu_plans, seeds

PRECISIONS = precisions_of("cuda")


@given(plan=gpu_plans(), batch=gpu_batches, fusion=fusions, per=st.sampled_from([CALL, CANDIDATE]), seed=seeds)
@example(plan=Plan(1, (1,), (-1,)), batch=1, fusion="additive", per=CALL, seed=0)
@example(
    plan=Plan(33, (64, 16), chain(16), "gelu", precision="bfloat16"),
    batch=49,
    fusion="expected_value",
    per=CANDIDATE,
    seed=1,
)
def test_scores_are_exact(device: Device, plan: Plan, batch: int, fusion: str, per: str, seed: int) -> None:
    case = TowerCase(plan, batch, fusion, per, seed, ops=device)
    assert_exact(case.run(), case.exact(), case.fusion_weights, plan.precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_are_exact(device: Device, name: str, precision: str) -> None:
    """Few rows and many, and rows of the precision's own dtype: another kernel each. A GPU gets more of them."""
    plan = replace(WORKLOADS[name].plan, precision=precision)
    for batch in (1, 33) if device.emulated else (1, 16, 257, 3000, 40_000):
        case = TowerCase(plan, batch, seed=batch, ops=device)
        assert_exact(case.run(), case.exact(), case.fusion_weights, precision)
        if precision in ("bfloat16", "float16"):
            x = case.x.to(getattr(torch, precision))
            assert_exact(case.run(x), case.exact(x), case.fusion_weights, precision)


@given(
    tasks=st.integers(1, 4),
    width=st.sampled_from([8, 40, 64, 72, 200]),
    activation=st.sampled_from(ACTIVATIONS),
    switches=st.tuples(*[st.booleans()] * 3),
    batch=st.sampled_from([1, 60, 127, 128, 129, 200]),
    fusion=fusions,
    precision=st.sampled_from(["bfloat16", "float16"]),
    seed=seeds,
)
@settings(max_examples=12)
def test_towers_of_128_and_64(
    device: Device,
    tasks: int,
    width: int,
    activation: str,
    switches: tuple[bool, bool, bool],
    batch: int,
    fusion: str,
    precision: str,
    seed: int,
) -> None:
    """The paper's widths, rows of the precision: what the kernel for Hopper is for."""
    feature_residual, logit_residual, affine = switches
    plan = Plan(width, (128, 64), chain(tasks), activation, feature_residual, logit_residual, affine=affine)
    case = TowerCase(replace(plan, precision=precision), batch, fusion, seed=seed, ops=device)
    x = case.x.to(getattr(torch, precision))
    assert_exact(case.run(x), case.exact(x), case.fusion_weights, precision)


@pytest.mark.parametrize("rows", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_of_16_bits(device: Device, precision: str, rows: torch.dtype) -> None:
    """Read as they are: the scores are those of the same rows in float32, to the bit."""
    for width in (8, 37):  # aligned to 16 bytes, and not
        case = TowerCase(Plan(width, (40, 8), (-1, 0), precision=precision), 21, ops=device)
        x = case.x.to(rows)
        got = case.run(x)
        assert same_bits(got, case.run(x.float()))
        assert_exact(got, case.exact(x), case.fusion_weights, precision)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_their_range(device: Device, activation: str) -> None:
    """One input through one identity weight: the activation itself from -200 to 200, and near 0."""
    plan = Plan(1, (1,), (-1,), activation)
    weights = [
        torch.ones(shape) if name.endswith("weight") else torch.zeros(shape) for name, shape in plan.weight_shapes
    ]
    if activation == "prelu":
        weights[2].fill_(0.25)
    values = torch.cat((torch.linspace(-200, 200, 400), torch.linspace(-4, 4, 401), 10.0 ** torch.arange(-38, 0)))
    packed = ops.pack_towers(weights, plan)
    got = device.dense_scores(values[:, None], packed, plan, torch.ones(1)).logits[:, 0].double()
    exact = reference.activate(activation, values.double(), torch.tensor(0.25, dtype=torch.float64))
    assert ((got - exact).abs() <= 3e-7 * (1 + exact.abs())).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_packing_on_the_device_is_the_cpus(device: Device, precision: str) -> None:
    plan = Plan(37, (130, 5), chain(3), affine=True, precision=precision)
    weights = random_weights(plan)
    assert torch.equal(device.pack_towers(weights, plan), ops.pack_towers(weights, plan))


@settings(max_examples=5)
@given(tasks=st.sampled_from([17, 64]), layers=st.sampled_from([1, 16]), seed=seeds)
def test_plans_at_their_limits(device: Device, tasks: int, layers: int, seed: int) -> None:
    plan = Plan(5, (3,) * layers, chain(tasks) if layers == 1 else (-1,) * tasks, "relu")
    case = TowerCase(plan, 3, seed=seed, ops=device)
    assert_exact(case.run(), case.exact(), case.fusion_weights)


@pytest.mark.parametrize(("inputs", "hidden"), [(20_000, (3,)), (5, (2000, 3)), (2000, (2000,))])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_widths_beyond_shared_memory(device: Device, inputs: int, hidden: tuple[int, ...], precision: str) -> None:
    case = TowerCase(Plan(inputs, hidden, (-1, 0), "relu", precision=precision), 3, ops=device)
    assert_exact(case.run(), case.exact(), case.fusion_weights, precision)
