"""Bundles from a user's own model: the model, the scorer and the command line agree; wrong products are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from resflow_kernels import Additive, Scorer, build_catalog, bundle
from resflow_kernels.cli import build_app
from resflow_kernels.convert import CannotFuse
from resflow_kernels.data.features import Feature, FeatureSet

USERS, ITEMS, DAYS = 40, 30, 9
FEATURES = FeatureSet(
    (Feature("user", 1, "id"), Feature("day", 1, "id")),
    (Feature("item", 1, "id"), Feature("tags", 1, "ids")),
    "request",
    "item",
)


class Towers(nn.Module):
    """Tables by name, one of them beside a wide part's, a list, a cross layer, and towers; subclasses end it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.tables = nn.ModuleDict(
            {"item": nn.Embedding(ITEMS, 6), "user": nn.Embedding(USERS, 8), "day": nn.Embedding(DAYS, 3)}
        )
        self.wide = nn.Embedding(ITEMS, 1)
        self.tags = nn.EmbeddingBag(12, 5, mode="sum", padding_idx=0)
        self.cross = nn.Linear(22, 22)
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(22, 16), nn.BatchNorm1d(16), nn.PReLU(), nn.Linear(16, 1)) for _ in range(2)
        )

    def forward(self, x: dict[str, Tensor]) -> Any:
        item = self.tables["item"](x["item"])
        row = torch.cat([item, self.tags(x["tags"]), self.tables["day"](x["day"]), self.tables["user"](x["user"])], 1)
        row = row * self.cross(row) + row
        first, second = (tower(row).squeeze(1) for tower in self.towers)
        return self.ended(first + self.wide(x["item"]).squeeze(1), second)

    def ended(self, first: Tensor, second: Tensor) -> Any:
        return torch.sigmoid(first), torch.sigmoid(second)


class Stacked(Towers):
    def ended(self, first: Tensor, second: Tensor) -> Any:
        return torch.sigmoid(torch.stack([first, second], 1))


class Logits(Towers):
    def ended(self, first: Tensor, second: Tensor) -> Any:
        return [first, second + first]


class Product(Towers):
    """ESMM: the second output is the product of two probabilities."""

    def ended(self, first: Tensor, second: Tensor) -> Any:
        click = torch.sigmoid(first)
        return {"click": click, "order": click * torch.sigmoid(second)}


class Three(Towers):
    def ended(self, first: Tensor, second: Tensor) -> Any:
        click, buy = torch.sigmoid(first), torch.sigmoid(second)
        return torch.cat([buy[:, None], click[:, None], (click * buy)[:, None]], 1)


