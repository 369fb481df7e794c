"""The feature modules: against plain PyTorch, in training, packed in every precision, compiled and exported."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from resflow_kernels import Additive, FeatureRanker, ResFlow, ops, reference
from resflow_kernels.contract import TABLE_PRECISIONS
from resflow_kernels.nn.feature import round_table
from resflow_kernels.ops import FeatureIds
from tests.support.comparisons import same_bits


def ranker() -> FeatureRanker:
    torch.manual_seed(0)
    shared = nn.Embedding(30, 16)
    embeddings = [nn.Embedding(20, 8), nn.EmbeddingBag(30, 5, mode="sum"), shared, shared]
    towers = ResFlow(45, (20, 8), ("a", "b", "c"), norm="batch", fusion=Additive((1, 2, 3)))
    return FeatureRanker(embeddings, towers, user_features=2).eval()


def ids(candidates: int = 50, seed: int = 1) -> FeatureIds:
    generator = torch.Generator().manual_seed(seed)
    single = torch.randint(0, 20, (candidates, 3), generator=generator)
    counts = torch.randint(0, 5, (candidates,), generator=generator)
    values = torch.randint(0, 30, (int(counts.sum()),), generator=generator)
    return FeatureIds(single, values, torch.cat((torch.tensor([0]), counts.cumsum(0))))


def by_hand(model: FeatureRanker, looked_up: FeatureIds) -> Tensor:
    """The input row by the embeddings themselves."""
    first, bag, shared, _ = model.embeddings
    single, values, offsets = looked_up
    parts = (first(single[:, 0]), bag(values, offsets[:-1]), shared(single[:, 1]), shared(single[:, 2]))
    return torch.cat(parts, dim=1)


def test_it_scores_as_the_embeddings_and_the_towers_do() -> None:
    model, looked_up = ranker(), ids()
    with torch.inference_mode():
        for got, expected in zip(model(looked_up), model.towers(by_hand(model, looked_up)), strict=True):
            torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)
        best = model.feature_topk(looked_up, 5)
        assert same_bits(best, model.towers.dense_topk(model.rows(looked_up), 5))


def test_requests() -> None:
    model = ranker()
    offsets, item = torch.tensor([0, 20, 50]), ops.one_id_each(ids().ids[:, 1:])
    user = FeatureIds(torch.tensor([[3], [19]]), torch.tensor([1, 29, 29]), torch.tensor([0, 3, 3]))
    joined = model.rows(
        FeatureIds(torch.zeros(2, 3, dtype=torch.int64).index_copy(1, torch.tensor([0]), user.ids), *user[1:])
    )
    split = (joined[:, :13], model.rows(ids())[:, 13:], offsets)
    with torch.inference_mode():
        got = model.feature_request_scores(user, item, offsets)
        assert same_bits(got, model.towers.request_scores(*split))
        best = model.feature_request_topk(user, item, offsets, 7)
        assert same_bits(best, model.towers.request_topk(*split, 7))
        model.double()  # by the reference
        for a, b in zip(model.feature_request_scores(user, item, offsets), got, strict=True):
            torch.testing.assert_close(a, b.double(), atol=1e-5, rtol=1e-4)


def test_it_trains() -> None:
    model, looked_up = ranker().train(), ids(400)
    with torch.no_grad():
        labels = (model.rows(looked_up)[:, :3] > 0).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = nn.functional.binary_cross_entropy_with_logits(model(looked_up).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    assert all(embedding.weight.grad is not None for embedding in model.embeddings)


def test_gradients_are_those_of_the_embeddings() -> None:
    model, looked_up = ranker().double().train(), ids()
    model.rows(looked_up).pow(2).sum().backward()
    got = [embedding.weight.grad.clone() for embedding in model.embeddings]
    model.zero_grad()
    by_hand(model, looked_up).pow(2).sum().backward()
    for own, embedding in zip(got, model.embeddings, strict=True):
        torch.testing.assert_close(own, embedding.weight.grad)


@pytest.mark.parametrize("dtype", TABLE_PRECISIONS)
def test_packed_tables(dtype: str) -> None:
    model, looked_up = ranker(), ids()
    packed = model.packed(dtype)
    assert not list(packed.parameters())
    tables = packed.feature_tables
    assert {str(table.dtype) for table in tables.tables} == {f"torch.{dtype}"}
    assert tables.tables[2] is tables.tables[3]
    bound = {"float32": 0.0, "bfloat16": 2**-8, "int8": 0.5 / 127 + 1e-6}[dtype]
    for table, original in zip(tables.tables, model.feature_tables.tables, strict=True):
        scales = round_table(original, dtype)[1]
        held = table.float() * (1.0 if scales is None else scales[:, None])
        assert ((held - original).abs() <= bound * original.abs().amax(1, keepdim=True)).all()
    with torch.inference_mode():
        probs, unrounded = packed(looked_up).probs, model(looked_up).probs
        assert (probs - unrounded).abs().max() <= {"float32": 0.0, "bfloat16": 0.01, "int8": 0.02}[dtype]
        twin = copy.deepcopy(packed)
        twin.load_state_dict(packed.state_dict())
        assert torch.equal(twin(looked_up).probs, probs)


def bags() -> FeatureRanker:
    """Means, sums, padding ids and single ids; the second bag is the user's."""
    torch.manual_seed(0)
    embeddings = [
        nn.Embedding(20, 8),
        nn.EmbeddingBag(30, 5, mode="mean", padding_idx=3),
        nn.EmbeddingBag(30, 6, mode="sum", padding_idx=0),
        nn.EmbeddingBag(30, 7, mode="mean"),
    ]
    return FeatureRanker(embeddings, ResFlow(26, (20, 8), ("a", "b")), user_features=2).eval()


