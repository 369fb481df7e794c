"""Models of torchrec: 26 bags of ids in a ``KeyedJaggedTensor`` beside 13 numeric columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection
from torchrec.modules.mlp import MLP

from bench.models.harness import Case

_KEYS = [f"f{i}" for i in range(26)]
_SIDES = ["query", "item"]
_ROWS = 400
_DLRMS: dict[type[nn.Module], dict[str, Any]] = {
    DLRM: {},
    DLRM_DCN: {"dcn_num_layers": 3, "dcn_low_rank_dim": 64},
    DLRM_Projection: {f"interaction_branch{side}_layer_sizes": [64, 64] for side in (1, 2)},
}


class TwoTasks(nn.Module):
    """What a user of torchrec writes for two tasks: one collection, a tower and a head for each."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = _bags()
        self.towers = nn.ModuleList(MLP(26 * 16, [128, 64]) for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(64, 1) for _ in range(2))

    def forward(self, ids: KeyedJaggedTensor) -> list[Tensor]:
        rows = self.bags(ids).values()
        return [torch.sigmoid(head(tower(rows))) for head, tower in zip(self.heads, self.towers, strict=True)]


class Retrieval(nn.Module):
    """Two towers over one collection; the score is the sigmoid of their dot product."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = _bags(64, _SIDES)
        self.query, self.item = MLP(64, [128, 64]), MLP(64, [128, 64])

    def forward(self, ids: KeyedJaggedTensor) -> Tensor:
        pooled = self.bags(ids)
        return torch.sigmoid((self.query(pooled["query"]) * self.item(pooled["item"])).sum(1))


def cases() -> Iterator[Case]:
    """The package's models, and two that are built of its parts."""
    for kind, options in _DLRMS.items():
        yield Case(kind.__name__, partial(_dlrm, kind, options), _numbers_and_ids)
    yield Case("SimpleDeepFMNN", lambda: SimpleDeepFMNN(13, _bags(), 20, 5), _numbers_and_ids)
    yield Case("two tasks over a collection", TwoTasks, lambda batch: (_ids(batch),), "multi-task")
    yield Case("two towers over a collection", Retrieval, lambda batch: (_ids(batch, _SIDES, 1),), "two towers")


def _dlrm(kind: type[nn.Module], options: dict[str, Any]) -> nn.Module:
    return kind(_bags(), 13, [512, 256, 16], [512, 256, 1], **options)


def _bags(dim: int = 16, keys: Sequence[str] = _KEYS) -> EmbeddingBagCollection:
    tables = [
        EmbeddingBagConfig(name=f"t_{key}", embedding_dim=dim, num_embeddings=_ROWS, feature_names=[key])
        for key in keys
    ]
    return EmbeddingBagCollection(tables=tables)


def _ids(batch: int, keys: Sequence[str] = _KEYS, most: int = 3) -> KeyedJaggedTensor:
    """At most so many ids per bag; bags may be empty unless that is one."""
    generator = torch.Generator().manual_seed(8)
    lengths = torch.randint(0 if most > 1 else 1, most + 1, (len(keys) * batch,), generator=generator)
    values = torch.randint(0, _ROWS, (int(lengths.sum()),), generator=generator)
    return KeyedJaggedTensor(keys=list(keys), values=values, lengths=lengths)


def _numbers_and_ids(batch: int) -> tuple[Tensor, KeyedJaggedTensor]:
    return torch.rand(batch, 13, generator=torch.Generator().manual_seed(9)), _ids(batch)
