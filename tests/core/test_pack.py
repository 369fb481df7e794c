"""Packed matrices in every precision, beside PyTorch's own rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from resflow_kernels import ops, reference
from resflow_kernels.contract import PACKED
from resflow_kernels.core.plan import Plan
from resflow_kernels.reference.unpack import panel_matrix
from resflow_kernels.testing import random_weights


def matrix_in(packed: Tensor, plan: Plan) -> Tensor:
    """The first layer's matrix of the first task with its padding, as it is stored."""
    floats = packed[PACKED["header_bytes"] :][: 4 * plan.packed_layout.task_floats].view(torch.float32)
    return panel_matrix(floats, plan.packed_layout.layers[0], plan.precision)


def special_values() -> Tensor:
    """What rounding can get wrong: ties, the ends of ranges, subnormal numbers, and what is no number."""
    steps = 2.0 ** torch.arange(-40, 18, dtype=torch.float64)
    near = torch.cat([steps * (1 + share) for share in (0, 2**-11, 2**-11 + 2**-20, 2**-11 - 2**-20, 3 * 2**-11)])
    ends = [65504, 65519.99, 65520, 65536, 3.4e38, 2.0**-24, 2.0**-25, 1.5 * 2**-24, 5.96e-8, 0, 1e-45]
    no_numbers = [float("inf"), float("nan")]
    values = torch.cat((near, torch.tensor([*ends, *no_numbers], dtype=torch.float64))).float()
    values = torch.cat((values, -values, torch.randn(2000, generator=torch.Generator().manual_seed(0))))
    return values


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_16_bits_are_rounded_as_torch_rounds(precision: str) -> None:
    dtype = getattr(torch, precision)
    values = special_values()
    plan = Plan(len(values), (3,), (-1,), "relu", precision=precision)
    weights = random_weights(plan)
    weights[0][:, 1] = values
    held = matrix_in(ops.pack_towers(weights, plan), plan)
    column, expected = held[: len(values), 1], values.to(dtype)
    assert torch.equal(column.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(column[number].view(torch.int16), expected[number].view(torch.int16))
    assert not held[len(values) :].any() and not held[:, 3:].any()


def test_tensorfloat32_keeps_10_bits_of_mantissa_to_the_nearest() -> None:
    values = special_values()
    plan = Plan(len(values), (3,), (-1,), "relu", precision="tensorfloat32")
    weights = random_weights(plan)
    weights[0][:, 1] = values
    held = matrix_in(ops.pack_towers(weights, plan), plan)
    column = held[: len(values), 1]
    assert torch.equal(column.isnan(), values.isnan())
    number = values.isfinite()
    got, exact = column[number].double(), values[number].double()
    assert not (column[number].view(torch.int32) & 0x1FFF).any()
    step = 2.0 ** (torch.frexp(exact)[1].double() - 11)
    step = step.clamp(min=2.0**-136)  # of subnormal numbers
    near = exact.abs() < torch.finfo(torch.float32).max * (1 - 2**-12)
    assert ((got - exact).abs() <= step / 2)[near].all()
    ties = ((got - exact).abs() == step / 2) & near
    assert ties.any() and (got.abs() > exact.abs())[ties].all()  # away from zero
    assert torch.equal(column[~number].nan_to_num(7.0), values[~number].nan_to_num(7.0))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "tensorfloat32"])
@pytest.mark.parametrize("width", [5, 64, 65, 130])
def test_panels_hold_what_the_reference_rounds_to(precision: str, width: int) -> None:
    plan = Plan(37, (width, 4), (-1, 0), precision=precision)
    weights = random_weights(plan)
    held = matrix_in(ops.pack_towers(weights, plan), plan)[:37, :width]
    assert torch.equal(held.float(), reference.rounded(weights[0], precision))
