"""Rankers as ``nn.Module``s: ordinary parameters, fused scoring in eval mode."""

from .baselines import AITM, MMoE, SharedBottom
from .feature import FeatureRanker, PackedFeatureRanker
from .interactions import DLRM, DCNv2
from .losses import bucket_values, multitask_bce, progressive_labels
from .methods import METHODS, make_ranker
from .packed import PackedResFlow
from .ple import PLE
from .resflow import ESMM, NSE, ResFlow
from .twin import TwinTable, TwinTower

__all__ = [
    "AITM",
    "DLRM",
    "ESMM",
    "METHODS",
    "NSE",
    "PLE",
    "DCNv2",
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
