"""A user's own two-tower model: its sides, its order, and what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resflow_kernels.convert import CannotFuse, FusedTwin, fuse_twin
from resflow_kernels.convert.graph.module import is_fused

USER, ITEM, WIDTH = 6, 5, 8
Join = Callable[[Tensor, Tensor, "Two"], Any]


class Two(nn.Module):
    """Two towers of different layers, and whatever joins their vectors."""

    def __init__(self, join: Join) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.join = join
        self.users = nn.Sequential(nn.Linear(USER, 24), nn.BatchNorm1d(24), nn.PReLU(), nn.Linear(24, WIDTH))
        self.items = nn.Sequential(nn.Linear(ITEM, 16), nn.Mish(), nn.LayerNorm(16), nn.Linear(16, WIDTH))
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.user_bias, self.item_bias = nn.Linear(USER, 1), nn.Linear(ITEM, 1)

    def forward(self, user: Tensor, item: Tensor) -> Any:
        self.rows = user, item
        return self.join(self.users(user), self.items(item), self)


def _biased(u: Tensor, v: Tensor, model: Two) -> Tensor:
    user, item = model.rows
    return (u * v).sum(1) - model.item_bias(item).squeeze(1) * 0.5 + model.user_bias(user)[:, 0] + 0.25


def _by_lengths(u: Tensor, v: Tensor, model: Two) -> Tensor:
    """As deepmatch-like packages write a cosine."""
    cosine = (u * v).sum(-1) / (u.norm(dim=-1) * v.norm(dim=-1) + 1e-8)
    return cosine.clamp(-1, 1.0) * 20


PAIRS: dict[str, Join] = {
    "dot": lambda u, v, m: (u * v).sum(1),
    "sigmoid": lambda u, v, m: torch.sigmoid((u * v).sum(-1, keepdim=True)),
    "mean": lambda u, v, m: (v * u).mean(1) * 3,
    "bmm": lambda u, v, m: torch.bmm(u[:, None], v[:, :, None]).view(-1),
    "matmul": lambda u, v, m: torch.matmul(u.unsqueeze(1), v.unsqueeze(2)).squeeze(-1),
    "einsum": lambda u, v, m: torch.einsum("bd,bd->b", u, v),
    "vecdot": lambda u, v, m: torch.linalg.vecdot(u, v),
    "cosine": lambda u, v, m: F.cosine_similarity(u, v, dim=1) / 0.02,
    "normalized": lambda u, v, m: torch.sigmoid((F.normalize(u) * F.normalize(v, dim=-1)).sum(1) * m.temperature.exp()),
    "temperature": lambda u, v, m: (F.normalize(u) / 0.05 * F.normalize(v)).sum(1) / m.temperature,
    "lengths": _by_lengths,
    "biased": _biased,
    "halved": lambda u, v, m: (F.cosine_similarity(u, v) + 1) / 2,
}
ALL_PAIRS: dict[str, Join] = {
    "all": lambda u, v, m: u @ v.T,
    "all cosines": lambda u, v, m: F.normalize(u) @ F.normalize(v).t() / m.temperature,
    "all by broadcasting": lambda u, v, m: (u[:, None] * v[None]).sum(-1) / 0.3,
    "all by similarity": lambda u, v, m: F.cosine_similarity(u.unsqueeze(1), v, dim=2) / 0.3,
    "all by einsum": lambda u, v, m: torch.einsum("ud,vd->uv", u, v),
    "softmax": lambda u, v, m: torch.softmax(u @ v.transpose(0, 1) / 0.1, dim=1),
}


def rows(users: int, items: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(users, USER, generator=generator), torch.randn(items, ITEM, generator=generator)


def order_of(logits: Tensor) -> Tensor:
    """Positions as a model's own outputs order them, equal ones by position."""
    return logits.sort(dim=1, descending=True, stable=True).indices


