"""Embeddings and ResFlow towers, trained together in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resflow_kernels import ResFlow
from resflow_kernels.features import Feature, FeatureSet
from resflow_kernels.fusion import Fusion

from .prepare import TASKS, Impressions

HIDDEN = (128, 64)


@dataclass(frozen=True)
class Encoded:
    """Impressions as rows of the embedding tables."""

    rows: dict[str, Tensor]  # [n] by feature; for lists of ids [n, longest], filled up with `padding`
    labels: Tensor  # [n, K]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, chosen: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Some impressions' rows and labels."""
        return {name: rows[chosen] for name, rows in self.rows.items()}, self.labels[chosen]


def encode(features: FeatureSet, days: Impressions) -> Encoded:
    """Encode impressions with fitted features."""
    return Encoded(encode_rows(features.all, days.table), torch.from_numpy(days.labels))


def encode_rows(features: tuple[Feature, ...], table: pa.Table) -> dict[str, Tensor]:
    """A table's columns as rows of the embedding tables."""
    return {feature.name: _as_tensor(feature, feature.encode(table)) for feature in features}


def _as_tensor(feature: Feature, encoded: Any) -> Tensor:
    if feature.kind != "ids":
        return torch.from_numpy(encoded)
    values, offsets = encoded
    counts = np.diff(offsets)
    padded = np.full((len(counts), max(1, int(counts.max(initial=0)))), feature.rows, np.int64)
    padded[np.arange(padded.shape[1]) < counts[:, None]] = values
    return torch.from_numpy(padded)


class Ranker(nn.Module):
    """One embedding a feature, side by side, into a ResFlow chain.

    Args:
        features: fitted.
        dropout: of the input row, in training.
        fusion: of the tasks' probabilities into a score.
    """

    def __init__(self, features: FeatureSet, dropout: float, fusion: Fusion) -> None:
        super().__init__()
        self.features = features
        self.embeddings = nn.ModuleDict({feature.name: _embedding(feature) for feature in features.all})
        self.dropout = nn.Dropout(dropout)
        width = features.user_width + features.item_width
        # The labels are nested, so p_finish <= p_long_view <= p_click must hold, also for videos never shown.
        self.towers = ResFlow(width, HIDDEN, TASKS, norm="batch", non_increasing=True, fusion=fusion)

    def forward(self, rows: dict[str, Tensor]) -> Tensor:
        """Logits ``[n, K]``."""
        return self.towers(self.dropout(self.embed(rows))).logits

    def embed(self, rows: dict[str, Tensor]) -> Tensor:
        """The embeddings of the given features, side by side in the features' order."""
        return torch.cat([self.embeddings[f.name](rows[f.name]) for f in self.features.all if f.name in rows], dim=1)

    def tables(self) -> dict[str, NDArray[np.float32]]:
        """Each feature's embedding table ``[V, dim]``."""
        return {f.name: self.embeddings[f.name].weight.detach()[: f.rows].numpy() for f in self.features.all}

    @torch.inference_mode()
    def probabilities(self, days: Encoded, batch: int = 8192) -> Tensor:
        """Probabilities ``[n, K]`` of all impressions, by the fused op."""
        self.eval()
        return torch.cat([self(days.batch(part)[0]) for part in torch.arange(len(days)).split(batch)]).sigmoid()


def _embedding(feature: Feature) -> nn.Module:
    """A table of the feature's rows; a list's is one longer, for the padding that adds nothing to its sum."""
    if feature.kind == "ids":
        table: nn.Module = nn.EmbeddingBag(feature.rows + 1, feature.dim, mode="sum", padding_idx=feature.rows)
    else:
        table = nn.Embedding(feature.rows, feature.dim)
    with torch.no_grad():
        table.weight[: feature.rows].normal_(std=0.05)
    return table


def shuffled(days: Encoded, batch: int, generator: torch.Generator) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """An epoch's batches."""
    for part in torch.randperm(len(days), generator=generator).split(batch):
        yield days.batch(part)
