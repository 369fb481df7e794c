"""A small model that trains within a second, for tests of the loop and of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resflow_kernels import ResFlow
from resflow_kernels.training.loop import Batch, fit
from resflow_kernels.training.settings import FitSettings, History

BCE = F.binary_cross_entropy_with_logits


class Small(nn.Module):
    """An embedding, dropout, a layer, towers with a BatchNorm: all that a resumed run has to bring back."""

    def __init__(self, norm: str | None = "batch") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding, self.dropout = nn.Embedding(20, 4), nn.Dropout(0.3)
        self.mixed, self.towers = nn.Linear(8, 8), ResFlow(8, (6, 4), norm=norm)

    def forward(self, rows: dict[str, Tensor]) -> Any:
        return self.towers(self.mixed(self.dropout(torch.cat((self.embedding(rows["id"]), rows["x"]), 1))))


def batches(epoch: int, size: int = 16, rows: int = 120) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(epoch)
    ids, x = torch.randint(20, (rows,), generator=generator), torch.randn(rows, 4, generator=generator)
    labels = ((ids % 3 == 0)[:, None] & (x[:, :2] > -1)).float()
    for part in torch.arange(rows).split(size):
        yield Batch({"id": ids[part], "x": x[part]}, labels[part])


def evaluate(model: nn.Module) -> dict[str, float]:
    assert not model.training
    losses = [float(BCE(model(batch.inputs).logits, batch.labels)) for batch in batches(99)]
    return {"loss": -sum(losses) / len(losses)}


def settings(**changes: Any) -> FitSettings:
    return FitSettings(**{"epochs": 3, "patience": 3, "monitor": "loss", "learning_rate": 0.01, **changes})


def trained(**options: Any) -> tuple[Small, History]:
    model = Small()
    changes = options.pop("settings", {})
    return model, fit(model, batches, BCE, evaluate, settings(**changes), **options)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(left, right) for left, right in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )
