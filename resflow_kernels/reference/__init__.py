"""Every form in plain PyTorch, in any dtype: the ground truth for all kernels."""

from .rounding import int8_rows, rounded
from .towers import (
    Layer,
    Scores,
    TopK,
    activate,
    catalog_rows,
    catalog_scores,
    dense_scores,
    feature_rows,
    finish,
    fuse,
    request_of_candidates,
    request_scores,
    spread_weights,
    topk,
    tower_logits,
)

__all__ = [
    "Layer",
    "Scores",
    "TopK",
    "activate",
    "catalog_rows",
    "catalog_scores",
    "dense_scores",
    "feature_rows",
    "finish",
    "fuse",
    "int8_rows",
    "request_of_candidates",
    "request_scores",
    "rounded",
    "spread_weights",
    "topk",
    "tower_logits",
]
