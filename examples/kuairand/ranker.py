"""Embeddings and ResFlow towers, trained together in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from examples.experiments.data import SCORED_AT_ONCE, Encoded
from examples.experiments.data import encode as encode_table
from resflow_kernels import ResFlow
from resflow_kernels.core.fusion import Fusion
from resflow_kernels.data.features import FeatureSet
from resflow_kernels.training.ranker import FeatureModel, feature_embeddings

from .prepare import TASKS, Impressions

HIDDEN = (128, 64)


def encode(features: FeatureSet, days: Impressions) -> Encoded:
    """Encode impressions with fitted features."""
    return encode_table(features, days.table, days.labels)


def ranker(features: FeatureSet, dropout: float, fusion: Fusion) -> FeatureModel:
    """One embedding per feature, concatenated, in front of a ResFlow chain.

    Args:
        features: the fitted features.
        dropout: dropout rate of the input row in training.
        fusion: turns the tasks' probabilities into a score.
    """
    embeddings = feature_embeddings(features)
    width = features.user_width + features.item_width
    # The labels are nested, so p_finish <= p_long_view <= p_click must hold, also for videos never shown.
    towers = ResFlow(width, HIDDEN, TASKS, norm="batch", non_increasing=True, fusion=fusion)
    return FeatureModel(features, towers, dropout, embeddings)


def probabilities(model: FeatureModel, days: Encoded, size: int = SCORED_AT_ONCE) -> Tensor:
    """Probabilities ``[n, K]`` of all impressions, by the fused op."""
    return model.probabilities(days.scored_at_once(size))