def assert_ranks_as(twin: FusedTwin, users: Any, items: Any, own: Tensor) -> None:
    """``own [R, M]``: the model's logits of all pairs, in float64."""
    table = twin.build_table(items, "float32", batch=16)
    count = own.shape[1]
    best = twin.twin_topk(users, table, count)
    found = own.gather(1, best.positions)
    assert torch.equal(best.positions.sort(1).values, torch.arange(count).expand_as(own))
    assert (found.diff(dim=1) <= 2e-6 * own.abs().max().clamp_min(1)).all()  # what float32 tells apart
    torch.testing.assert_close(best.scores.double(), found.sigmoid(), atol=2e-6, rtol=1e-5)
    offsets = torch.arange(len(own) + 1) * count
    lists = twin.twin_ids_topk(users, torch.arange(count).repeat(len(own)), offsets, table, count)
    assert torch.equal(lists.positions, best.positions) and torch.equal(lists.scores, best.scores)
    few = twin.twin_topk(users, table, min(3, count))
    assert torch.equal(few.positions, best.positions[:, :3])


@pytest.mark.parametrize("name", [*PAIRS, *ALL_PAIRS])
def test_a_model_is_two_sides_and_their_order_is_its_own(name: str) -> None:
    model = Two((PAIRS | ALL_PAIRS)[name]).eval()
    twin = fuse_twin(model, rows(7, 7), user="user")
    assert is_fused(twin.user) and is_fused(twin.item)
    users, items = rows(4, 40, seed=2)
    with torch.no_grad():
        if name in PAIRS:
            own = model.double()(users.repeat_interleave(40, 0).double(), items.repeat(4, 1).double()).reshape(4, 40)
        else:
            own = model.double()(users.double(), items.double())
        model.float()
        own = own.logit() if name in ("sigmoid", "normalized") else own.log() if name == "softmax" else own
        table = twin.build_table(items, "float32")
        ids, offsets = torch.arange(40).repeat(4), torch.arange(5) * 40
        logits = twin.twin_ids_scores(users, ids, offsets, table).logits.reshape(4, 40)
        if name == "softmax":  # which leaves out a number for each user
            logits = logits.log_softmax(1)
            assert torch.equal(order_of(own), twin.twin_topk(users, table, 40).positions)
        else:
            assert_ranks_as(twin, users, items, own)
        torch.testing.assert_close(logits, own.float(), atol=1e-5, rtol=1e-5)


def test_logits_that_saturate_keep_their_order() -> None:
    """Cosines over a temperature of 0.01: nearly all probabilities are 1 or 0 in float32."""
    model = Two(lambda u, v, m: torch.sigmoid(F.cosine_similarity(u, v) / 0.01)).eval()
    twin = fuse_twin(model, rows(5, 5))
    users, items = rows(3, 300, seed=5)
    with torch.no_grad():
        a, b = model.double().users(users.double()), model.items(items.double())
        model.float()
        best = twin.twin_topk(users, twin.build_table(items, "float32"), 300)
        assert (best.scores[:, :20] == 1).all()
        assert_ranks_as(twin, users, items, F.cosine_similarity(a[:, None], b[None], dim=2) / 0.01)


