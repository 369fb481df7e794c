"""Rankers as ``nn.Module``s: ordinary parameters, fused scoring in eval mode."""

from .baselines import AITM, METHODS, MMoE, SharedBottom, make_ranker
from .feature import FeatureRanker, PackedFeatureRanker
from .losses import bucket_values, multitask_bce, progressive_labels
from .packed import PackedResFlow
from .resflow import ESMM, NSE, ResFlow
from .twin import TwinTable, TwinTower

__all__ = [
    "AITM",
    "ESMM",
    "METHODS",
    "NSE",
    "FeatureRanker",
    "MMoE",
    "PackedFeatureRanker",
    "PackedResFlow",
    "ResFlow",
    "SharedBottom",
    "TwinTable",
    "TwinTower",
    "bucket_values",
    "make_ranker",
    "multitask_bce",
    "progressive_labels",
]