def drawn(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def ids(most: int, *shape: int) -> Tensor:
        return torch.randint(0, most, (count, *shape), generator=generator)

    return {"user": ids(USERS), "item": ids(ITEMS), "day": ids(DAYS), "tags": ids(12, 4)}


def table_of(x: dict[str, Tensor], **other: Any) -> pa.Table:
    """The call's columns as a table; lists without their padding."""
    columns: dict[str, Any] = {name: value.numpy() for name, value in x.items() if name != "tags"}
    columns["tags"] = [[one for one in row if one] for row in x["tags"].tolist()]
    return pa.table({**columns, **other})


def probabilities(model: nn.Module, x: Any) -> Tensor:
    with torch.no_grad():
        made = model(x) if isinstance(x, dict) else model(*x)
    parts = list(made.values()) if isinstance(made, dict) else [made] if isinstance(made, Tensor) else list(made)
    both = torch.cat([one.reshape(len(one), -1) for one in parts], 1)
    return both.sigmoid() if isinstance(model, Logits) else both


@pytest.mark.parametrize("kind", [Towers, Stacked, Logits, Product, Three])
def test_the_scorer_and_the_file_are_the_model(kind: type[Towers], tmp_path: Path) -> None:
    model = kind().eval()
    made = bundle.from_model(model, drawn(5), FEATURES, fusion=Additive([1.0, 2.0, 3.0][: 3 if kind is Three else 2]))
    made.save(tmp_path / "ranker.safetensors")
    assert made.features is not None and [feature.dim for feature in made.features.all] == [8, 3, 7, 5]
    x = drawn(300, seed=3)
    wanted = probabilities(model, x).numpy()
    for scorer in (Scorer.from_bundle(made), Scorer.load(tmp_path / "ranker.safetensors")):
        table = table_of(x)
        encoded = made.features.encode_user(table) | made.features.encode_item(table)
        for got in (
            scorer.feature_scores(encoded),
            scorer.dense_scores(np.concatenate([scorer.embed_users(table), scorer.embed_items(table)], 1)),
        ):
            np.testing.assert_allclose(got.probs, wanted, atol=2e-6)
            np.testing.assert_allclose(got.score, wanted @ np.arange(1, 1 + wanted.shape[1]), atol=1e-5)
    reloaded = bundle.load_model(tmp_path / "ranker.safetensors")
    rows = torch.from_numpy(np.concatenate([scorer.embed_users(table), scorer.embed_items(table)], 1))
    with torch.inference_mode():
        np.testing.assert_allclose(reloaded(rows).probs.numpy(), wanted, atol=2e-6)


@pytest.mark.parametrize("catalog", [False, True])
def test_the_command_line_ranks_as_the_model_does(catalog: bool, tmp_path: Path) -> None:
    model = Product().eval()
    bundle.from_model(model, drawn(5), FEATURES, ("click", "order"), Additive((1.0, 4.0))).save(tmp_path / "ranker")
    requests, count = 6, 25
    x = drawn(requests * count, seed=9)
    if catalog:
        x = {name: value[:count].repeat(requests, *[1] * (value.dim() - 1)) for name, value in x.items()}
    x["item"] = torch.arange(count).repeat(requests)
    users = drawn(requests, seed=4)
    for name in ("user", "day"):
        x[name] = users[name].repeat_interleave(count)
    owners = np.repeat(np.arange(requests), count)
    whole = table_of(x, request=owners)
    firsts = np.arange(requests) * count
    asked = whole.select(["request", "user", "day"]).take(firsts) if catalog else whole
    pq.write_table(asked, tmp_path / "asked.parquet")
    pq.write_table(whole.select(["item", "tags"]).slice(0, count), tmp_path / "items.parquet")
    command = ["score", str(tmp_path / "ranker"), str(tmp_path / "asked.parquet"), "-o", str(tmp_path / "out")]
    command += ["--top-k", "7", *(["--catalog", str(tmp_path / "items.parquet")] if catalog else [])]
    result = CliRunner().invoke(build_app(), command)
    assert result.exit_code == 0, result.output
    ranked = pq.read_table(tmp_path / "out")
    probs = probabilities(model, x)
    best = (probs @ torch.tensor([1.0, 4.0])).reshape(requests, count).topk(7)
    assert ranked["item"].to_pylist() == best.indices.flatten().tolist()
    np.testing.assert_allclose(ranked["score"].to_numpy(), best.values.flatten().numpy(), atol=1e-5)
    own = probs.reshape(requests, count, 2).gather(1, best.indices[..., None].expand(-1, -1, 2)).reshape(-1, 2)
    np.testing.assert_allclose(ranked["p_order"].to_numpy(), own[:, 1].numpy(), atol=2e-6)


def test_a_catalog_file(tmp_path: Path) -> None:
    model = Towers().eval()
    made = bundle.from_model(model, drawn(5), FEATURES)
    x = drawn(20, seed=2)
    scorer = Scorer.from_bundle(made)
    items = scorer.embed_items(table_of(x))
    catalog = build_catalog(made, items, tmp_path / "items.catalog", "float32")
    users = scorer.embed_users(table_of(x))
    got = scorer.catalog_scores(users, np.arange(20), np.arange(21), catalog)
    np.testing.assert_allclose(got.probs, probabilities(model, x).numpy(), atol=2e-6)


VALUES = ["tuesday", "monday", "friday"]


class Days(nn.Module):
    """One table of days, over ``rows`` rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.day, self.item = nn.Embedding(rows, 4), nn.Embedding(5, 4)
        self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())

    def forward(self, day: Tensor, item: Tensor) -> Tensor:
        probs: Tensor = self.head(torch.cat([self.item(item), self.day(day)], 1))
        return probs


@pytest.mark.parametrize(
    ("rows", "given", "row_of", "unknown"),
    [
        (3, VALUES, {"tuesday": 0, "monday": 1, "friday": 2}, None),
        (4, {value: at + 1 for at, value in enumerate(VALUES)}, {"tuesday": 1, "monday": 2, "friday": 3}, 0),
        (9, {"monday": 8, "friday": 4}, {"monday": 8, "friday": 4}, 0),
        (4, "fitted", {"friday": 1, "monday": 2, "tuesday": 3}, 0),
        (3, "fitted", {"friday": 0, "monday": 1, "tuesday": 2}, None),
    ],
)
def test_vocabularies(rows: int, given: Any, row_of: dict[str, int], unknown: int | None) -> None:
    model = Days(rows).eval()
    fitted = tuple(sorted(VALUES)) if given == "fitted" else None
    features = FeatureSet((Feature("day", 4, "id", fitted),), (Feature("item", 4, "id"),), "request", "item")
    vocabularies = {} if given == "fitted" else {"day": given}
    made = bundle.from_model(model, (torch.tensor([1, 0]), torch.tensor([1, 0])), features, vocabularies=vocabularies)
    scorer = Scorer.from_bundle(made)
    table = pa.table({"day": [*row_of, "sunday", None], "item": [3] * (len(row_of) + 2)})
    got = scorer.dense_scores(np.concatenate([scorer.embed_users(table), scorer.embed_items(table)], 1)).probs
    with torch.no_grad():
        item = torch.full((len(row_of),), 3)
        wanted = model(torch.tensor(list(row_of.values())), item)
        row = torch.zeros(1, 4) if unknown is None else model.day(torch.tensor([unknown]))
        other = model.head(torch.cat([model.item(item[:1]), row], 1))
    np.testing.assert_allclose(got, torch.cat([wanted, other, other]).numpy(), atol=2e-6)


class Columns(nn.Module):
    """One matrix of columns, one table for all fields by offsets, and a bucket's table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.fields, self.age = nn.Embedding(20 + 7, 4), nn.Embedding(5, 4)
        self.register_buffer("offsets", torch.tensor([0, 20]))
        self.head = nn.Sequential(nn.Linear(12, 8), nn.SiLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        ids = x.long()
        parts = [self.fields(ids[:, at] + self.offsets[at]) for at in range(2)]
        logits: Tensor = self.head(torch.cat([*parts, self.age(ids[:, 2])], 1))
        return torch.sigmoid(logits)


def test_columns_of_a_matrix_offsets_and_buckets() -> None:
    model = Columns().eval()
    bounds = np.array([10.0, 20.0, 50.0])
    features = FeatureSet(
        (Feature("age", 4, "bucket", boundaries=bounds),),
        (Feature("item", 4, "id"), Feature("user", 4, "id")),
        "request",
        "item",
    )
    x = torch.stack([torch.randint(0, n, (50,)) for n in (20, 7, 5)], 1).float()
    made = bundle.from_model(model, x, features, ("a", "b"), inputs={"user": 0, "item": 1, "age": 2})
    scorer = Scorer.from_bundle(made)
    ages = np.array([np.nan, 5.0, 15.0, 30.0, 70.0])[x[:, 2].long().numpy()]
    table = pa.table({"user": x[:, 0].long().numpy(), "item": x[:, 1].long().numpy(), "age": ages})
    got = scorer.dense_scores(np.concatenate([scorer.embed_users(table), scorer.embed_items(table)], 1))
    np.testing.assert_allclose(got.probs, probabilities(model, (x,)).numpy(), atol=2e-6)


class AtOnce(nn.Module):
    """All fields in one look-up of one table, and their second-order term."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.fields, self.linear = nn.Embedding(20 + 7 + 5, 4), nn.Embedding(20 + 7 + 5, 1)
        self.register_buffer("offsets", torch.tensor([0, 20, 27]))
        self.head = nn.Sequential(nn.Linear(12, 8), nn.SiLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.fields(x + self.offsets)
        second = 0.5 * (rows.sum(1).square() - rows.square().sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(self.head(rows.flatten(1)) + second + self.linear(x + self.offsets).sum(1))


def test_fields_of_one_table_looked_up_at_once() -> None:
    model = AtOnce().eval()
    day, item, tab = Feature("day", 4, "id"), Feature("item", 4, "id"), Feature("tab", 4, "id")
    inputs = {"day": 0, "item": 1, "tab": 2}
    x = torch.stack([torch.randint(0, n, (50,)) for n in (20, 7, 5)], 1)
    for features in (FeatureSet((day,), (tab, item), "r", "item"), FeatureSet((day,), (item, tab), "r", "item")):
        made = bundle.from_model(model, x, features, inputs=inputs)
        assert made.features is not None and [feature.dim for feature in made.features.all] == [5] * 3
        scorer = Scorer.from_bundle(made)
        table = pa.table({name: x[:, at].numpy() for name, at in inputs.items()})
        user, item_rows = scorer.embed_users(table), scorer.embed_items(table)
        wanted = probabilities(model, (x,)).numpy()
        np.testing.assert_allclose(scorer.dense_scores(np.concatenate([user, item_rows], 1)).probs, wanted, atol=2e-6)
        got = scorer.request_scores(user, item_rows, np.arange(51)).probs
        np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_bare_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 12), nn.LayerNorm(12), nn.Mish(), nn.Linear(12, 3), nn.Sigmoid()).eval()
    made = bundle.from_model(model, torch.randn(4, 9), tasks=("a", "b", "c"))
    x = torch.randn(20, 9)
    got = Scorer.from_bundle(made).dense_scores(x.numpy()).probs
    np.testing.assert_allclose(got, probabilities(model, (x,)), atol=2e-6)


class OnlyProduct(Towers):
    def ended(self, first: Tensor, second: Tensor) -> Any:
        return torch.sigmoid(first) * torch.sigmoid(second)


class Complement(Towers):
    def ended(self, first: Tensor, second: Tensor) -> Any:
        return torch.sigmoid(first), (1 - torch.sigmoid(first)) * torch.sigmoid(second)


class Late(Towers):
    def ended(self, first: Tensor, second: Tensor) -> Any:
        return torch.sigmoid(first) * torch.sigmoid(second), torch.sigmoid(first)


class Clipped(Towers):
    def ended(self, first: Tensor, second: Tensor) -> Any:
        return torch.sigmoid(first).clamp(1e-6, 0.5)


class Between(Towers):
    def ended(self, first: Tensor, second: Tensor) -> Any:
        return torch.sigmoid(torch.sort(torch.stack([first, second], 1), 1).values)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (OnlyProduct, "OnlyProduct: its output 0 is a product of 2 probabilities; a bundle holds such a one if"),
        (Late, "Late: its output 0 is a product of 2 probabilities"),
        (Complement, "Complement: its output ends in mul in Complement; a bundle holds logits, sigmoids of logits"),
        (Clipped, "Clipped: its output ends in clamp in Clipped"),
        (Between, "Between: all behind its tables must be one program for a bundle, some is not"),
    ],
)
def test_wrong_outputs_are_refused(kind: type[Towers], text: str) -> None:
    with pytest.raises(CannotFuse, match=text):
        bundle.from_model(kind().eval(), drawn(5), FEATURES)


class Numeric(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.day, self.item, self.head = nn.Embedding(4, 4), nn.Embedding(5, 4), nn.Linear(10, 1)

    def forward(self, day: Tensor, item: Tensor, age: Tensor) -> Tensor:
        return torch.sigmoid(self.head(torch.cat([self.day(day), self.item(item), age], 1)))


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.day, self.item, self.head = nn.EmbeddingBag(4, 4), nn.Embedding(5, 4), nn.Linear(8, 1)

    def forward(self, day: Tensor, item: Tensor) -> Tensor:
        return torch.sigmoid(self.head(torch.cat([self.day(day), self.item(item)], 1)))


def test_wrong_tables_are_refused() -> None:
    day, item = Feature("day", 4, "id"), Feature("item", 4, "id")
    features = FeatureSet((day,), (item,), "request", "item")
    ids = torch.tensor([1, 0])
    with pytest.raises(CannotFuse, match="Numeric: it reads the input age; a bundle's features are ids, lists of ids"):
        bundle.from_model(Numeric().eval(), (ids, ids, torch.randn(2, 2)), features)
    with pytest.raises(CannotFuse, match="must sum the rows of a list for a bundle"):
        bundle.from_model(Mean().eval(), (ids[:, None], ids), features)
    model = Days(4).eval()
    with pytest.raises(CannotFuse, match=r"the table day, looked up by day \(.*\), must be of one feature, got none"):
        bundle.from_model(model, (ids, ids), FeatureSet((Feature("week", 4, "id"),), (item,), "request", "item"))
    named = FeatureSet((Feature("week", 4, "id"),), (item,), "request", "item")
    assert bundle.from_model(model, (ids, ids), named, tables={"week": "day"}).features is not None
    assert bundle.from_model(model, (ids, ids), named, inputs={"week": "day"}).features is not None
    with pytest.raises(CannotFuse, match="feature week must be looked up by the model, got no table"):
        bundle.from_model(model, (ids, ids), FeatureSet((day, Feature("week", 4, "id")), (item,), "request", "item"))
    with pytest.raises(CannotFuse, match="kind of feature day must be 'id' or 'bucket', the model looks up one row"):
        bundle.from_model(model, (ids, ids), FeatureSet((Feature("day", 4, "ids"),), (item,), "request", "item"))
    with pytest.raises(ValueError, match="feature 'day': vocabulary must be of rows 0 to 3, got 1 to 9"):
        bundle.from_model(model, (ids, ids), features, vocabularies={"day": {"a": 1, "b": 9}})
    with pytest.raises(ValueError, match=r"tasks must be one per output \(1\), got 2"):
        bundle.from_model(model, (ids, ids), features, ("a", "b"))
    with pytest.raises(CannotFuse, match="Days: features must be given for a model that looks tables up"):
        bundle.from_model(model, (ids, ids))