class Ids(nn.Module):
    """A dict of ids and numbers; a list of negatives after the item (a YoutubeDNN trained with sampled softmax)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.tables = nn.ModuleDict({name: nn.Embedding(50, WIDTH) for name in ("user", "tab", "item")})
        self.seen = nn.EmbeddingBag(50, WIDTH, mode="mean")
        self.tower = nn.Sequential(nn.Linear(3 * WIDTH + 2, 16), nn.ReLU(), nn.Linear(16, WIDTH))

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        parts = [self.tables["user"](x["user"]), self.tables["tab"](x["tab"]), self.seen(x["seen"]), x["age"]]
        user = F.normalize(self.tower(torch.cat(parts, 1)).unsqueeze(1), dim=2)
        item = F.normalize(self.tables["item"](x["item"]).unsqueeze(1), dim=2)
        negatives = F.normalize(self.tables["item"](x["negatives"]), dim=2)
        return torch.mul(user, torch.cat((item, negatives), 1)).sum(2) / 0.02


def ids(users: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randint(0, 50, shape, generator=generator)

    return {
        "user": drawn(users), "tab": drawn(users), "item": drawn(users), "negatives": drawn(users, 6),
        "seen": drawn(users, 4), "age": torch.rand(users, 2, generator=generator),
    }  # fmt: skip


def test_tables_and_negatives_behind_the_item() -> None:
    model = Ids().eval()
    twin = fuse_twin(model, ids(9), tasks=("watch",))
    users = ids(3, seed=1)
    with torch.no_grad():
        user = {name: users[name] for name in ("user", "tab", "seen", "age")}
        assert torch.equal(twin.user_vectors(user), twin.user_vectors(users))
        items = torch.arange(50)
        whole = {name: value.repeat_interleave(50, 0) for name, value in users.items()} | {"item": items.repeat(3)}
        own = model.double()({n: v.double() if n == "age" else v for n, v in whole.items()})[:, 0].reshape(3, 50)
        model.float()
        assert_ranks_as(twin, user, {"item": items}, own)
    with pytest.raises(ValueError, match=r"item must have x\['item'\], got none"):
        twin.build_table(user)


def test_an_output_for_negatives() -> None:
    class Both(Two):
        def forward(self, user: Tensor, item: Tensor, negative: Tensor) -> Any:  # type: ignore[override]
            vectors = F.normalize(self.users(user))
            return tuple((vectors * F.normalize(self.items(one))).sum(1) for one in (item, negative))

    model = Both(PAIRS["dot"]).eval()
    user, item = rows(5, 5)
    twin = fuse_twin(model, (user, item, torch.randn(5, ITEM)))
    assert twin.tasks == ("task0",)
    with torch.no_grad():
        torch.testing.assert_close(twin(user, item).logits[:, 0], model(user, item, item)[0])


def test_items_of_each_user() -> None:
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user, self.item = nn.Linear(USER, WIDTH), nn.Linear(ITEM, WIDTH)

        def forward(self, item: Tensor, user: Tensor) -> Tensor:
            return torch.matmul(self.item(item), self.user(user).unsqueeze(2)).squeeze(2)

    model = Lists().eval()
    user, item = rows(4, 12)
    twin = fuse_twin(model, (item.reshape(4, 3, ITEM), user))
    with torch.no_grad():
        vectors = twin.item_vectors(item.reshape(4, 3, ITEM))
        own = model(item.reshape(4, 3, ITEM), user)
        assert vectors.shape == (12, WIDTH)
        torch.testing.assert_close((twin.user_vectors(user)[:, None] * vectors.unflatten(0, (4, 3))).sum(2), own)


def test_columns_of_one_matrix_tell_the_sides_apart() -> None:
    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(20, 4) for _ in range(4))
            self.user, self.item = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            rows = [table(x[:, at].long()) for at, table in enumerate(self.tables)]
            user = self.user(torch.cat([rows[3], rows[0]], 1))
            return torch.sigmoid((self.item(torch.cat(rows[1:3], 1)) * user).sum(1))

    model = Columns().eval()
    x = torch.randint(0, 20, (30, 4)).float()
    twin = fuse_twin(model, x)
    by_user = fuse_twin(model, x, user="x")  # both sides read x: the name tells nothing apart
    with torch.no_grad():
        a, b = twin.user_vectors(x), twin.item_vectors(x)
        torch.testing.assert_close((a * b).sum(1).sigmoid(), model(x))
        other = x.clone()
        other[:, [0, 3]] += 1
        assert torch.equal(twin.user_vectors(other % 20), a)  # the product's first factor reads columns 1 and 2
        assert by_user.user_vectors(x).shape == a.shape


def test_the_user_can_be_named() -> None:
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user, self.item = nn.Linear(USER, WIDTH), nn.Linear(ITEM, WIDTH)

        def forward(self, item: Tensor, user: Tensor) -> Tensor:
            return (self.item(item) * self.user(user)).sum(1)

    model = Swapped().eval()
    user, item = rows(3, 3)
    twin = fuse_twin(model, (item, user), user="user")
    with torch.no_grad():
        torch.testing.assert_close(twin.user_vectors(user), model.user(user))
        torch.testing.assert_close(fuse_twin(model, (item, user)).user_vectors(item), model.item(item))
    with pytest.raises(CannotFuse, match="user must be an argument or a key, one of item, user, got 'x'"):
        fuse_twin(model, (item, user), user="x")


@pytest.mark.parametrize("joined", ["tuple", "stack", "cat"])
def test_tasks(joined: str) -> None:
    class Tasks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users = nn.ModuleList(nn.Linear(USER, width) for width in (4, 7))
            self.items = nn.ModuleList(nn.Linear(ITEM, width) for width in (4, 7))

        def forward(self, user: Tensor, item: Tensor) -> Any:
            pairs = zip(self.users, self.items, strict=True)
            logits = [(a(user) * b(item)).sum(1, keepdim=joined == "cat") for a, b in pairs]
            if joined == "tuple":
                return tuple(map(torch.sigmoid, logits))
            return torch.sigmoid(torch.stack(logits, 1) if joined == "stack" else torch.cat(logits, 1))

    model = Tasks().eval()
    twin = fuse_twin(model, rows(5, 5), tasks=("click", "order"))
    assert twin.tasks == ("click", "order")
    user, item = rows(20, 20)
    with torch.no_grad():
        own = model(user, item)
        wanted = torch.stack([one.reshape(-1) for one in own], 1) if joined == "tuple" else own
        torch.testing.assert_close(twin(user, item).probs, wanted)
        table = twin.build_table(item, "float32")
        got = twin.twin_ids_scores(user, torch.arange(20), torch.arange(21), table)
        torch.testing.assert_close(got.probs, wanted)
    with pytest.raises(ValueError, match=r"tasks must be one per output \(2\), got 1"):
        fuse_twin(model, rows(5, 5), tasks=("click",))


def test_the_model_s_tensors_are_shared_and_it_trains_on() -> None:
    model = Two(PAIRS["normalized"]).eval()
    twin = fuse_twin(model, rows(5, 5))
    user, item = rows(6, 6)
    with torch.no_grad():
        before = twin(user, item).logits
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()(user, item).sum().backward()
    optimizer.step()
    model.eval()
    with torch.no_grad():
        after = twin(user, item)
        assert not torch.allclose(after.logits, before)
        torch.testing.assert_close(after.probs[:, 0], model(user, item))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda twin: pickle.loads(pickle.dumps(twin))])
def test_copies(copied: Any) -> None:
    twin = fuse_twin(Ids().eval(), ids(5))
    other = copied(twin)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(other.user_vectors(ids(7)), twin.user_vectors(ids(7)))
            assert torch.equal(other.item_vectors(ids(7)), twin.item_vectors(ids(7)))
            other.requires_grad_(False)
    assert is_fused(other.user) and other.user is not twin.user


REFUSED: dict[str, tuple[Join, str]] = {
    "a tower over both": (
        lambda u, v, m: nn.functional.linear(torch.cat([u, v], 1), torch.ones(1, 2 * WIDTH)),
        "Two: it ends in linear in Two, which is no dot product or cosine",
    ),
    "one side twice": (lambda u, v, m: (u * u).sum(1), "both read user; in a two-tower model each reads inputs of"),
    "a crossed factor": (
        lambda u, v, m: (u * F.relu(u + v)).sum(1),
        "the factors of its product, linear in users.3 .Linear. and relu in Two, both read user",
    ),
    "a bias of both": (
        lambda u, v, m: (u * v).sum(1) + F.relu(u + v).sum(1),
        "sum in Two reads inputs of both sides, the user's user and the item's item",
    ),
    "a distance": (lambda u, v, m: torch.cdist(u[:, None], v[:, None]).flatten(), "it ends in cdist in Two"),
    "a clamped product": (lambda u, v, m: (u * v).sum(1).clamp(-1, 1), "it ends in clamp in Two"),
    "a second layer": (lambda u, v, m: torch.tanh((u * v).sum(1)), "it ends in tanh in Two"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused_in_their_own_words(name: str) -> None:
    join, text = REFUSED[name]
    with pytest.raises(CannotFuse, match=text):
        fuse_twin(Two(join).eval(), rows(4, 4))


def test_bad_arguments_are_named() -> None:
    twin = fuse_twin(Two(PAIRS["dot"]).eval(), rows(4, 4))
    with pytest.raises(ValueError, match=r"user must be 1 arguments \(user\), got 2"):
        twin.user_vectors(rows(2, 2))
    table = twin.build_table(rows(0, 0)[1])
    assert twin.twin_topk(rows(2, 0)[0], table, 3).positions.tolist() == [[-1] * 3] * 2
