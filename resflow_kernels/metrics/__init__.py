"""Metrics for rankers: AUC and GAUC, log loss, calibration, Recall@K, NDCG@K, Weighted Recall@K.

All take array-likes or tensors on any device and return a float. Importing this loads neither torch nor torchmetrics.
"""

from __future__ import annotations

from .classification import auc, calibration_error, calibration_ratio, log_loss, task_metrics
from .ranking import grouped_auc, ndcg_at_k, recall_at_k, weighted_recall_at_k, weighted_recall_of_ranking

__all__ = [
    "auc",
    "calibration_error",
    "calibration_ratio",
    "grouped_auc",
    "log_loss",
    "ndcg_at_k",
    "recall_at_k",
    "task_metrics",
    "weighted_recall_at_k",
    "weighted_recall_of_ranking",
]
