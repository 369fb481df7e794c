"""Pooled tables in front of a fused model: EmbeddingBags, masked sums and means of padded ids, keyed lists."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from resflow_kernels import fuse

ROWS, WIDTH, LENGTH = 30, 5, 7
BATCHES = (1, 2, 9, 100)


class Ranker(nn.Module):
    """A table of one id and a pooled one before a tower, with numeric columns between them."""

    def __init__(self, pool: Callable[[nn.Embedding, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.user, self.seen = nn.Embedding(ROWS, 4), nn.Embedding(ROWS, WIDTH)
        self.tower = nn.Sequential(nn.Linear(4 + 3 + WIDTH, 16), nn.ReLU(), nn.Linear(16, 2))
        self.pool = pool

    def forward(self, user: Tensor, numeric: Tensor, seen: Tensor, other: Tensor) -> Tensor:
        rows = [self.user(user), numeric, self.pool(self.seen, seen, other)]
        return torch.sigmoid(self.tower(torch.cat(rows, dim=1)))


def padded_ids(batch: int, seed: int = 0) -> Tensor:
    """Ids of 1 and more, followed by zeros; the first list has none."""
    generator = torch.Generator().manual_seed(1000 * seed + batch)
    lengths = torch.randint(0, LENGTH + 1, (batch, 1), generator=generator)
    lengths[0] = 0
    ids = torch.randint(1, ROWS, (batch, LENGTH), generator=generator)
    return torch.where(torch.arange(LENGTH) < lengths, ids, 0)


def ranker_inputs(batch: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    user, numeric = torch.randint(0, ROWS, (batch,), generator=generator), torch.randn(batch, 3, generator=generator)
    return user, numeric, padded_ids(batch), padded_ids(batch, 1)


def assert_fuses_like(model: nn.Module, inputs: Callable[[int], tuple[Any, ...]], tables: Sequence[str]) -> nn.Module:
    """The report names the tables, and the fused and the packed model give what the model does."""
    fused = fuse(model, inputs(9))
    (region,) = fuse.explain(model, inputs(9)).regions
    assert region.tables == list(tables)
    for table in tables:
        assert table in str(fuse.explain(model, inputs(9)))
    packed = fuse.packed(fused)
    with torch.inference_mode():
        for batch in BATCHES:
            given = inputs(batch)
            expected = model(*given)
            torch.testing.assert_close(fused(*given), expected, atol=1e-6, rtol=1e-6, equal_nan=True)
            torch.testing.assert_close(packed(*given), expected, atol=1e-6, rtol=1e-6, equal_nan=True)
    return fused


def mask(ids: Tensor) -> Tensor:
    return (ids != 0).float()


def deep_mask(ids: Tensor) -> Tensor:
    return mask(ids).unsqueeze(-1)


def lengths(ids: Tensor) -> Tensor:
    return (ids != 0).sum(1)


def by_length(ids: Tensor) -> Tensor:
    return (torch.arange(LENGTH)[None, :] < lengths(ids)[:, None]).float().unsqueeze(-1)


# How users write it, and what is done with the table.
POOLS: dict[str, tuple[Callable[[nn.Embedding, Tensor, Tensor], Tensor], str]] = {
    "sum": (lambda t, a, b: t(a).sum(1), "sum"),
    "mean": (lambda t, a, b: t(a).mean(dim=1), "mean"),
    "masked sum": (lambda t, a, b: (t(a) * deep_mask(a)).sum(1), "sum"),
    "mask first": (lambda t, a, b: (deep_mask(a) * t(a)).sum(dim=-2), "sum"),
    "clamped mean": (lambda t, a, b: (t(a) * deep_mask(a)).sum(1) / deep_mask(a).sum(1).clamp(min=1), "mean"),
    "mean with epsilon": (
        lambda t, a, b: torch.bmm(mask(a).unsqueeze(1), t(a)).squeeze(1) / (mask(a).sum(-1, keepdim=True) + 1e-16),
        "mean",
    ),
    "mean with a tensor of epsilon": (
        lambda t, a, b: (
            (t(a) * torch.repeat_interleave(deep_mask(a), WIDTH, dim=2)).sum(1)
            / (mask(a).sum(-1, keepdim=True) + torch.tensor([1e-8]))
        ),
        "mean",
    ),
    "count of a bool": (
        lambda t, a, b: (t(a) * (a > 0).unsqueeze(-1)).sum(1) / (a > 0).sum(1, keepdim=True).clamp(min=1),
        "mean",
    ),
    "filled": (lambda t, a, b: t(a).masked_fill((a == 0).unsqueeze(-1), 0.0).sum(1), "sum"),
    "not equal": (lambda t, a, b: (t(a) * (~(a == 0)).float()[..., None]).sum(1), "sum"),
    "from 1 on": (lambda t, a, b: (t(a) * (a >= 1).float()[..., None]).sum(1), "sum"),
    "another padding": (lambda t, a, b: (t(a) * (a != 3).float()[..., None]).sum(1), "sum"),
    "above 3": (lambda t, a, b: (t(a) * (a > 3).float()[..., None]).sum(1), "sum"),
    "never left out": (lambda t, a, b: (t(a) * (a != -1).float()[..., None]).sum(1), "sum"),
    "mask of other ids": (lambda t, a, b: (t(a) * deep_mask(b)).sum(1), "sum"),
    "mean by length": (lambda t, a, b: (t(a) * by_length(a)).sum(1) / by_length(a).sum(1).clamp(min=1), "mean"),
    "over a length": (lambda t, a, b: (t(a) * by_length(a)).sum(1) / (lengths(a)[:, None] + 1e-8), "sum"),
    "over another length": (
        lambda t, a, b: (t(a) * deep_mask(a)).sum(1) / lengths(b).clamp(min=1).unsqueeze(1),
        "sum",
    ),
    "over two at least": (lambda t, a, b: (t(a) * deep_mask(a)).sum(1) / deep_mask(a).sum(1).clamp(min=2), "sum"),
    "all over a length": (lambda t, a, b: t(a).sum(1) / lengths(b).clamp(min=1)[:, None], "sum"),
    "weights": (lambda t, a, b: (t(a) * torch.softmax(t(a)[..., 0], 1).unsqueeze(-1)).sum(1), "sum"),
    "weighted mean": (
        lambda t, a, b: (t(a) * (a / 9.0)[..., None]).sum(1) / (a / 9.0)[..., None].sum(1).clamp(min=0.1),
        "sum",
    ),
    "deep weights": (lambda t, a, b: (t(a) * (b / 9.0).unsqueeze(2).expand(-1, -1, WIDTH)).sum(1), "sum"),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooled_rows_of_padded_ids(name: str) -> None:
    torch.manual_seed(0)
    pool, how = POOLS[name]
    assert_fuses_like(Ranker(pool).eval(), ranker_inputs, ["user", f"seen ({how})"])


# A list of the padding alone is 0 / 0; or the table is not pooled by a sum.
OTHERS: dict[str, Callable[[nn.Embedding, Tensor, Tensor], Tensor]] = {
    "unsafe mean": lambda t, a, b: (t(a) * deep_mask(a)).sum(1) / deep_mask(a).sum(1),
    "unsafe mean by length": lambda t, a, b: (t(a) * by_length(a)).sum(1) / by_length(a).sum(1),
    "largest": lambda t, a, b: t(a).max(1).values,
    "mean of all, masked": lambda t, a, b: (t(a) * deep_mask(a)).mean(1),
    "a factor for each column": lambda t, a, b: (t(a) * torch.linspace(0, 1, WIDTH)).sum(1),
    "columns": lambda t, a, b: t(a)[:, :WIDTH, :].sum(2),
    "product": lambda t, a, b: t(a).sum(1) * t(b).sum(1),
    "twice read": lambda t, a, b: (t(a) * deep_mask(a)).sum(1) + t(a)[:, 0] + t(a).mean(1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_uses_of_a_table_give_the_same_numbers(name: str) -> None:
    torch.manual_seed(0)
    model = Ranker(OTHERS[name]).eval()
    fused = fuse(model, (*ranker_inputs(9)[:2], padded_ids(9).clamp(min=1), padded_ids(9, 1).clamp(min=1)))
    with torch.inference_mode():
        for batch in BATCHES:
            given = ranker_inputs(batch)
            torch.testing.assert_close(fused(*given), model(*given), atol=1e-6, rtol=1e-6, equal_nan=True)


class Bags(nn.Module):
    """EmbeddingBags of every kind of call before one tower."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.mean = nn.EmbeddingBag(ROWS, 4, mode="mean", **settings)
        self.ends = nn.EmbeddingBag(ROWS, 3, mode="sum", include_last_offset=True, **settings)
        self.even = nn.EmbeddingBag(ROWS, WIDTH, mode="mean", **settings)
        self.weighted = nn.EmbeddingBag(ROWS, 2, mode="sum", **settings)
        self.tower = nn.Sequential(nn.Linear(14, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, lists: dict[str, Tensor], even: Tensor, weights: Tensor) -> Tensor:
        rows = [
            self.mean(lists["values"], lists["offsets"]),
            self.ends(lists["other_values"], lists["other_offsets"]),
            self.even(even),
            self.weighted(even, per_sample_weights=weights),
        ]
        return torch.sigmoid(self.tower(torch.cat(rows, dim=1)))


def lists_of(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Values, and offsets with the end of the last; every third list is empty."""
    generator = torch.Generator().manual_seed(seed * 1000 + batch)
    counts = torch.randint(0, 5, (batch,), generator=generator)
    counts[::3] = 0
    return torch.randint(0, ROWS, (int(counts.sum()),), generator=generator), F.pad(counts.cumsum(0), (1, 0))


def bag_inputs(batch: int) -> tuple[Any, ...]:
    (values, offsets), (other, others) = lists_of(batch, 1), lists_of(batch, 2)
    named = {"values": values, "offsets": offsets[:-1], "other_values": other, "other_offsets": others}
    return named, padded_ids(batch), torch.rand(batch, LENGTH, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("padding", [None, 0])
def test_embedding_bags(padding: int | None) -> None:
    torch.manual_seed(0)
    model = Bags(padding_idx=padding).eval()
    with torch.no_grad():
        model.even.weight[0] = 7.0  # a padding's row is left out whatever it holds
    assert_fuses_like(model, bag_inputs, ["mean (mean)", "ends (sum)", "even (mean)", "weighted (sum)"])


def test_ids_of_int32() -> None:
    torch.manual_seed(0)

    def inputs(batch: int) -> tuple[Any, ...]:
        named, even, weights = bag_inputs(batch)
        return {name: one.int() for name, one in named.items()}, even.int(), weights

    tables = ["mean (mean)", "ends (sum)", "even (mean)", "weighted (sum)"]
    assert_fuses_like(Bags().eval(), inputs, tables)


class Alone(nn.Module):
    """A bag, and no other table."""

    def __init__(self, mode: str = "mean") -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(ROWS, 6, mode=mode)
        self.tower = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        return torch.sigmoid(self.tower(self.bag(ids, offsets)))


def list_inputs(batch: int) -> tuple[Tensor, ...]:
    values, offsets = lists_of(batch, 3)
    return values, offsets[:-1]


@pytest.mark.parametrize("inputs", [list_inputs, lambda batch: (padded_ids(batch),)])
def test_one_bag_alone(inputs: Callable[[int], tuple[Tensor, ...]]) -> None:
    torch.manual_seed(0)
    assert_fuses_like(Alone().eval(), inputs, ["bag (mean)"])


def test_a_bag_of_the_largest_stays_outside_and_is_named() -> None:
    report = fuse.explain(Alone("max").eval(), padded_ids(9))
    assert [part.tables for part in report.regions] == [[]]
    assert "bag (EmbeddingBag): a look-up; it stays in front of the region" in str(report)


def test_tables_are_read_as_they_are_and_bad_ids_are_named() -> None:
    torch.manual_seed(0)
    model = Ranker(POOLS["clamped mean"][0]).eval()
    fused, given = fuse(model, ranker_inputs(9)), ranker_inputs(5)
    with torch.no_grad():
        model.seen.weight.mul_(2.0)
        torch.testing.assert_close(fused(*given), model(*given), atol=1e-6, rtol=1e-6)
    given[2][1, 0] = ROWS
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match=rf"values\[{LENGTH}\] must be a row of tables\[\d\], 0 to 29, got 30"),
    ):
        fused(*given)


def test_a_plan_holds_none_of_the_models_memory() -> None:
    """What shares it would be compared byte by byte in each call."""
    model = Ranker(POOLS["clamped mean"][0]).eval()
    before = [torch._C._storage_Use_Count(one.untyped_storage()._cdata) for one in model.parameters()]
    fused = fuse(model, ranker_inputs(9))
    gc.collect()
    assert [torch._C._storage_Use_Count(one.untyped_storage()._cdata) for one in fused.parameters()] == before


def test_packed_models_export_for_any_batch() -> None:
    torch.manual_seed(0)
    model = Bags().eval()
    packed, given = fuse.packed(fuse(model, bag_inputs(9))), bag_inputs(9)
    batch = {0: torch.export.Dim.AUTO}
    dynamic = (dict.fromkeys(given[0], batch), batch, batch)
    with torch.no_grad():
        program = torch.export.export(packed, given, dynamic_shapes=(dynamic,)).module()
        for count in (9, 4):
            torch.testing.assert_close(program(*bag_inputs(count)), model(*bag_inputs(count)), atol=1e-6, rtol=1e-6)


class Keyed:
    """Lists by key, as a KeyedJaggedTensor holds them: those of the first key, then those of the next."""

    def __init__(self, keys: Sequence[str], values: Tensor, lengths: Tensor, weights: Tensor | None = None) -> None:
        self.keys, self.values, self.lengths, self.weights = list(keys), values, lengths, weights

    def parts(self) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
        """Values, offsets and weights of each key, in the steps of TorchRec."""
        count = len(self.keys)
        rows = self.lengths.view(count, self.lengths.shape[0] // count)
        sizes = rows.sum(1).tolist()
        offsets = torch.cat([rows.new_zeros(count, 1), rows.cumsum(-1)], -1)
        weights = [None] * count if self.weights is None else self.weights.split(sizes)
        return dict(zip(self.keys, zip(self.values.split(sizes), offsets.unbind(0), weights, strict=True), strict=True))


pytree.register_pytree_node(
    Keyed,
    lambda one: ([one.values, one.lengths, one.weights], one.keys),
    lambda leaves, keys: Keyed(keys, *leaves),
    serialized_type_name="tests.Keyed",
    flatten_with_keys_fn=lambda one: (
        [(pytree.GetAttrKey(name), getattr(one, name)) for name in ("values", "lengths", "weights")],
        one.keys,
    ),
)


class Collection(nn.Module):
    """An EmbeddingBagCollection before a tower."""

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__()
        self.keys = keys
        self.bags = nn.ModuleDict({key: nn.EmbeddingBag(ROWS, 4, mode="sum", include_last_offset=True) for key in keys})
        self.tower = nn.Sequential(nn.Linear(4 * len(keys), 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, keyed: Keyed) -> Tensor:
        parts = keyed.parts()
        rows = [self.bags[key](*parts[key][:2], per_sample_weights=parts[key][2]) for key in self.keys]
        return torch.sigmoid(self.tower(torch.cat(rows, dim=1)))


KEYS = ("a", "b", "c")


def keyed_inputs(batch: int, weighted: bool = False, keys: Sequence[str] = KEYS) -> tuple[Keyed]:
    generator = torch.Generator().manual_seed(batch)
    counts = torch.randint(0, 4, (len(keys) * batch,), generator=generator)
    values = torch.randint(0, ROWS, (int(counts.sum()),), generator=generator)
    weights = torch.rand(len(values), generator=generator) if weighted else None
    return (Keyed(keys, values, counts, weights),)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("order", ["abc", "cab", "ac"])
def test_keyed_lists(order: str, weighted: bool) -> None:
    """In their order they are taken as they are; in another one, or some of them, they are joined."""
    torch.manual_seed(0)
    model = Collection(tuple(order)).eval()
    tables = [f"bags.{key} (sum)" for key in order]
    fused = assert_fuses_like(model, lambda batch: keyed_inputs(batch, weighted), tables)
    source = fused.__dict__["_resflow_fused"].plan.source
    assert ("starts(" in source) == (order == "abc") and ("joined(" in source) == (order != "abc")
    given, again = keyed_inputs(5, weighted), pickle.loads(pickle.dumps(fused))
    with torch.inference_mode():
        torch.testing.assert_close(again(*given), model(*given), atol=1e-6, rtol=1e-6)


def test_keyed_lists_of_other_keys_are_the_models_own_matter() -> None:
    torch.manual_seed(0)
    model = Collection(KEYS).eval()
    fused, turned = fuse(model, keyed_inputs(9)), keyed_inputs(5, keys=("b", "c", "a"))
    with torch.inference_mode():
        torch.testing.assert_close(fused(*turned), model(*turned))
