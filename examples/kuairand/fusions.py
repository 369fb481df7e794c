"""Rankings of the catalog by fused probabilities, plain and with weights tuned on the validation days' requests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.experiments.catalog import Requests
from resflow_kernels.metrics.fusion_search import tune_fusion

TOP = 100
FORMS = ("additive", "multiplicative")
SETTINGS = 60  # largest number of weights that the search tries per model
TUNED_METHODS = ("nse", "resflow")

Probabilities = NDArray[np.float32]


def plain_recalls(probs: Probabilities, requests: Requests) -> dict[str, float]:
    """Weighted Recall@100 of rankings without weights: by the last task alone, and by the sum of all.

    Args:
        probs: ``[R, M, K]``.
        requests: the requests whose feedback is recalled.
    """
    return {"wr100_last": requests.recall(probs[:, :, -1], TOP), "wr100_sum": requests.recall(probs.sum(2), TOP)}


def tuned_recalls(
    valid_probs: Probabilities, valid: Requests, test_probs: Probabilities, test: Requests
) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Weighted Recall@100 of both forms of fusion on test requests, their weights tuned on validation requests.

    Returns:
        Metrics ``wr100_<form>``; and by form, as JSON values, the weights and their recall on the validation requests.
    """
    metrics, chosen = {}, {}
    flat = valid_probs.reshape(-1, valid_probs.shape[2])
    for form in FORMS:
        tuned = tune_fusion(flat, valid.feedback.ravel(), valid.offsets, TOP, form, most=SETTINGS)
        weights = tuned.fusion.weights_for(flat.shape[1])
        metrics[f"wr100_{form}"] = test.recall(_fused(test_probs, weights, form), TOP)
        chosen[form] = {"weights": list(weights), "valid": tuned.wr_at_k}
    return metrics, chosen


def _fused(probs: Probabilities, weights: tuple[float, ...], form: str) -> NDArray[np.float32]:
    """Fused scores ``[R, M]``; products are computed as sums of logarithms, which give the same ranking."""
    values = np.log(probs) if form == "multiplicative" else probs
    return values @ np.array(weights, np.float32)
