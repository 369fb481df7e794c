"""The dense form on Triton's kernels against the float64 reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resflow_kernels import ops, reference
from resflow_kernels.contract import ACTIVATIONS
from resflow_kernels.convert import from_keras
from resflow_kernels.core.checks import precisions_of
from resflow_kernels.core.plan import Plan, chain
from resflow_kernels.testing import WORKLOADS, assert_exact
from tests.support.cases import CALL, CANDIDATE, TowerCase
from tests.support.comparisons import same_bits
from tests.support.devices import Device
from tests.support.draws import fusions, gpu_batches, gpu_plans, seeds
from tests.support.files import DATA

PRECISIONS = precisions_of("cuda")
TREE = Plan(20, (130, 5), (-1, 0, 0, 1), "tanh", non_increasing=True)


@settings(max_examples=15)
@given(plan=gpu_plans(), batch=gpu_batches, fusion=fusions, per=st.sampled_from([CALL, CANDIDATE]), seed=seeds)
@example(plan=Plan(1, (1,), (-1,)), batch=1, fusion="additive", per=CALL, seed=0)
@example(
    plan=Plan(33, (64, 16), chain(16), "gelu", precision="bfloat16"),
    batch=49,
    fusion="expected_value",
    per=CANDIDATE,
    seed=1,
)
@example(plan=replace(TREE, precision="float16"), batch=33, fusion="multiplicative", per=CALL, seed=2)
def test_scores_are_exact(device: Device, plan: Plan, batch: int, fusion: str, per: str, seed: int) -> None:
    case = TowerCase(plan, batch, fusion, per, seed, ops=device)
    assert_exact(case.run(), case.exact(), case.fusion_weights, plan.precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_are_exact(device: Device, name: str, precision: str) -> None:
    plan = replace(WORKLOADS[name].plan, precision=precision)
    for batch in (9,) if device.emulated else (1, 16, 257, 3000, 40_000):
        case = TowerCase(plan, batch, seed=batch, ops=device)
        assert_exact(case.run(), case.exact(), case.fusion_weights, precision)


@pytest.mark.parametrize("rows", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_of_16_bits(device: Device, precision: str, rows: torch.dtype) -> None:
    """Read as they are: the scores are those of the same rows in float32."""
    for width in (8, 37):  # aligned to 16 bytes, and not
        case = TowerCase(Plan(width, (40, 8), (-1, 0), precision=precision), 21, ops=device)
        x = case.x.to(rows)
        assert_exact(case.run(x), case.exact(x), case.fusion_weights, precision)


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


@pytest.mark.parametrize(("tasks", "layers"), [(64, 1), (17, 1), (2, 16)])
def test_plans_at_their_limits(device: Device, tasks: int, layers: int) -> None:
    case = TowerCase(Plan(5, (3,) * layers, chain(tasks), "relu"), 3, ops=device)
    assert_exact(case.run(), case.exact(), case.fusion_weights)


@pytest.mark.parametrize(("inputs", "hidden"), [(2000, (3,)), (5, (600, 3)), (130, (300,))])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_wide_layers(device: Device, inputs: int, hidden: tuple[int, ...], precision: str) -> None:
    case = TowerCase(Plan(inputs, hidden, (-1, 0), "relu", precision=precision), 3, ops=device)
    assert_exact(case.run(), case.exact(), case.fusion_weights, precision)


def test_more_tiles_than_programs(device: Device) -> None:
    """A program of the forest kernel takes several tiles, and its part of the workspace serves all."""
    from resflow_kernels.triton import launch

    case = TowerCase(TREE, 70, ops=device)
    whole = case.run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "FOREST_PROGRAMS", 2)
        assert same_bits(case.run(), whole)


def test_the_kernels_agree(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain through the forest kernel as through its own."""
    from resflow_kernels.triton import configs

    for precision in PRECISIONS:
        case = TowerCase(Plan(70, (40, 20, 8), (-1, 0, -1, 2), affine=True, precision=precision), 40, ops=device)
        own = case.run()
        with monkeypatch.context() as patch:
            patch.setattr(configs, "CHAIN_LAYERS", 0)
            assert_exact(case.run(), type(own)(*(part.double() for part in own)), case.fusion_weights, precision)


@pytest.mark.parametrize("file", ["ecomm_chain_2tasks.npz", "progressive_logits_9tasks.npz"])
def test_the_authors_outputs_are_reproduced(device: Device, file: str) -> None:
    with np.load(DATA / file) as golden:
        weights = {name: golden[name] for name in golden.files if name.startswith("w.")}
        x, logits = torch.from_numpy(golden["x"]), torch.from_numpy(golden["logits"]).double()
    model = from_keras(weights).packed()
    got = device.dense_scores(x, model.packed_weights, model.plan, *model._fusion(None, "call"))
    assert ((got.logits.double() - logits).abs() <= 1e-5 * (1 + logits.abs())).all()
