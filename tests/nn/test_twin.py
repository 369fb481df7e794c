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


def served_logits(twin: TwinTower, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Logits of all pairs through a float32 table."""
    table = twin.build_table(items, "float32")
    ids, offsets = torch.arange(len(items)).repeat(len(users)), torch.arange(len(users) + 1) * len(items)
    return twin.twin_ids_scores(users, ids, offsets, table).logits


@pytest.mark.parametrize("linear_last", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_sides_of_their_own_widths_cosines_and_a_temperature(linear_last: bool, normalize: bool) -> None:
    widths = {"user_hidden": (24, 16, 12), "item_hidden": (12,)}
    twin = model(linear_last=linear_last, normalize=normalize, temperature=0.1, **widths)
    users, items = torch.randn(4, 7), torch.randn(9, 5)
    own = twin(users.repeat_interleave(9, 0), items.repeat(4, 1)).logits
    torch.testing.assert_close(served_logits(twin, users, items), own, atol=1e-5, rtol=1e-5)
    # The same by hand, of the first task, which has no parent.
    u, v = users, items
    for layer in twin.user_towers[0]:
        u = layer(u)
    for layer in twin.item_towers[0]:
        v = layer(v)
    expected = torch.cosine_similarity(u[:, None], v[None], dim=2) if normalize else u @ v.T
    torch.testing.assert_close(own[:, 0].reshape(4, 9), expected / 0.1)
    assert (u.min() < 0) or not linear_last
    last = twin.user_towers[0][-1]
    assert (last.norm is None and last.activation_name == "identity") == linear_last


def test_one_task_ranks_by_logits_that_saturate() -> None:
    torch.manual_seed(1)
    twin = TwinTower(7, 5, (16, 12), ("click",), linear_last=True, normalize=True, temperature=0.005).eval()
    users, items = torch.randn(3, 7), torch.randn(500, 5)
    for dtype in TABLE_PRECISIONS:
        table = twin.build_table(items, dtype)
        ids, offsets = torch.arange(500).repeat(3), torch.arange(4) * 500
        scores = twin.twin_ids_scores(users, ids, offsets, table)
        best = twin.twin_topk(users, table, 100)
        assert (scores.probs == 1).sum() > 60  # probabilities alone do not rank these
        found = scores.logits.reshape(3, 500).gather(1, best.positions)
        top = scores.logits.reshape(3, 500).sort(dim=1, descending=True).values[:, :100]
        torch.testing.assert_close(found, top, atol=1e-4, rtol=0)
        assert (found.diff(dim=1) <= 0).all()
        assert torch.equal(best.scores, scores.score.reshape(3, 500).gather(1, best.positions))
        lists = twin.twin_ids_topk(users, ids, offsets, table, 100)
        assert torch.equal(lists.positions, best.positions)


def test_nan_and_padding_come_last_of_one_task() -> None:
    torch.manual_seed(1)
    twin = TwinTower(7, 5, (12,), ("click",), linear_last=True).eval()
    items = torch.randn(5, 5)
    items[2] = torch.nan
    users = torch.cat([torch.randn(2, 7), torch.full((1, 7), torch.nan), torch.zeros(1, 7)])
    table = twin.build_table(items, "float32")
    best = twin.twin_topk(users, table, 7)
    assert (best.positions[:, 5:] == -1).all() and best.scores[:, 4:].isnan().all()
    assert best.positions[[0, 1, 3], 4].tolist() == [2] * 3 and best.positions[2].tolist() == [0, 1, 2, 3, 4, -1, -1]
    assert best.scores[[0, 1, 3], :4].isfinite().all() and best.scores[2].isnan().all()
    empty = twin.twin_ids_topk(users, torch.tensor([4, 2, 0]), torch.tensor([0, 0, 3, 3, 3]), table, 2)
    assert empty.positions[[0, 2, 3]].tolist() == [[-1, -1]] * 3
    assert sorted(empty.positions[1].tolist()) == [0, 2]


def test_a_model_around_ones_own_towers_shares_them() -> None:
    user = torch.nn.Sequential(torch.nn.Linear(7, 20), torch.nn.Tanh(), torch.nn.Linear(20, 6))
    item = torch.nn.Linear(5, 6)
    twin = TwinTower.from_layers(["click"], [user], [item], normalize=True, temperature=0.5).eval()
    users, items = torch.randn(3, 7), torch.randn(8, 5)
    expected = torch.cosine_similarity(user(users)[:, None], item(items)[None], dim=2).flatten() / 0.5
    torch.testing.assert_close(served_logits(twin, users, items)[:, 0], expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        item.weight.mul_(-1)
    assert not torch.allclose(served_logits(twin, users, items)[:, 0], expected)
    twin(users, items[:3]).logits.sum().backward()
    assert user[0].weight.grad is not None and item.weight.grad is not None


def test_from_layers_is_the_same_model() -> None:
    whole = model(normalize=True, temperature=0.3)
    settings = {"parents": whole.parents, "feature_residual": True, "fusion": whole.fusion}
    same = TwinTower.from_layers(
        whole.tasks, list(whole.user_towers), list(whole.item_towers), normalize=True, temperature=0.3, **settings
    ).eval()
    user, item = torch.randn(6, 7), torch.randn(6, 5)
    assert torch.equal(same(user, item).score, whole(user, item).score)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"user_hidden": (8,), "item_hidden": (4,)}, r"must end in one width, got \(8,\) and \(4,\)"),
        ({"item_hidden": ()}, r"must end in one width, got \(16, 12\) and \(\)"),
        ({"temperature": 0}, "temperature must be a number above 0, got 0"),
    ],
)
def test_bad_sides_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        model(**settings)
    with pytest.raises(ValueError, match=r"item_towers must be one per task \(1\), got 0"):
        TwinTower.from_layers(["a"], [torch.nn.Linear(2, 2)], [])
