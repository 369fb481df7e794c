"""TwinTower: what it trains is what its tables serve."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from resflow_kernels import Additive, TwinTable, TwinTower, reference
from resflow_kernels.contract import TABLE_PRECISIONS

# Of probabilities: 8 bits on both sides, 8 bits of the items alone, float32.
ROUNDING = {"float32": 2e-6, "bfloat16": 4e-3, "int8": 1e-2}


def model(**settings: Any) -> TwinTower:
    torch.manual_seed(0)
    made = TwinTower(7, 5, (16, 12), ("a", "b", "c"), **{"norm": "batch", "fusion": Additive((1, 2, 3)), **settings})
    return made.eval()


@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
@pytest.mark.parametrize("parents", [None, (-1, 0, 0), (-1, -1, 1)])
@pytest.mark.parametrize("non_increasing", [False, True])
def test_tables_serve_what_the_module_computes(dtype: str, parents: Any, non_increasing: bool) -> None:
    twin = model(parents=parents, non_increasing=non_increasing)
    users, items = torch.randn(3, 7), torch.randn(40, 5)
    table = twin.build_table(items, dtype, batch=16)
    ids, offsets = torch.arange(40).repeat(3), torch.tensor([0, 40, 80, 120])
    expected = twin(users.repeat_interleave(40, 0), items.repeat(3, 1))
    got = twin.twin_ids_scores(users, ids, offsets, table)
    torch.testing.assert_close(got.probs, expected.probs, atol=ROUNDING[dtype], rtol=0)
    best = twin.twin_topk(users, table, 7)
    assert torch.equal(best.positions, reference.topk(got.score, offsets, 7).positions)
    assert torch.equal(twin.twin_ids_topk(users, ids, offsets, table, 7).positions, best.positions)
    if non_increasing:
        for task, parent in enumerate(twin.parents):
            assert parent < 0 or (expected.probs[:, task] <= expected.probs[:, parent]).all()


def test_the_residuals_are_switches() -> None:
    user, item = torch.randn(30, 7), torch.randn(30, 5)
    scores = {}
    for feature in (False, True):
        for logit in (False, True):
            twin = model(feature_residual=feature, logit_residual=logit)
            scores[feature, logit] = twin(user, item).logits
            table = twin.build_table(item, "float32")
            served = twin.twin_ids_scores(user, torch.arange(30), torch.arange(31), table).logits
            torch.testing.assert_close(served, scores[feature, logit], atol=1e-5, rtol=1e-5)
    # Without logit residual a task's logit is its own; the chain adds them up.
    torch.testing.assert_close(scores[True, True], scores[True, False].cumsum(1), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(a[:, 0], scores[False, False][:, 0]) for a in scores.values())
    assert not torch.allclose(scores[False, False][:, 1], scores[True, False][:, 1])


def test_training_moves_both_sides() -> None:
    twin = model().train()
    user, item = torch.randn(20, 7), torch.randn(20, 5)
    twin(user, item).logits.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in twin.parameters())


def test_weights_of_requests_and_items() -> None:
    twin = model()
    users, items = torch.randn(2, 7), torch.randn(30, 5)
    table = twin.build_table(items, "float32")
    price = torch.rand(30, 3)
    best = twin.twin_topk(users, table, 30, price, "candidate")
    exact = twin(users.repeat_interleave(30, 0), items.repeat(2, 1), price.repeat(2, 1)).score.reshape(2, 30)
    torch.testing.assert_close(best.scores, exact.gather(1, best.positions), atol=1e-5, rtol=1e-5)
    weights = torch.tensor([[1.0, 0, 0], [0, 0, 5.0]])
    each = twin.twin_topk(users, table, 3, weights, "request")
    for request in range(2):
        own = twin.twin_topk(users[request : request + 1], table, 3, weights[request])
        assert torch.equal(own.positions[0], each.positions[request])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"activation": "swish"}, "activation must be one of identity"),
        ({"norm": "layer"}, "norm must be None or 'batch', got 'layer'"),
        ({"parents": (-1,)}, r"parents must be one per task \(3\), got 1"),
        ({"logit_residual": False, "non_increasing": True}, "non_increasing must be False without a logit residual"),
        ({"fusion": Additive((1, 2))}, "Additive: weights must be 3 numbers"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        model(**settings)


def test_bad_calls_are_named() -> None:
    twin = model()
    table = twin.build_table(torch.randn(4, 5))
    assert isinstance(table, TwinTable) and table.rows.dtype == torch.int8
    with pytest.raises(ValueError, match="twin_topk: k must be at least 1, got 0"):
        twin.twin_topk(torch.randn(1, 7), table, 0)
    with pytest.raises(ValueError, match="weights_per must be one of call, request, candidate, got 'item'"):
        twin.twin_topk(torch.randn(1, 7), table, 1, torch.ones(3), "item")
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, int8, got 'int4'"):
        twin.build_table(torch.randn(4, 5), "int4")