def bag_ids(candidates: int = 40, lists: int = 3) -> FeatureIds:
    generator = torch.Generator().manual_seed(4)
    counts = torch.randint(0, 5, (lists * candidates,), generator=generator)
    values = torch.randint(0, 30, (int(counts.sum()),), generator=generator)
    values[::3] = 3
    single = torch.randint(0, 20, (candidates, 1), generator=generator)
    return FeatureIds(single, values, torch.cat((torch.tensor([0]), counts.cumsum(0))))


def by_bags(model: FeatureRanker, looked_up: FeatureIds) -> Tensor:
    """The input row by the embeddings themselves."""
    single, values, offsets = looked_up
    first, *rest = model.embeddings
    count = len(single)
    parts = [first(single[:, 0])]
    for at, bag in enumerate(rest):
        own = offsets[at * count : (at + 1) * count + 1]
        parts.append(bag(values[own[0] : own[-1]], own[:-1] - own[0]))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("packed", [False, True])
def test_bags_pool_as_pytorch_does(packed: bool) -> None:
    model, looked_up = bags(), bag_ids()
    with torch.inference_mode():
        expected = model.towers(by_bags(model, looked_up))
        for got, own in zip((model.packed() if packed else model)(looked_up), expected, strict=True):
            torch.testing.assert_close(got, own, atol=2e-6, rtol=1e-5)


def test_gradients_are_those_of_the_bags() -> None:
    model, looked_up = bags().double().train(), bag_ids()
    model.rows(looked_up).pow(2).sum().backward()
    got = [embedding.weight.grad.clone() for embedding in model.embeddings]
    model.zero_grad()
    by_bags(model, looked_up).pow(2).sum().backward()
    for own, embedding in zip(got, model.embeddings, strict=True):
        torch.testing.assert_close(own, embedding.weight.grad)


def test_gradients_of_the_weights_of_values() -> None:
    model, looked_up = bags().double().train(), bag_ids(6)
    weights = torch.rand(len(looked_up.values), dtype=torch.float64, requires_grad=True)

    def rows(weights: Tensor) -> Tensor:
        return reference.feature_rows(*looked_up, *model.feature_tables[:3], [1, 0, 1], [3, 0, -1], weights)

    assert torch.autograd.gradcheck(rows, (weights,))


