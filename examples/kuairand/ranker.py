"""Embeddings and ResFlow towers, trained together in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from resflow_kernels import ResFlow
from resflow_kernels.features import FeatureSet
from resflow_kernels.fusion import Fusion
from resflow_kernels.training.loop import Batch
from resflow_kernels.training.ranker import FeatureModel, encode_rows, feature_embeddings

from .prepare import TASKS, Impressions

HIDDEN = (128, 64)


@dataclass(frozen=True)
class Encoded:
    """Impressions as rows of the embedding tables."""

    rows: dict[str, Tensor]  # [n] by feature; for lists of ids [n, longest], padded
    labels: Tensor  # [n, K]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, chosen: Tensor) -> Batch:
        """Some impressions' rows and labels."""
        return Batch({name: rows[chosen] for name, rows in self.rows.items()}, self.labels[chosen])

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """An epoch's batches."""
        for part in torch.randperm(len(self), generator=generator).split(size):
            yield self.batch(part)


def encode(features: FeatureSet, days: Impressions) -> Encoded:
    """Encode impressions with fitted features."""
    return Encoded(encode_rows(features.all, days.table), torch.from_numpy(days.labels))


def ranker(features: FeatureSet, dropout: float, fusion: Fusion) -> FeatureModel:
    """One embedding a feature, side by side, into a ResFlow chain.

    Args:
        features: fitted.
        dropout: of the input row, in training.
        fusion: of the tasks' probabilities into a score.
    """
    embeddings = feature_embeddings(features)
    width = features.user_width + features.item_width
    # The labels are nested, so p_finish <= p_long_view <= p_click must hold, also for videos never shown.
    towers = ResFlow(width, HIDDEN, TASKS, norm="batch", non_increasing=True, fusion=fusion)
    return FeatureModel(features, towers, dropout, embeddings)


def probabilities(model: FeatureModel, days: Encoded, size: int = 8192) -> Tensor:
    """Probabilities ``[n, K]`` of all impressions, by the fused op."""
    return model.probabilities(days.batch(part).inputs for part in torch.arange(len(days)).split(size))
