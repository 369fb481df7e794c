"""Canonical weights are bitwise the same after a module has taken them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from resflow_kernels import Additive
from resflow_kernels.convert import from_canonical
from resflow_kernels.core.plan import Plan
from resflow_kernels.testing import random_weights
from tests.support.draws import plans, seeds


@given(plan=plans(max_tasks=4), seed=seeds)
def test_weights_survive(plan: Plan, seed: int) -> None:
    weights = random_weights(plan, seed)
    model = from_canonical(plan, [weight.numpy() for weight in weights], fusion=Additive())
    assert model.plan == plan
    assert all(torch.equal(a, b) for a, b in zip(model.canonical_weights(), weights, strict=True))


def test_bad_weights_are_named() -> None:
    plan = Plan(6, (4,), (-1, 0))
    weights = random_weights(plan)
    with pytest.raises(ValueError, match="weights must be the 10 tensors of this plan, got 9"):
        from_canonical(plan, weights[:-1])
    with pytest.raises(ValueError, match=r"weights\[1\] \(task 0, layer 0, bias\) must be of shape \[4\], got \[3\]"):
        from_canonical(plan, [weights[0], weights[1][:3], *weights[2:]])
    with pytest.raises(ValueError, match=r"weights\[0\] \(task 0, layer 0, weight\) must be float32, got float64"):
        from_canonical(plan, [weights[0].double(), *weights[1:]])
    with pytest.raises(ValueError, match="tasks must be 2 names, got 1"):
        from_canonical(plan, weights, ("only",))