def test_weights_of_values_in_requests_and_in_top_k() -> None:
    model, item = bags(), bag_ids(9, 2)
    item, offsets = item._replace(ids=item.ids[:, :0]), torch.tensor([0, 4, 9])
    user = FeatureIds(torch.tensor([[3], [19]]), torch.tensor([1, 3, 29]), torch.tensor([0, 2, 3]))
    weights = {"user_value_weights": torch.tensor([0.5, 1.0, 2.0]), "item_value_weights": torch.rand(len(item.values))}
    with torch.inference_mode():
        got = model.feature_request_scores(user, item, offsets, **weights)
        best = model.feature_request_topk(user, item, offsets, 2, **weights)
        split = model._split_rows(user, item, *weights.values())
        assert same_bits(got, model.towers.request_scores(*split, offsets))
        assert same_bits(best, model.towers.request_topk(*split, offsets, 2))
        own = torch.rand(len(bag_ids().values))
        rows = model.rows(bag_ids(), own)
        assert same_bits(model(bag_ids(), value_weights=own), model.towers(rows))
        assert same_bits(model.feature_topk(bag_ids(), 5, value_weights=own), model.towers.dense_topk(rows, 5))
        assert not torch.equal(rows, model.rows(bag_ids()))


def test_rounding_tables_keeps_zeros_and_poison() -> None:
    table = torch.tensor([[0.0, 0.0], [1.0, -2.0], [float("nan"), 1.0], [float("inf"), 1.0]])
    held, scales = round_table(table, "int8")
    assert scales is not None
    assert held.tolist()[:2] == [[0, 0], [64, -127]] and scales[:2].tolist() == [0.0, 2 / torch.tensor(127.0)]
    assert scales[2:].isnan().all()
    assert round_table(torch.zeros(3, 0), "int8")[0].shape == (3, 0)
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, int8, got 'float16'"):
        round_table(table, "float16")


@pytest.mark.parametrize("form", ["module", "packed", "bags"])
@pytest.mark.usefixtures("inductor")
def test_it_compiles_without_a_graph_break(form: str) -> None:
    model = bags() if form == "bags" else ranker() if form == "module" else ranker().packed("int8")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for candidates in (50, 7):
            looked_up = bag_ids(candidates) if form == "bags" else ids(candidates)
            for got, expected in zip(compiled(looked_up), model(looked_up), strict=True):
                torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("make", [ranker, bags])
def test_it_exports(tmp_path: Path, make: Callable[[], FeatureRanker]) -> None:
    model, looked_up = make().packed("bfloat16"), ids(9) if make is ranker else bag_ids(9)
    with torch.no_grad():
        exported = torch.export.export(model, (looked_up,))
        torch.export.save(exported, tmp_path / "model.pt2")
        loaded = torch.export.load(tmp_path / "model.pt2").module()
        assert same_bits(tuple(loaded(looked_up)), model(looked_up))


def test_a_call_that_wants_gradients_has_them() -> None:
    model = ranker()
    logits = model(ids()).logits
    logits.sum().backward()
    assert model.embeddings[0].weight.grad is not None


@pytest.mark.parametrize(
    ("embedding", "text"),
    [
        (nn.Linear(3, 45), r"embeddings\[0\] must be an nn.Embedding or an nn.EmbeddingBag, got Linear"),
        (nn.EmbeddingBag(3, 45, mode="max"), r"embeddings\[0\] must be of mode 'sum' or 'mean', got 'max'"),
        (nn.Embedding(3, 45, max_norm=1.0), "without max_norm, got 1.0"),
        (nn.Embedding(3, 44), "embeddings must be 45 columns in all, got 44"),
    ],
)
def test_embeddings_that_do_not_fit(embedding: nn.Module, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        FeatureRanker([embedding], ResFlow(45))  # type: ignore[list-item]


def test_user_features_are_counted() -> None:
    with pytest.raises(ValueError, match="user_features must be a number of tables, 0 to 1, got 2"):
        FeatureRanker([nn.Embedding(3, 45)], ResFlow(45), 2)
